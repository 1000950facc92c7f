import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { openBlk } from '../../src/bridge/backend/blk.ts';
import type { Lane, LaneEvent } from '../../src/bridge/lane/protocol.ts';
import { BlkDriver, connect, deviceInfo, serveDevices, VirtioDevice } from '../../src/guest/index.ts';
import { systemClock } from '../../src/kit/clock.ts';
import { VmsgError } from '../../src/kit/errors.ts';
import { census } from '../../src/libc/census.ts';
import { type LaneKind, makeLane } from '../support/bridge-lane.ts';
import { isCode, until } from '../support/guest-fixture.ts';
import { settledCensus } from '../support/settled-census.ts';

const imageBytes = 4 * 1024 * 1024 + 512;
const noHost = { failed: () => {}, configChanged: () => {} };

/** Lanes with buses of both roles in a directory; everything is counted before and after. */
class Rig {
  readonly directory = mkdtempSync(join(tmpdir(), 'vmsg-test-'));
  readonly image = join(this.directory, 'disk.img');
  readonly events: LaneEvent[] = [];
  readonly #lanes: Lane[] = [];

  constructor() {
    writeFileSync(this.image, randomBytes(imageBytes));
  }

  socket(bus: string): string {
    return join(this.directory, `${bus}.sock`);
  }

  async lane(kind: LaneKind, buses: Readonly<Record<string, 'driver' | 'device'>>): Promise<Lane> {
    const lane = makeLane(kind);
    lane.onEvent((event) => this.events.push(event));
    this.#lanes.push(lane);
    for (const [bus, role] of Object.entries(buses)) {
      await lane.call('openBus', {
        bus,
        role,
        transport: 'loopback',
        domid: 1,
        socketPath: this.socket(bus),
        socketMode: 0o600,
        admittedUids: [process.getuid?.() ?? 0],
        maxMessageSizeBytes: 64,
        ringMaxBytes: 65536,
        recoveryDir: join(this.directory, `recovery-${bus}`),
      });
      await lane.call('listenBus', { bus });
    }
    return lane;
  }

  async serveDisk(bus: string) {
    const server = await serveDevices({ path: this.socket(bus), reconnect: { totalMs: 10_000 } });
    const spec = { path: this.image, readOnly: false, serial: 'served' };
    const number = server.addDevice(await openBlk(spec, noHost, systemClock));
    await this.sees(
      (event) => event.type === 'served-devices' && event.bus === bus && event.devices.includes(number),
      'the device',
    );
    return { server, number };
  }

  sees(condition: (event: LaneEvent) => boolean, what: string): Promise<void> {
    return until(() => this.events.some(condition), what);
  }

  async end(): Promise<void> {
    for (const lane of this.#lanes.reverse()) {
      await lane.call('shutdown', {});
      lane.close();
    }
    rmSync(this.directory, { recursive: true });
  }
}

async function withRig(run: (rig: Rig) => Promise<void>): Promise<void> {
  const rig = new Rig();
  try {
    await run(rig);
  } finally {
    await rig.end();
  }
}

/** Reads, writes and flushes as a guest of a bus. */
async function useDisk(path: string, image: string, notify: 'messages' | 'descriptors' = 'messages'): Promise<void> {
  const bus = await connect({ path });
  const [number = 0] = await bus.devices();
  const blk = await BlkDriver.open(bus, number, { notify });
  assert.equal(await blk.getId(), 'served');
  assert.equal(blk.capacityBytes, imageBytes);
  assert.deepEqual(Buffer.from(await blk.read(0, imageBytes)), readFileSync(image));
  const data = randomBytes(256 * 1024);
  await blk.write(8, data);
  await blk.flush();
  assert.deepEqual(readFileSync(image).subarray(4096, 4096 + data.length), data);
  await blk.close();
  bus.close();
}

// First: the lanes of other tests end a little later than their tests.
test('regions that come and go reach the serving guest, and nothing is left in the end', async () => {
  // The first use opens what stays.
  await withRig(async (rig) => {
    await rig.lane('inline', { dev: 'device' });
  });
  const before = await settledCensus();
  await withRig(async (rig) => {
    const lane = await rig.lane('inline', { drv: 'driver', dev: 'device' });
    const { server, number } = await rig.serveDisk('dev');
    await lane.call('attach', {
      bus: 'drv',
      attachment: 'a',
      backend: { type: 'guest', bus: 'dev', deviceNumber: number },
    });
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
  await until(() => JSON.stringify(census()) === before, `nothing is left: ${before} ${JSON.stringify(census())}`);
});

for (const kind of ['inline', 'worker'] as const) {
  describe(`a device that another guest serves, ${kind} lane`, () => {
    test('is used by one driver after the other, memory included', async () => {
      await withRig(async (rig) => {
        const lane = await rig.lane(kind, { drv: 'driver', dev: 'device' });
        const { server, number } = await rig.serveDisk('dev');
        const backend = { type: 'guest', bus: 'dev', deviceNumber: number } as const;
        const attached = await lane.call('attach', { bus: 'drv', attachment: 'a', backend });
        assert.equal(attached.deviceType, 2);
        await useDisk(rig.socket('drv'), rig.image);
        await useDisk(rig.socket('drv'), rig.image, 'descriptors');
        await useDisk(rig.socket('drv'), rig.image);
        const [snapshot] = (await lane.call('inspect', {})).buses.filter(({ bus }) => bus === 'drv');
        assert.equal(snapshot?.devices[0]?.dataPath, 'relayed');
        assert.equal(snapshot?.devices[0]?.recovery, 'reset');
        await server.close();
      });
    });

    test('serves two buses at a time, each with its own memory', async () => {
      await withRig(async (rig) => {
        const lane = await rig.lane(kind, { one: 'driver', two: 'driver', dev: 'device' });
        const { server, number } = await rig.serveDisk('dev');
        const second = join(rig.directory, 'second.img');
        writeFileSync(second, randomBytes(imageBytes));
        const spec = { path: second, readOnly: false, serial: 'served' };
        const other = server.addDevice(await openBlk(spec, noHost, systemClock));
        await rig.sees((e) => e.type === 'served-devices' && e.devices.includes(other), 'the second device');
        for (const [bus, deviceNumber] of [
          ['one', number],
          ['two', other],
        ] as const) {
          const backend = { type: 'guest', bus: 'dev', deviceNumber } as const;
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
        const backend = { type: 'guest', bus: 'dev', deviceNumber: first.number } as const;
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
        const backend = { type: 'guest', bus: 'dev', deviceNumber: 0 } as const;
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
        const served = { type: 'guest', bus: 'dev', deviceNumber: number } as const;
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
