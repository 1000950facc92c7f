import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { BlkDriver, connect, deviceInfo, serveDevices, VirtioDevice } from '../../src/guest/index.ts';
import { VmsgError } from '../../src/kit/errors.ts';
import { census } from '../../src/libc/census.ts';
import { isCode, until } from '../support/guest-fixture.ts';
import { guestBackend, imageBytes, type PathKind, useDisk, withRig } from '../support/served-rig.ts';
import { settledCensus } from '../support/settled-census.ts';

// First: the lanes of other tests end a little later than their tests.
/** Takes and gives regions while the disk is used, twice opened. */
async function useWithRegions(path: PathKind): Promise<void> {
  await withRig(async (rig) => {
    const lane = await rig.lane('inline', { drv: 'driver', dev: 'device' });
    const { server, number } = await rig.serveDisk('dev');
    await lane.call('attach', { bus: 'drv', attachment: 'a', backend: guestBackend(path, 'dev', number) });
    const bus = await connect({ path: rig.socket('drv') });
    const blk = await BlkDriver.open(bus, 0);
    for (let round = 0; round < 20; round++) {
      const area = await bus.memory.addRegion(1024 * 1024);
      assert.equal((await blk.read(0, 512)).length, 512);
      await bus.memory.removeRegion(area);
    }
    assert.equal((await deviceInfo(bus, 0)).name, 'blk');
    await blk.close();
    const device = await VirtioDevice.open(bus, 0);
    await device.close();
    bus.close();
    await server.close();
  });
}

test('regions come and go beside a served device, and nothing is left in the end', async () => {
  // The first use opens what stays.
  await withRig(async (rig) => {
    await rig.lane('inline', { dev: 'device' });
  });
  const before = await settledCensus();
  for (const path of ['relayed', 'shadow'] as const) await useWithRegions(path);
  await until(() => JSON.stringify(census()) === before, `nothing is left: ${before} ${JSON.stringify(census())}`);
});

for (const [kind, path] of [
  ['inline', 'relayed'],
  ['inline', 'shadow'],
  ['worker', 'relayed'],
  ['worker', 'shadow'],
] as const) {
  describe(`a device that another guest serves, ${path}, ${kind} lane`, () => {
    test('is used by one driver after the other, memory included', async () => {
      await withRig(async (rig) => {
        const lane = await rig.lane(kind, { drv: 'driver', dev: 'device' });
        const { server, number } = await rig.serveDisk('dev');
        const backend = guestBackend(path, 'dev', number);
        const attached = await lane.call('attach', { bus: 'drv', attachment: 'a', backend });
        assert.equal(attached.deviceType, 2);
        await useDisk(rig.socket('drv'), rig.image);
        await useDisk(rig.socket('drv'), rig.image, 'descriptors');
        await useDisk(rig.socket('drv'), rig.image);
        const [snapshot] = (await lane.call('inspect', {})).buses.filter(({ bus }) => bus === 'drv');
        assert.equal(snapshot?.devices[0]?.dataPath, path);
        assert.equal(snapshot?.devices[0]?.recovery, path === 'shadow' ? 'resume' : 'reset');
        assert.equal(snapshot?.devices[0]?.dataPathReason, path === 'shadow' ? 'the backend asks for it' : null);
        await server.close();
      });
    });

    test('serves two buses at a time, each with its own memory', async () => {
      await withRig(async (rig) => {
        const lane = await rig.lane(kind, { one: 'driver', two: 'driver', dev: 'device' });
        const { server, number } = await rig.serveDisk('dev');
        const second = join(rig.directory, 'second.img');
        writeFileSync(second, randomBytes(imageBytes));
        const other = server.addDevice(await rig.openDisk(second));
        await rig.sees((e) => e.type === 'served-devices' && e.devices.includes(other), 'the second device');
        for (const [bus, deviceNumber] of [
          ['one', number],
          ['two', other],
        ] as const) {
          const backend = guestBackend(path, 'dev', deviceNumber);
          await lane.call('attach', { bus, attachment: bus, backend });
        }
        await Promise.all([useDisk(rig.socket('one'), rig.image), useDisk(rig.socket('two'), second)]);
        await server.close();
      });
    });

    test('leaves its driver when the serving guest goes, and comes back with it', async () => {
      await withRig(async (rig) => {
        const lane = await rig.lane(kind, { drv: 'driver', dev: 'device' });
        const first = await rig.serveDisk('dev');
        const backend = guestBackend(path, 'dev', first.number);
        await lane.call('attach', { bus: 'drv', attachment: 'a', backend });
        const bus = await connect({ path: rig.socket('drv') });
        await bus.devices();
        const blk = await BlkDriver.open(bus, 0);
        const removed = new Promise<number>((resolve) => bus.on('removed', ({ device }) => resolve(device)));
        await first.server.close();
        assert.equal(await removed, 0);
        await assert.rejects(blk.read(0, 512), isCode('not-found'));
        await rig.sees((event) => event.type === 'attachment-lost' && event.attachment === 'a', 'the loss');
        await assert.rejects(lane.call('attach', { bus: 'drv', attachment: 'a', backend }), isCode('unavailable'));

        rig.events.length = 0;
        const second = await rig.serveDisk('dev');
        const added = new Promise<number>((resolve) => bus.on('added', ({ device }) => resolve(device)));
        const again = await lane.call('attach', { bus: 'drv', attachment: 'a', backend });
        assert.equal(again.deviceNumber, 1, 'a number is not used twice in an epoch');
        assert.equal(await added, 1);
        const back = await BlkDriver.open(bus, 1);
        assert.equal((await back.read(0, 512)).length, 512);
        bus.close();
        await second.server.close();
      });
    });

    test('is taken by one attachment only; unknown ones and wrong roles are refused', async () => {
      await withRig(async (rig) => {
        const lane = await rig.lane(kind, { drv: 'driver', dev: 'device' });
        const backend = guestBackend(path, 'dev', 0);
        const attach = (attachment: string, spec: object = backend) =>
          lane.call('attach', { bus: 'drv', attachment, backend: spec as typeof backend });
        await assert.rejects(attach('a'), isCode('unavailable', /no guest/));
        const { server } = await rig.serveDisk('dev');
        await attach('a');
        await assert.rejects(attach('b'), isCode('backend-busy'));
        await assert.rejects(attach('c', { ...backend, deviceNumber: 9 }), isCode('unavailable', /no device 9/));
        await assert.rejects(attach('d', { ...backend, bus: 'drv' }), isCode('invalid-request'));
        await assert.rejects(connect({ path: rig.socket('dev') }), (error) => error instanceof VmsgError);
        await assert.rejects(serveDevices({ path: rig.socket('drv') }), (error) => error instanceof VmsgError);
        await server.close();
      });
    });

    test('passes through two bridges', async () => {
      await withRig(async (rig) => {
        const lower = await rig.lane(kind, { drv: 'driver', dev: 'device' });
        const { server, number } = await rig.serveDisk('dev');
        const served = guestBackend(path, 'dev', number);
        const { deviceNumber } = await lower.call('attach', { bus: 'drv', attachment: 'a', backend: served });
        const upper = await rig.lane(kind, { top: 'driver', side: 'driver' });
        const backend = { type: 'bridge', socket: rig.socket('drv'), deviceNumber } as const;
        await upper.call('attach', { bus: 'top', attachment: 'a', backend });
        await useDisk(rig.socket('top'), rig.image);
        await useDisk(rig.socket('top'), rig.image);
        const second = upper.call('attach', { bus: 'side', attachment: 'b', backend });
        await assert.rejects(second, isCode('backend-busy'));
        await server.close();
      });
    });
  });
}
