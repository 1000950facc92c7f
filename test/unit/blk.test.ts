import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { BlkBackend, openBlk } from '../../src/bridge/backend/blk.ts';
import { systemClock } from '../../src/kit/clock.ts';
import { limits } from '../../src/kit/limits.ts';
import { blkConfig, blkRequestType, blkStatus } from '../../src/virtio/blk.ts';
import { blkFeature } from '../../src/virtio/features.ts';
import { type Decoded, decode } from '../../src/wire/layout.ts';
import { Bench, buffer } from '../support/bridge-bench.ts';
import { blk, blkHead, MemoryDisk, rangeBytes, withFlush, writeThrough } from '../support/bridge-disk.ts';
import { run, split, TestRequest } from '../support/bridge-request.ts';

const { IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES } = blkRequestType;
const { OK, IOERR, UNSUPP } = blkStatus;

function make(sizeBytes: number, readOnly = false): { disk: MemoryDisk; device: BlkBackend } {
  const disk = new MemoryDisk(sizeBytes, readOnly);
  const device = new BlkBackend(disk, 'serial-1');
  device.activate(withFlush);
  return { disk, device };
}

const config = (device: BlkBackend) =>
  decode(blkConfig, device.description.config, 0, blkConfig.size) as Decoded<typeof blkConfig>;
const read = (device: BlkBackend, sector: number | bigint, length = 512) =>
  blk(device, [blkHead(IN, BigInt(sector))], [length, 1]);
const write = (device: BlkBackend, sector: number | bigint, data: Uint8Array) =>
  blk(device, [blkHead(OUT, BigInt(sector)), data], [1]);
const flush = (device: BlkBackend) => blk(device, [blkHead(FLUSH, 0n)], [1]);

describe('blk: capacity', () => {
  for (const [size, sectors] of [
    [1, 1],
    [511, 1],
    [512, 1],
    [513, 2],
    [1024 * 1024, 2048],
    [1024 * 1024 + 1, 2049],
  ] as const) {
    test(`a file of ${size} bytes has ${sectors} sectors; its tail reads zero and cannot be written`, async () => {
      const { disk, device } = make(size);
      assert.equal(config(device).capacity, BigInt(sectors));
      assert.equal(config(device).blkSize, 512);
      const last = await read(device, sectors - 1);
      assert.deepEqual([last.status, last.writtenBytes], [OK, 513]);
      const inFile = size - (sectors - 1) * 512;
      assert.deepEqual(last.data.subarray(0, inFile), disk.bytes.subarray((sectors - 1) * 512));
      assert.deepEqual(last.data.subarray(inFile), new Uint8Array(512 - inFile));
      assert.equal((await read(device, sectors)).status, IOERR);
      assert.equal((await read(device, sectors - 1, 1024)).status, IOERR);
      const before = disk.bytes.slice();
      const outcome = await write(device, sectors - 1, new Uint8Array(512).fill(0xee));
      assert.equal(outcome.status, inFile === 512 ? OK : IOERR);
      if (inFile < 512) assert.deepEqual(disk.bytes, before, 'not even the part inside the file');
      if (sectors > 1) assert.equal((await write(device, 0, new Uint8Array(512))).status, OK);
    });
  }

  test('sectors far outside are errors, whatever their bits', async () => {
    const { disk, device } = make(4096);
    for (const sector of [8n, 1n << 31n, 1n << 32n, 1n << 54n, 1n << 55n, 1n << 63n, (1n << 64n) - 1n]) {
      assert.equal((await read(device, sector)).status, IOERR);
      assert.equal((await write(device, sector, new Uint8Array(512))).status, IOERR);
    }
    assert.deepEqual(disk.log, []);
  });
});

