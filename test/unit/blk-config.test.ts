import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { BlkBackend } from '../../src/bridge/backend/blk.ts';
import { LateBackendHost } from '../../src/bridge/backend/factory.ts';
import { limits } from '../../src/kit/limits.ts';
import type { BackendHost } from '../../src/ports/backend.ts';
import { blkConfig, blkRequestType, blkStatus } from '../../src/virtio/blk.ts';
import { blkFeature } from '../../src/virtio/features.ts';
import { readU64 } from '../../src/wire/bytes.ts';
import { type Decoded, decode } from '../../src/wire/layout.ts';
import { Bench, buffer, driverOk } from '../support/bridge-bench.ts';
import { blk, blkHead, MemoryDisk } from '../support/bridge-disk.ts';
import { FakeClock, FakeStore } from '../support/bridge-fakes.ts';
import { TestRequest } from '../support/bridge-request.ts';

const { IN, OUT, FLUSH } = blkRequestType;
const { OK, IOERR } = blkStatus;
const { writeback, capacity } = blkConfig.at;

type Change = readonly [offset: number, ...data: number[]];

interface Rig {
  readonly disk: MemoryDisk;
  readonly device: BlkBackend;
  readonly clock: FakeClock;
  readonly changes: Change[];
}

function rig(sizeBytes = 8192, options: { readOnly?: boolean; queues?: number } = {}): Rig {
  const disk = new MemoryDisk(sizeBytes, options.readOnly ?? false);
  const clock = new FakeClock();
  const changes: Change[] = [];
  const host = {
    configChanged: (offset: number, data: Uint8Array) => void changes.push([offset, ...data]),
    failed: (reason: string) => assert.fail(reason),
  };
  const device = new BlkBackend(disk, '', { host, clock, queues: options.queues ?? 1 });
  return { disk, device, clock, changes };
}

const configOf = (device: BlkBackend) =>
  decode(blkConfig, device.description.config, 0, blkConfig.size) as Decoded<typeof blkConfig>;
const having =
  (...bits: readonly number[]) =>
  (bit: number): boolean =>
    bits.includes(bit);
const write = (device: BlkBackend, sector: number) =>
  blk(device, [blkHead(OUT, BigInt(sector)), new Uint8Array(512)], [1]);
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe('blk: what the configuration space says', () => {
  test('a writable disk: limits, topology, cache', () => {
    const { device } = rig(1024 * 1024);
    assert.deepEqual(configOf(device), {
      capacity: 2048n,
      sizeMax: limits.blkSegmentMaxBytes,
      segMax: 254,
      cylinders: 0,
      heads: 0,
      sectors: 0,
      blkSize: 512,
      physicalBlockExp: 3,
      alignmentOffset: 0,
      minIoSize: 8,
      optIoSize: 0,
      writeback: 1,
      unused0: 0,
      numQueues: 0,
      maxDiscardSectors: limits.blkDiscardRangeMaxBytes / 512,
      maxDiscardSeg: limits.blkRangesPerRequest,
      discardSectorAlignment: 8,
      maxWriteZeroesSectors: limits.blkZeroRangeMaxBytes / 512,
      maxWriteZeroesSeg: limits.blkRangesPerRequest,
      writeZeroesMayUnmap: 1,
    });
    const { SIZE_MAX, SEG_MAX, BLK_SIZE, FLUSH: flush, TOPOLOGY, CONFIG_WCE, DISCARD, WRITE_ZEROES } = blkFeature;
    assert.deepEqual(
      [...device.description.featureBits].sort((a, b) => a - b),
      [SIZE_MAX, SEG_MAX, BLK_SIZE, flush, TOPOLOGY, CONFIG_WCE, DISCARD, WRITE_ZEROES],
    );
  });

  test('a read-only disk has no field of what it does not offer', () => {
    const { device } = rig(8192, { readOnly: true });
    const { maxDiscardSectors, maxWriteZeroesSectors, maxWriteZeroesSeg, writeback: cache } = configOf(device);
    assert.deepEqual([maxDiscardSectors, maxWriteZeroesSectors, maxWriteZeroesSeg, cache], [0, 0, 0, 0]);
    for (const bit of [blkFeature.DISCARD, blkFeature.WRITE_ZEROES, blkFeature.CONFIG_WCE]) {
      assert.ok(!device.description.featureBits.includes(bit));
    }
    assert.equal(device.description.driverConfig, undefined);
  });

  test('a large allocation unit is advice, not a physical block', () => {
    const disk = Object.assign(new MemoryDisk(8192), { blockBytes: 65536 });
    const config = configOf(new BlkBackend(disk, ''));
    assert.deepEqual([config.physicalBlockExp, config.minIoSize, config.optIoSize], [3, 8, 128]);
    assert.equal(config.discardSectorAlignment, 128);
    const small = configOf(new BlkBackend(Object.assign(new MemoryDisk(512), { blockBytes: 512 }), ''));
    assert.deepEqual([small.physicalBlockExp, small.minIoSize, small.optIoSize], [0, 1, 0]);
  });

  test('several queues are offered with MQ', () => {
    const { device } = rig(8192, { queues: 4 });
    assert.deepEqual(device.description.queueSizes, [256, 256, 256, 256]);
    assert.equal(configOf(device).numQueues, 4);
    assert.ok(device.description.featureBits.includes(blkFeature.MQ));
    assert.ok(!rig().device.description.featureBits.includes(blkFeature.MQ));
  });
});

