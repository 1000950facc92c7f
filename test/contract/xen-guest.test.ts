import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlkDriver, deviceInfo, type GuestBus, RngDriver, VirtioDevice } from '../../src/guest/index.ts';
import { isCode, until } from '../support/guest-fixture.ts';
import { withXen, type XenWorld } from '../support/xen-world.ts';

const kib = 1024;
const pattern = (bytes: number, seed = 13): Uint8Array =>
  Uint8Array.from({ length: bytes }, (_, i) => (i * seed + (i >> 10)) & 0xff);

function events(bus: GuestBus): string[] {
  const seen: string[] = [];
  bus.on('reconnecting', () => seen.push('reconnecting'));
  bus.on('reconnected', ({ resumed }) => seen.push(resumed ? 'resumed' : 'reset'));
  bus.on('lost', (error) => seen.push(`lost: ${error.message}`));
  return seen;
}

const grants = (world: XenWorld) => world.service.runtime.snapshot().grants;

for (const memory of ['pool', 'grants'] as const) {
  test(`a guest finds and uses its devices: ${memory}`, () =>
    withXen(async (world) => {
      const bus = await world.connect({ memory });
      assert.equal(bus.terms.domid, world.domid);
      assert((await bus.ping()) >= 0);
      assert.deepEqual(await bus.devices(), [1, 2]);
      assert.equal((await deviceInfo(bus, 1)).name, 'blk');
      const blk = await BlkDriver.open(bus, 1);
      const data = pattern(300 * kib);
      await blk.write(5, data);
      await blk.flush();
      assert.deepEqual(world.disk.bytes.subarray(2560, 2560 + data.length), data);
      assert.deepEqual(await blk.read(5, data.length), data);
      const zeroCopy = blk.device.alloc(64 * kib, 4096);
      await blk.read(5, zeroCopy);
      assert.deepEqual(new Uint8Array(zeroCopy.bytes), data.subarray(0, 64 * kib));
      const rng = await RngDriver.open(bus, 2);
      assert.deepEqual(await rng.read(100 * kib), new Uint8Array(100 * kib).fill(0xa5));
      await rng.close();
      await blk.close();
    }));

  test(`a queue has an event channel of its own: ${memory}`, () =>
    withXen(async (world) => {
      const bus = await world.connect({ memory });
      const blk = await BlkDriver.open(bus, 1, { notify: 'own' });
      const before = bus.statistics;
      await blk.write(0, pattern(64 * kib));
      assert.equal(bus.statistics.messagesOut, before.messagesOut, 'no EVENT_AVAIL');
      assert.equal(bus.statistics.messagesIn, before.messagesIn, 'no EVENT_USED');
      assert.deepEqual(world.disk.bytes.subarray(0, 64 * kib), pattern(64 * kib));
      await blk.close();
    }));

  for (const notify of ['messages', 'own'] as const) {
    test(`a killed service comes back, and what waits completes: ${memory}, ${notify}`, () =>
      withXen(async (world) => {
        const bus = await world.connect({ memory, reconnect: true });
        const seen = events(bus);
        const blk = await BlkDriver.open(bus, 1, { transferBytes: 4 * kib, notify });
        await blk.write(0, pattern(32 * kib, 3));
        const nodes = ['ring-to-service-refs', 'ring-to-guest-refs', 'event-channel'];
        const shared = nodes.map((name) => world.node(name));
        for (let round = 0; round < 3; round++) {
          world.disk.waiting = [];
          const data = pattern(64 * kib, 5 + round);
          let completions = 0;
          const writing = blk.write(64, data).then(() => {
            completions += 1;
          });
          await until(() => (world.disk.waiting?.length ?? 0) > 0, 'the disk works');
          // One write ends before the service dies, the others do not.
          world.disk.waiting.shift()?.();
          const { epoch } = bus.terms;
          world.kill();
          await until(() => bus.state === 'reconnecting', 'the guest notices');
          const later = blk.write(256, pattern(4 * kib, 7));
          await world.start();
          await Promise.all([writing, later]);
          assert.equal(completions, 1);
          assert.equal(bus.terms.epoch, epoch + 1n);
          assert.deepEqual(world.disk.bytes.subarray(64 * 512, 64 * 512 + data.length), data);
          assert.deepEqual(world.disk.bytes.subarray(256 * 512, 256 * 512 + 4 * kib), pattern(4 * kib, 7));
        }
        assert.deepEqual(await blk.read(0, 32 * kib), pattern(32 * kib, 3));
        assert.deepEqual(seen, Array.from({ length: 3 }, () => ['reconnecting', 'resumed']).flat());
        const after = nodes.map((name) => world.node(name));
        assert.deepEqual(after, shared, 'the same pages and ports');
        await blk.close();
      }));
  }
}