describe('blk: requests', () => {
  test('data goes to and comes from the right place, through scattered parts', async () => {
    const { disk, device } = make(8192);
    const data = Uint8Array.from({ length: 1024 }, (_, i) => (i * 3) & 0xff);
    const scattered = split(blkHead(OUT, 3n), 1, 7).concat(split(data, 100, 1, 700));
    assert.deepEqual((await blk(device, scattered, [1])).status, OK);
    assert.deepEqual(disk.bytes.subarray(1536, 2560), data);
    const result = await blk(device, split(blkHead(IN, 3n), 5), [10, 500, 513, 1, 1]);
    assert.deepEqual([result.status, result.writtenBytes], [OK, 1025]);
    assert.deepEqual(result.data, data);
  });

  test('a head and data in one part, and the status behind the data in one part', async () => {
    const { disk, device } = make(4096);
    const both = new Uint8Array(16 + 512).fill(0x5a);
    both.set(blkHead(OUT, 1n));
    assert.equal((await blk(device, [both], [1])).status, OK);
    assert.ok(disk.bytes.subarray(512, 1024).every((byte) => byte === 0x5a));
    const result = await blk(device, [blkHead(IN, 1n)], [513]);
    assert.equal(result.status, OK);
    assert.ok(result.data.every((byte) => byte === 0x5a));
  });

  test('a failed request writes only its status', async () => {
    const { device } = make(4096);
    const result = await read(device, 100);
    assert.deepEqual([result.status, result.writtenBytes], [IOERR, 1]);
  });

  test('the status is the last byte that is there, also before parts without bytes', async () => {
    const { device } = make(4096);
    const request = new TestRequest([blkHead(IN, 0n)], [512, 1, 0]);
    await run(device, request);
    assert.deepEqual([...(request.writable[1] ?? [])], [OK]);
  });

  test('errors of the file are IOERR', async () => {
    const { disk, device } = make(4096);
    disk.errors.read.push(new Error('bad sector'));
    disk.errors.write.push(new Error('bad sector'));
    assert.equal((await read(device, 0)).status, IOERR);
    assert.equal((await write(device, 0, new Uint8Array(512))).status, IOERR);
    assert.equal((await read(device, 0)).status, OK);
  });

  test('GET_ID gives 20 bytes, padded with zeros, or what there is room for', async () => {
    const { device } = make(512);
    const full = await blk(device, [blkHead(GET_ID, 0n)], [20, 1]);
    assert.deepEqual([full.status, full.writtenBytes], [OK, 21]);
    assert.equal(Buffer.from(full.data).toString('latin1'), 'serial-1'.padEnd(20, '\0'));
    const short = await blk(device, [blkHead(GET_ID, 0n)], [3, 2, 1]);
    assert.deepEqual([short.status, short.writtenBytes], [OK, 6]);
    assert.equal(Buffer.from(short.data).toString('latin1'), 'seria');
  });

  test('a serial of 20 bytes is kept whole, a longer one refused', async () => {
    const device = new BlkBackend(new MemoryDisk(512), 'x'.repeat(20));
    device.activate(withFlush);
    const { data } = await blk(device, [blkHead(GET_ID, 0n)], [20, 1]);
    assert.equal(Buffer.from(data).toString('latin1'), 'x'.repeat(20));
    const host = { configChanged() {}, failed() {} };
    const spec = { path: '/nowhere', readOnly: true, serial: 'ü'.repeat(11) };
    await assert.rejects(openBlk(spec, host, systemClock), { code: 'invalid-request' });
  });

  test('unknown and not offered types are UNSUPP', async () => {
    const { disk, device } = make(4096);
    for (const type of [2, 3, 5, 10, 12, 14, 15, 24, 0x7fffffff, 0x80000000, 0xffffffff]) {
      assert.equal((await blk(device, [blkHead(type, 0n)], [1])).status, UNSUPP);
    }
    assert.deepEqual(disk.log, []);
  });

  test('a read-only disk says so and refuses writes', async () => {
    const { disk, device } = make(4096, true);
    assert.ok(device.description.featureBits.includes(blkFeature.RO));
    assert.ok(!make(4096).device.description.featureBits.includes(blkFeature.RO));
    assert.equal((await write(device, 0, new Uint8Array(512))).status, IOERR);
    assert.equal((await read(device, 0)).status, OK);
    assert.deepEqual(disk.log, ['read 0 512', 'read 0 512 done']);
  });

  test('a read-only disk has nothing to erase and no cache mode', async () => {
    const { disk, device } = make(4096, true);
    for (const type of [DISCARD, WRITE_ZEROES]) {
      assert.equal((await blk(device, [blkHead(type, 0n), rangeBytes({ sector: 0, sectors: 1 })], [1])).status, UNSUPP);
    }
    assert.equal(device.writeConfig(blkConfig.at.writeback, Uint8Array.of(0)), false);
    assert.deepEqual(disk.log, []);
  });
});