describe('blk: queues', () => {
  test('all queues of a device share its place at the disk, first come first served', async () => {
    const { disk, device } = rig(65536, { queues: 16 });
    device.activate(having(blkFeature.FLUSH, blkFeature.MQ));
    disk.waiting = [];
    const requests = Array.from({ length: 128 }, (_, i) => new TestRequest([blkHead(IN, BigInt(i))], [512, 1]));
    for (const request of requests) device.handle(request);
    let most = 0;
    for (let end = disk.waiting.shift(); end !== undefined; end = disk.waiting.shift()) {
      most = Math.max(most, disk.waiting.length + 1);
      end();
    }
    assert.equal(most, limits.blkInFlightRequests);
    assert.ok(requests.every((request) => request.completions === 1));
    const begun = disk.log.filter((line) => !line.endsWith('done'));
    assert.deepEqual(
      begun,
      requests.map((_, i) => `read ${i * 512} 512`),
    );
  });

  test('a waiting request that needs no I/O does not keep those behind it', async () => {
    const { disk, device } = rig(65536);
    device.activate(having(blkFeature.FLUSH));
    disk.waiting = [];
    const reads = Array.from({ length: 8 }, () => new TestRequest([blkHead(IN, 0n)], [512, 1]));
    const bad = Array.from({ length: 50 }, () => new TestRequest([blkHead(IN, 1n << 40n)], [512, 1]));
    const last = new TestRequest([blkHead(IN, 1n)], [512, 1]);
    for (const request of [...reads, ...bad, last]) device.handle(request);
    assert.ok(bad.every((request) => request.completions === 0));
    disk.waiting.shift()!();
    assert.ok(bad.every((request) => request.completions === 1));
    assert.equal(disk.log.at(-1), 'read 512 512');
    for (const end of disk.waiting.splice(0)) end();
    await last.done;
  });

  test('a queue that stops gives back what has not begun, and others go on', async () => {
    const { disk, device } = rig(65536, { queues: 2 });
    device.activate(having(blkFeature.FLUSH, blkFeature.MQ));
    disk.waiting = [];
    const make = (queue: number) => (_: unknown, i: number) =>
      new TestRequest([blkHead(IN, BigInt(i))], [512, 1], queue);
    const first = Array.from({ length: 8 }, make(0));
    const stopped = Array.from({ length: 5 }, make(0));
    const others = Array.from({ length: 5 }, make(1));
    for (const request of [...first, ...stopped, ...others]) device.handle(request);
    device.cancel(0);
    assert.ok(stopped.every((request) => request.released));
    assert.ok([...first, ...others].every((request) => request.completions === 0));
    while (disk.waiting.length > 0) disk.waiting.shift()!();
    for (const request of [...first, ...others]) assert.deepEqual([await request.done, request.released], [513, false]);
  });

  test('close waits for what is at the disk, and gives back the rest', async () => {
    const { disk, device } = rig();
    device.activate(having(blkFeature.FLUSH));
    disk.waiting = [];
    const requests = Array.from({ length: 9 }, () => new TestRequest([blkHead(FLUSH, 0n)], [1]));
    for (const request of requests) device.handle(request);
    let closed = false;
    const closing = device.close().then(() => {
      closed = true;
    });
    await turn();
    assert.equal(closed, false);
    for (const end of disk.waiting.splice(0)) end();
    await closing;
    assert.deepEqual(
      requests.map(({ released, completions }) => [released, completions]),
      requests.map((_, i) => [i === 8, 1]),
    );
    assert.ok(disk.closed);
  });
});