test('with grants, queues fit into a page, and a larger pool is not shared', () =>
  withXen(async (world) => {
    const bus = await world.connect({ memory: 'grants' });
    assert.deepEqual(bus.memory.regions, []);
    for (const packed of [false, true]) {
      const device = await VirtioDevice.open(bus, 2, { packed });
      const queue = await device.addQueue(0, { size: 1024 });
      assert(queue.size <= 256);
      await device.close();
    }
    const buffer = bus.memory.alloc(3 * 4096 + 1, 4096);
    assert.equal(buffer.busAddress >> 63n, 1n);
    assert.equal(buffer.range(4096 + 7, 1).lo, buffer.lo + 4096 + 7);
    buffer.free();
  }));

test('grants stay mapped where both sides agreed to it, and not where not', () =>
  withXen(async (world) => {
    for (const persistent of [true, false]) {
      const bus = await world.connect({ memory: 'grants', persistent });
      assert.equal(world.node('feature-persistent'), persistent ? '1' : undefined);
      const blk = await BlkDriver.open(bus, 1, { depth: 1 });
      for (let i = 0; i < 8; i++) await blk.write(0, pattern(64 * kib));
      const snapshot = grants(world);
      assert.equal(snapshot?.persistent, persistent);
      assert.equal((snapshot?.hits ?? 0) > 0, persistent);
      await blk.close();
      if (!persistent) assert.equal(grants(world)?.mappedPages, 0);
      bus.close();
      await until(() => world.node('state') === '6', 'the guest has left');
    }
  }));

test('memory made of grants is given back, once the service has let go of it', () =>
  withXen(async (world) => {
    const bus = await world.connect({ memory: 'grants' });
    const before = world.xen.census(world.domid).shares;
    const drivers: BlkDriver[] = [];
    const blk = await BlkDriver.open(bus, 1, { depth: 16 });
    drivers.push(blk);
    const large = Array.from({ length: 8 }, () => blk.device.alloc(256 * kib, 4096));
    for (const buffer of large) await blk.write(0, buffer);
    assert(world.xen.census(world.domid).shares > before + 8);
    assert((grants(world)?.mappedPages ?? 0) >= 8 * 64);
    for (const buffer of large) blk.device.release(buffer);
    await blk.close();
    await until(() => world.xen.census(world.domid).shares === before + 1, 'one chunk is kept');
    assert((grants(world)?.mappedPages ?? 0) <= 64);
  }));

test('references that are not consecutive serve as far as they go', () =>
  withXen(
    async (world) => {
      const pool = await world.connect({ memory: 'pool' });
      const disk = await BlkDriver.open(pool, 1);
      await disk.write(0, pattern(256 * kib));
      await disk.close();
      pool.close();
      const bus = await world.connect({ memory: 'grants' });
      assert.throws(() => bus.memory.alloc(64 * kib), isCode('limit-reached', /16 consecutive grant references/));
      const blk = await BlkDriver.open(bus, 1);
      assert.deepEqual(await blk.read(0, 256 * kib), pattern(256 * kib));
      let at = 0;
      for await (const part of blk.stream({ length: 256 * kib })) {
        assert.equal(part.length, 4 * kib);
        assert.deepEqual(new Uint8Array(part.bytes), pattern(256 * kib).subarray(at, at + 4 * kib));
        at += part.length;
      }
      await blk.close();
      const rng = await RngDriver.open(bus, 2);
      assert.deepEqual(await rng.read(50_000), new Uint8Array(50_000).fill(0xa5));
      await rng.close();
    },
    { scatteredReferences: true },
  ));

test('a pool that is short makes transfers smaller', () =>
  withXen(async (world) => {
    const bus = await world.connect({ memoryBytes: 512 * kib });
    const blk = await BlkDriver.open(bus, 1);
    await blk.write(0, pattern(300 * kib));
    const parts: number[] = [];
    for await (const part of blk.stream({ length: 256 * kib })) parts.push(part.length);
    assert.equal(
      parts.reduce((sum, length) => sum + length),
      256 * kib,
    );
    assert(parts.length > 1);
    assert.deepEqual(await blk.read(0, 300 * kib), pattern(300 * kib));
    await blk.close();
  }));

test('regions come and go, within the bound of the bus', () =>
  withXen(
    async (world) => {
      const bus = await world.connect({ memoryBytes: 1024 * kib });
      const area = await bus.memory.addRegion(512 * kib);
      assert.equal(world.service.runtime.snapshot().regions, 2);
      await bus.memory.removeRegion(area);
      assert.equal(world.service.runtime.snapshot().regions, 1);
      await assert.rejects(bus.memory.addRegion(2048 * kib), isCode('memory-refused', /ENOSPC/));
      await assert.rejects(bus.memory.addRegion(8192 * kib), isCode('limit-reached', /2621440 bytes of regions/));
    },
    { poolMaxBytes: 2560 * kib },
  ));
