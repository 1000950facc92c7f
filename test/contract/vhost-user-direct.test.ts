import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { VirtioDevice } from '../../src/guest/index.ts';
import { errno } from '../../src/kit/errno.ts';
import { blkRequestType } from '../../src/virtio/blk.ts';
import { blkHead } from '../support/bridge-disk.ts';
import {
  blockBytes,
  blocks,
  count,
  isDirect,
  leaveRequests,
  openDisk,
  use,
  wholeTables,
} from '../support/direct-disk.ts';
import { deviceNumber, withDirect } from '../support/direct-rig.ts';
import { isCode, until } from '../support/guest-fixture.ts';

describe('a vhost-user back-end on the memory of the guest', () => {
  test('gets data and gives it, and its device says how', () =>
    withDirect(async (rig) => {
      const blk = await openDisk(await rig.guest());
      await use(blk, 1);
      await isDirect(rig);
      const device = await rig.device();
      assert.deepEqual([device?.recovery, device?.requests, device?.bytes], ['reset', null, null]);
      assert.deepEqual(device?.queues, [{ index: 0, size: 128, inFlight: 0 }]);
      assert.equal(rig.disk.givenLogBytes, 0);
      await blk.close();
      rig.disk.lazy = true;
      const lazy = await openDisk(rig.guestBus);
      const left = leaveRequests(lazy, 3);
      const inFlight = async () => (await rig.device())?.queues[0]?.inFlight;
      while ((await inFlight()) !== 3) await new Promise((resolve) => setTimeout(resolve, 5));
      await lazy.close();
      assert.ok((await left).every(({ status }) => status === 'rejected'));
      assert.equal(rig.peer.accepted, 1);
    }));

  test('and the guest wake each other without the bus', () =>
    withDirect(async (rig) => {
      const blk = await openDisk(await rig.guest());
      await use(blk, 1);
      const before = (await rig.bus()).counters;
      for (let seed = 2; seed < 6; seed++) await use(blk, seed);
      assert.deepEqual((await rig.bus()).counters, before);
      await blk.close();
    }));

  for (const notify of ['messages', 'own'] as const) {
    test(`serves a driver with notifications of the kind "${notify}"`, () =>
      withDirect(async (rig) => {
        const bus = await rig.guest();
        for (let seed = 1; seed < 4; seed++) {
          const blk = await openDisk(bus, { notify });
          await use(blk, seed);
          await blk.close();
        }
        await isDirect(rig);
        assert.deepEqual(rig.losses, []);
        if (notify === 'messages') assert.ok((await rig.bus()).counters.messagesIn > blocks);
      }));
  }

  test('stays through resets of its device', () =>
    withDirect(async (rig) => {
      const bus = await rig.guest();
      for (let seed = 1; seed < 8; seed++) {
        const blk = await openDisk(bus, seed % 2 === 0 ? { size: 16 } : {});
        await use(blk, seed);
        await blk.close();
      }
      assert.equal(rig.peer.accepted, 1);
      assert.equal(count(rig, 'ADD_MEM_REG'), 1);
    }));

  for (const [tables, prepare, telling] of [
    ['slots', undefined, 'REM_MEM_REG'],
    ['whole tables', wholeTables, 'SET_MEM_TABLE'],
  ] as const) {
    test(`gets memory that comes later, and has none that the guest took back: ${tables}`, () =>
      withDirect(async (rig) => {
        const bus = await rig.guest({ memoryBytes: 64 * 1024 });
        const device = await VirtioDevice.open(bus, deviceNumber);
        const queue = await device.addQueue(0, { size: 16 });
        await device.start();
        for (let round = 1; round <= 3; round++) {
          const area = await bus.memory.addRegion(blockBytes * 32);
          const inArea = Array.from({ length: 64 }, () => device.alloc(1024)).filter((b) => b.hi >>> 16 === area);
          const [head, data, status] = inArea as [(typeof inArea)[0], (typeof inArea)[0], (typeof inArea)[0]];
          head.bytes.set(blkHead(blkRequestType.OUT, BigInt(round)));
          data.bytes.fill(round);
          const submit = (out: boolean) =>
            out
              ? queue.submit([head.range(0, 16), data.range(0, 512)], [status.range(0, 1)])
              : queue.submit([head.range(0, 16)], [data.range(0, 512), status.range(0, 1)]);
          assert.equal(await submit(true), 1);
          head.bytes.set(blkHead(blkRequestType.IN, BigInt(round)));
          data.bytes.fill(0);
          assert.equal(await submit(false), 513);
          assert.ok(data.bytes.subarray(0, 512).every((byte) => byte === round));
          for (const buffer of inArea) device.release(buffer);
          const told = count(rig, telling);
          await bus.memory.removeRegion(area);
          assert.equal(count(rig, telling), told + 1, 'it was told before the guest');
          await isDirect(rig);
        }
        await device.close();
      }, prepare));
  }

  test('tells of changes of its configuration, and takes those of the driver', () =>
    withDirect(async (rig) => {
      const blk = await openDisk(await rig.guest());
      const resized = new Promise<number>((resolve) =>
        blk.on('resized', ({ capacityBytes }) => resolve(capacityBytes)),
      );
      new DataView(rig.disk.config().buffer).setBigUint64(0, 128n, true);
      rig.peer.configChanged();
      assert.equal(await resized, 128 * 512);
      await blk.device.config.write(32, Uint8Array.of(1));
      assert.equal(rig.disk.config()[32], 1);
      assert.equal((await blk.device.config.read(32, 1))[0], 1);
      await blk.device.config.write(0, Uint8Array.of(9)).catch(() => {});
      assert.equal((await blk.device.config.read(0, 1))[0], 128);
      assert.equal(rig.disk.config()[0], 128);
      await blk.close();
    }));

  test('loses its connection before another guest is served', () =>
    withDirect(async (rig) => {
      for (let round = 0; round < 4; round++) {
        rig.disk.lazy = round % 2 === 1;
        const blk = await openDisk(await rig.guest());
        const left = leaveRequests(blk);
        if (!rig.disk.lazy) await left;
        rig.disk.lazy = false;
        rig.guestBus.close();
        await left;
        // At once: what the one before had may still be taken back.
        const next = await openDisk(await rig.guest());
        assert.equal(rig.disk.ends.length, 2 * round + 1, 'the connection of the one before has ended');
        assert.equal(rig.peer.accepted, 2 * round + 2);
        await use(next, round);
        rig.guestBus.close();
        await (await rig.guest()).devices();
        await until(() => rig.disk.ends.length === 2 * round + 2, 'and so does that of this one');
        rig.guestBus.close();
      }
      assert.deepEqual(rig.losses, []);
    }));

  test('that is busy with the memory of one guest gets none of the next', () =>
    withDirect(async (rig) => {
      await use(await openDisk(await rig.guest()), 1);
      let stop = (): void => {};
      rig.disk.mayStop = new Promise((resolve) => {
        stop = resolve;
      });
      const before = rig.habits.log.length;
      rig.guestBus.close();
      const bus = await rig.guest();
      await bus.memory.addRegion(blockBytes);
      await until(() => rig.habits.log.length > before, 'its queue is to stop');
      stop();
      await use(await openDisk(bus), 2);
      const told = rig.habits.log.slice(before);
      assert.deepEqual(told.slice(0, told.indexOf('GET_FEATURES')), ['GET_VRING_BASE', 'RESET_DEVICE']);
      await isDirect(rig);
      assert.deepEqual([rig.losses, rig.peer.accepted], [[], 2]);
    }));

  test('has no memory any more that the guest took from under its queues', () =>
    withDirect(async (rig) => {
      const bus = await rig.guest({ memoryBytes: 256 * 1024 });
      const blk = await openDisk(bus);
      await use(blk, 1);
      const [region] = bus.memory.regions;
      const failed = new Promise((resolve) => blk.on('failed', resolve));
      const removed = await bus.busRequest('REGION_DEL', { peer: 0, area: region!.area, reserved: 0 });
      assert.equal(removed.errno, errno.EBUSY);
      await failed;
      assert.match((await rig.device())?.reason ?? '', /removed area 1 while the device used it/);
      await until(() => count(rig, 'REM_MEM_REG') === 1, 'it has lost the memory');
      await blk.close();
      await bus.memory.addRegion(256 * 1024);
      const again = await VirtioDevice.open(bus, deviceNumber);
      await again.start();
      await until(() => count(rig, 'ADD_MEM_REG') === 2, 'it has the other region only');
      await again.close();
      await isDirect(rig);
    }));

  test('that resets slowly does not disturb the next guest', () =>
    withDirect(async (rig) => {
      const blk = await openDisk(await rig.guest());
      await use(blk, 1);
      let reset = (): void => {};
      rig.habits.delay.set(
        'RESET_DEVICE',
        new Promise((resolve) => {
          reset = resolve;
        }),
      );
      await blk.close();
      rig.guestBus.close();
      const device = await VirtioDevice.open(await rig.guest(), deviceNumber);
      await device.close();
      rig.habits.delay.clear();
      reset();
      await use(await openDisk(rig.guestBus), 2);
      await isDirect(rig);
    }));

  test('does not get the memory of a guest that shares none, and has no queue', () =>
    withDirect(async (rig) => {
      const device = await VirtioDevice.open(await rig.guest(), deviceNumber);
      const area = rig.guestBus.memory.regions[0]!.area;
      await rig.guestBus.memory.removeRegion(area);
      await device.start();
      await device.close();
      assert.equal(count(rig, 'SET_MEM_TABLE'), 0);
      await isDirect(rig);
    }, wholeTables));
});