describe('blk: cache mode', () => {
  const wce = having(blkFeature.FLUSH, blkFeature.CONFIG_WCE);

  test('the driver chooses: without the cache, a write is completed when it is stable', async () => {
    const { disk, device } = rig();
    device.activate(wce);
    await write(device, 0);
    assert.deepEqual(disk.log, ['write 0 512', 'write 0 512 done']);
    assert.equal(device.writeConfig(writeback, Uint8Array.of(0)), true);
    await turn();
    assert.deepEqual(disk.log.splice(0).slice(2), ['datasync', 'datasync done'], 'what was cached becomes stable');
    await write(device, 1);
    assert.deepEqual(disk.log.splice(0), ['write 512 512', 'write 512 512 done', 'datasync', 'datasync done']);
    assert.equal(device.writeConfig(writeback, Uint8Array.of(0)), true);
    assert.equal(device.writeConfig(writeback, Uint8Array.of(1)), true);
    await write(device, 2);
    assert.deepEqual(disk.log, ['write 1024 512', 'write 1024 512 done']);
  });

  test('a write that was under way when the cache went is completed when it is stable', async () => {
    const { disk, device } = rig();
    device.activate(wce);
    disk.waiting = [];
    const request = new TestRequest([blkHead(OUT, 0n), new Uint8Array(512)], [1]);
    device.handle(request);
    device.writeConfig(writeback, Uint8Array.of(0));
    const [endWrite, endFirstSync] = disk.waiting.splice(0);
    endFirstSync!();
    endWrite!();
    assert.equal(request.completions, 0, 'the first sync began before the write had ended');
    disk.waiting.shift()!();
    await request.done;
    assert.deepEqual([...request.written()], [OK]);
  });

  test('when what was cached is lost, the next write says so', async () => {
    const { disk, device } = rig();
    device.activate(wce);
    await write(device, 0);
    disk.errors.datasync.push(new Error('gone'));
    device.writeConfig(writeback, Uint8Array.of(0));
    await turn();
    assert.equal((await write(device, 1)).status, IOERR);
  });

  test('only one byte of it can be written, with 0 or 1, by a driver that agreed to it', () => {
    const { device, disk } = rig();
    device.activate(wce);
    for (const [offset, ...data] of [
      [writeback, 2],
      [writeback, 0xff],
      [writeback, 0, 0],
      [writeback - 1, 0],
      [writeback + 1, 0],
      [capacity, 1],
      [0, ...new Array<number>(blkConfig.size).fill(0)],
    ] as const) {
      assert.equal(device.writeConfig(offset, Uint8Array.from(data)), false);
    }
    device.deactivate();
    device.activate(having(blkFeature.FLUSH));
    assert.equal(device.writeConfig(writeback, Uint8Array.of(0)), false);
    assert.deepEqual(disk.log, []);
  });

  test('a driver that cannot flush is given a device without a cache', async () => {
    const { disk, device, changes } = rig();
    device.activate(having(blkFeature.CONFIG_WCE));
    assert.deepEqual(changes, [[writeback, 0]]);
    await write(device, 0);
    assert.equal(disk.log.at(-1), 'datasync done');
    device.deactivate();
    assert.deepEqual(changes.slice(1), [[writeback, 1]], 'the next driver finds the cache');
    device.activate(wce);
    device.writeConfig(writeback, Uint8Array.of(0));
    device.deactivate();
    assert.deepEqual(changes.slice(2), [[writeback, 1]]);
  });

  test('what the driver chose survives a restart of the service', async () => {
    const store = new FakeStore();
    const first = new Bench({ store });
    first.attach(new BlkBackend(new MemoryDisk(8192), ''));
    first.connect();
    first.start({ extra: [blkFeature.FLUSH, blkFeature.CONFIG_WCE] });
    const written = first.ask('SET_CONFIG', {
      generation: 0,
      offset: writeback,
      length: 1,
      data: Uint8Array.of(0),
    });
    assert.equal(written.length, 1);
    const { token, epoch } = first.guest.admission;

    const second = new Bench({ store });
    const disk = new MemoryDisk(16384);
    second.attach(new BlkBackend(disk, ''));
    second.connect({ claim: { token, epoch } });
    assert.ok(second.guest.admission.resumed);
    const events = second.takeEvents('EVENT_CONFIG');
    assert.equal(events.length, 1, 'the disk has grown meanwhile');
    const read = second.ask('GET_CONFIG', { offset: 0, length: 36 });
    assert.equal(readU64(read.data, 0), 32n);
    assert.equal(read.data[writeback], 0);
    assert.equal(second.getStatus(), driverOk);
    assert.deepEqual(disk.log, ['datasync'], 'the mode is set again as if the driver had just done it');
  });
});