describe('blk: durability', () => {
  test('a flush is answered only after the datasync that it started has ended', async () => {
    const { disk, device } = make(4096);
    await write(device, 0, new Uint8Array(512));
    assert.deepEqual(disk.log, ['write 0 512', 'write 0 512 done'], 'with FLUSH a write is not synced');
    disk.waiting = [];
    const request = new TestRequest([blkHead(FLUSH, 0n)], [1]);
    device.handle(request);
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(request.completions, 0);
    assert.deepEqual(disk.log.slice(2), ['datasync']);
    disk.waiting[0]?.();
    await request.done;
    assert.deepEqual([...request.written()], [OK]);
  });

  test('a datasync that failed makes this flush and every later one IOERR', async () => {
    const { disk, device } = make(4096);
    disk.errors.datasync.push(new Error('disk full'));
    assert.equal((await flush(device)).status, IOERR);
    const syncs = disk.log.length;
    assert.equal((await flush(device)).status, IOERR);
    assert.equal(disk.log.length, syncs, 'a later datasync would prove nothing');
    device.deactivate();
    device.activate(withFlush);
    assert.equal((await flush(device)).status, IOERR, 'a reset does not bring the data back');
    assert.equal((await read(device, 0)).status, OK);
  });

  test('flushes that run at the same time as one that fails do not succeed after it', async () => {
    const { disk, device } = make(4096);
    disk.waiting = [];
    const requests = [1, 2].map(() => new TestRequest([blkHead(FLUSH, 0n)], [1]));
    for (const request of requests) device.handle(request);
    disk.errors.datasync.push(new Error('disk full'), null);
    for (const end of disk.waiting) end();
    await Promise.all(requests.map((request) => request.done));
    assert.deepEqual(
      requests.map((request) => request.written()[0]),
      [IOERR, IOERR],
    );
  });

  test('a driver without FLUSH gets a write-through disk', async () => {
    const disk = new MemoryDisk(4096);
    const device = new BlkBackend(disk, '');
    device.activate(writeThrough);
    assert.equal((await write(device, 1, new Uint8Array(512).fill(1))).status, OK);
    assert.deepEqual(disk.log, ['write 512 512', 'write 512 512 done', 'datasync', 'datasync done']);
    disk.errors.datasync.push(new Error('disk full'));
    assert.equal((await write(device, 1, new Uint8Array(512))).status, IOERR);
    device.deactivate();
    device.activate(withFlush);
    disk.log.length = 0;
    assert.equal((await write(device, 1, new Uint8Array(512))).status, OK);
    assert.deepEqual(disk.log, ['write 512 512', 'write 512 512 done']);
  });
});

describe('blk: behind a queue', () => {
  test('at most the limit of requests is at the file at a time', () => {
    const b = new Bench();
    const disk = new MemoryDisk(65536);
    disk.waiting = [];
    b.attach(new BlkBackend(disk, ''));
    b.connect();
    const { queue, memory } = b.start({ size: 64, extra: [blkFeature.FLUSH] });
    for (let i = 0; i < 16; i++) {
      memory.bytes.set(blkHead(IN, BigInt(i)), 60_000);
      const head = { hi: 1 << 16, lo: 60_000, length: 16 };
      assert.notEqual(queue.add([head], [buffer(1, i), { hi: 1 << 16, lo: 59_000 + i, length: 1 }]), undefined);
    }
    queue.kick();
    b.available();
    let most = 0;
    let ended = 0;
    for (let end = disk.waiting.shift(); end !== undefined; end = disk.waiting.shift()) {
      most = Math.max(most, disk.waiting.length + 1);
      end();
      ended += 1;
      b.scheduler.run();
    }
    assert.deepEqual([most, ended], [limits.blkInFlightRequests, 16]);
    assert.deepEqual(
      b
        .take()
        .map((message) => message.name)
        .filter((name) => name !== 'EVENT_USED'),
      [],
    );
  });
});