describe('a vhost-user back-end that does not take the memory of the guest', () => {
  for (const [request, prepare] of [
    ['ADD_MEM_REG', undefined],
    ['SET_MEM_TABLE', wholeTables],
  ] as const) {
    test(`gets copies, when it refuses ${request}`, () =>
      withDirect(async (rig) => {
        rig.habits.refuse.add(request);
        const bus = await rig.guest();
        const lost = assert.rejects(openDisk(bus).then((blk) => blk.read(0, blockBytes)));
        assert.match(await rig.lost(), /does not take the guest's memory/);
        await lost;
        rig.habits.refuse.clear();
        await rig.attach();
        const blk = await openDisk(bus);
        await use(blk, 3);
        const device = await rig.device();
        assert.equal(device?.dataPath, 'shadow');
        assert.match(device?.dataPathReason ?? '', /does not take the guest's memory: /);
        await blk.close();
        // It is another attachment then.
        await rig.detach();
        await rig.attach();
        await use(await openDisk(bus), 4);
        await isDirect(rig);
      }, prepare));
  }

  test('gets copies, when the guest has more regions than it takes', () =>
    withDirect(async (rig) => {
      const bus = await rig.guest({ memoryBytes: 256 * 1024 });
      const blk = await openDisk(bus);
      for (let i = 2; i <= 8; i++) await bus.memory.addRegion(blockBytes);
      await use(blk, 1);
      await isDirect(rig);
      const ninth = bus.memory.addRegion(blockBytes);
      assert.match(await rig.lost(), /9 memory regions, the back-end takes 8/);
      await ninth;
      await rig.attach();
      await use(await openDisk(bus), 2);
      assert.match((await rig.device())?.dataPathReason ?? '', /9 memory regions/);
    }, wholeTables));

  test('is an error where copies are not wanted', () =>
    withDirect(
      async (rig) => {
        rig.habits.refuse.add('ADD_MEM_REG');
        openDisk(await rig.guest()).catch(() => {});
        await rig.lost();
        await assert.rejects(rig.attach(), isCode('backend-unusable', /does not take the guest's memory/));
      },
      (rig) => {
        rig.dataPath = 'direct';
      },
    ));

  test('because it ended meanwhile gets it when it is back', () =>
    withDirect(async (rig) => {
      rig.habits.ignore.add('ADD_MEM_REG');
      const bus = await rig.guest();
      const lost = assert.rejects(openDisk(bus).then((blk) => blk.read(0, blockBytes)));
      await until(() => count(rig, 'ADD_MEM_REG') === 1, 'it is asked');
      rig.peer.hangUp();
      await rig.lost();
      await lost;
      rig.habits.ignore.clear();
      await rig.attach();
      await use(await openDisk(bus), 2);
      await isDirect(rig);
    }));
});