describe('blk: resize', () => {
  const tick = async ({ clock }: Rig): Promise<void> => {
    clock.advance(limits.blkSizePollMs);
    await turn();
    await turn();
  };
  const capacityChange = (sectors: number): Change => [capacity, sectors & 0xff, sectors >> 8, 0, 0, 0, 0, 0, 0];

  test('a file that grows or shrinks is seen within the time of a poll, and told once', async () => {
    const r = rig(8192);
    r.device.activate(having(blkFeature.FLUSH));
    await tick(r);
    assert.deepEqual(r.changes, []);
    r.disk.resize(16384 + 100);
    assert.equal((await write(r.device, 16)).status, IOERR, 'not yet seen');
    await tick(r);
    await tick(r);
    assert.deepEqual(r.changes.splice(0), [capacityChange(33)]);
    assert.equal((await write(r.device, 31)).status, OK);
    assert.equal((await write(r.device, 32)).status, IOERR, 'the padding');
    r.disk.resize(1024);
    await tick(r);
    assert.deepEqual(r.changes.splice(0), [capacityChange(2)]);
    assert.equal((await write(r.device, 2)).status, IOERR);
    assert.equal((await blk(r.device, [blkHead(IN, 1n)], [1024, 1])).status, IOERR);
    assert.equal((await write(r.device, 1)).status, OK);
    r.disk.resize(1025);
    await tick(r);
    assert.deepEqual(r.changes.splice(0), [capacityChange(3)]);
    r.disk.resize(1026);
    await tick(r);
    assert.deepEqual(r.changes, [], 'no sector more');
    r.disk.resize(0);
    await tick(r);
    assert.deepEqual(r.changes, [capacityChange(0)]);
    assert.equal((await blk(r.device, [blkHead(IN, 0n)], [512, 1])).status, IOERR);
  });

  test('a read that was under way when the file shrank fails, and nothing else', async () => {
    const r = rig(8192);
    r.device.activate(having(blkFeature.FLUSH));
    r.disk.waiting = [];
    const request = new TestRequest([blkHead(IN, 8n)], [512, 1]);
    r.device.handle(request);
    r.disk.resize(1024);
    r.clock.advance(limits.blkSizePollMs);
    const [endRead, endRefresh] = r.disk.waiting.splice(0);
    endRefresh!();
    endRead!();
    await request.done;
    assert.equal(request.written()[512], IOERR);
    assert.deepEqual(r.changes, [capacityChange(2)]);
  });

  test('one look at a time, also when it takes long or fails; none after close', async () => {
    const r = rig(8192);
    r.disk.waiting = [];
    r.clock.advance(10 * limits.blkSizePollMs);
    assert.deepEqual(r.disk.log, ['refresh']);
    r.disk.errors.refresh.push(new Error('stale handle'));
    r.disk.waiting.shift()!();
    r.disk.resize(512);
    r.clock.advance(limits.blkSizePollMs);
    r.disk.waiting.shift()!();
    assert.deepEqual(r.changes, [capacityChange(1)]);
    r.clock.advance(limits.blkSizePollMs);
    await r.device.close();
    r.disk.resize(1024);
    r.disk.waiting.shift()!();
    assert.deepEqual([r.changes.length, r.clock.timers], [1, 0]);
  });

  test('the driver is told with a new generation, and I/O in flight completes', () => {
    const b = new Bench();
    const disk = new MemoryDisk(16384);
    const host = new LateBackendHost(() => assert.fail('it is gone'));
    const backend = new BlkBackend(disk, '', { clock: b.clock, host });
    b.attach(backend);
    host.bind((backend as unknown as { host: BackendHost }).host);
    b.connect();
    const { queue, memory } = b.start({ extra: [blkFeature.FLUSH] });
    disk.waiting = [];
    memory.bytes.set(blkHead(IN, 4n), 60_000);
    const at = (lo: number, length: number) => ({ hi: 1 << 16, lo, length });
    queue.add([at(60_000, 16)], [buffer(1, 0), at(59_000, 1)]);
    queue.kick();
    b.available();
    const { generation } = b.ask('GET_CONFIG', { offset: 0, length: 8 });
    disk.resize(32768);
    b.clock.advance(limits.blkSizePollMs);
    const [endRead, endRefresh] = disk.waiting.splice(0);
    endRefresh!();
    b.scheduler.run();
    const [event] = b.takeEvents('EVENT_CONFIG');
    const body = event?.body as { generation: number; offset: number; data: Uint8Array };
    assert.deepEqual([body.generation, body.offset, readU64(body.data, 0)], [generation + 1, 0, 64n]);
    endRead!();
    b.scheduler.run();
    assert.equal(b.takeEvents('EVENT_USED').length, 1);
    assert.equal(memory.bytes[59_000], OK);
  });
});
