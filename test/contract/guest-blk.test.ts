import assert from 'node:assert/strict';
import { randomFillSync } from 'node:crypto';
import { test } from 'node:test';
import { BlkDriver } from '../../src/guest/index.ts';
import { limits } from '../../src/kit/limits.ts';
import { FeatureSet, feature } from '../../src/virtio/features.ts';
import { isCode, until, withPeer } from '../support/guest-fixture.ts';

test('large reads and writes are split, kept in flight, and come back whole', () =>
  withPeer(async ({ model, connect }) => {
    const bus = await connect();
    const blk = await BlkDriver.open(bus, 3, { depth: 4, transferBytes: 2048, size: 8 });
    const data = randomFillSync(new Uint8Array(40 * 1024));
    model.serving = false;
    const writing = blk.write(8, data);
    await until(() => model.log.includes('EVENT_AVAIL'), 'the device is notified');
    assert.equal(model.completed, 0);
    model.serving = true;
    bus.notify(3, 0);
    await writing;
    assert.equal(model.completed, 20);
    assert.deepEqual(model.disk.subarray(8 * 512, 8 * 512 + data.length), data);
    const into = new Uint8Array(data.length);
    assert.equal(await blk.read(8, into), into);
    assert.deepEqual(into, data);
    const shared = blk.device.alloc(4096);
    assert.equal(await blk.read(8, shared), shared.bytes);
    assert.deepEqual(shared.bytes, data.subarray(0, 4096));
    shared.bytes.fill(7);
    await blk.write(0, shared.slice(512, 1024));
    assert.deepEqual(model.disk.subarray(0, 1024), new Uint8Array(1024).fill(7));
    assert.equal((await blk.read(0, 0)).length, 0);
    await blk.flush();
  }));

test('requests beyond the disk are refused here', () =>
  withPeer(async ({ connect }) => {
    const blk = await BlkDriver.open(await connect(), 3);
    const refused = isCode('invalid-request');
    await assert.rejects(blk.read(128, 512), refused);
    await assert.rejects(blk.read(127, 1024), refused);
    await assert.rejects(blk.read(-1, 512), refused);
    await assert.rejects(blk.read(0.5, 512), refused);
    await assert.rejects(blk.read(0, 100), refused);
    await assert.rejects(blk.read(0, 2 ** 60), refused);
    await assert.rejects(blk.write(0, new Uint8Array(513)), refused);
    assert.equal((await blk.read(127, 512)).length, 512);
  }));

test('what the device reports as failed rejects, and the next request works', () =>
  withPeer(async ({ model, connect }) => {
    const blk = await BlkDriver.open(await connect(), 3, { depth: 2, transferBytes: 512 });
    for (const [status, text] of [
      [1, /I\/O error/],
      [2, /not support/],
      [0xff, /status 255/],
    ] as const) {
      model.statusByte = status;
      await assert.rejects(blk.read(0, 8192), isCode('io-error', text));
      await assert.rejects(blk.write(0, new Uint8Array(512)), isCode('io-error', text));
      await assert.rejects(blk.flush(), isCode('io-error', text));
      await assert.rejects(blk.getId(), isCode('io-error', text));
    }
    model.statusByte = 0;
    // Less written than read: the rest would be old memory.
    model.writtenBytes = (honest) => honest - 1;
    await assert.rejects(blk.read(0, 512), isCode('io-error', /512 of 513/));
    model.writtenBytes = (honest) => honest;
    model.disk.fill(3);
    assert.deepEqual(await blk.read(0, 8192), new Uint8Array(8192).fill(3));
  }));

test('a stream gives the disk in order, and stops when told', () =>
  withPeer(async ({ model, connect }) => {
    const bus = await connect();
    const blk = await BlkDriver.open(bus, 3);
    randomFillSync(model.disk);
    const buffers = bus.memory.regions[0]?.buffers;
    const parts: Buffer[] = [];
    for await (const part of blk.stream({ chunkBytes: 3 * 512, chunks: 3 })) parts.push(Buffer.from(part.bytes));
    assert(Buffer.concat(parts).equals(model.disk));
    for await (const part of blk.stream({ offset: 512, length: 8192, chunkBytes: 1024 })) {
      assert.deepEqual(part.bytes, model.disk.subarray(512, 512 + 1024));
      break;
    }
    model.statusByte = 1;
    await assert.rejects(async () => {
      for await (const part of blk.stream()) assert.fail(`${part.length} bytes`);
    }, isCode('io-error'));
    assert.equal(bus.memory.regions[0]?.buffers, buffers);
    await assert.rejects(blk.stream({ offset: 5 }).next(), isCode('invalid-request'));
  }));

test('more requests than descriptors wait in order, and their number is bounded', () =>
  withPeer(async ({ model, connect }) => {
    const bus = await connect();
    const blk = await BlkDriver.open(bus, 3, { size: 4, depth: 1 });
    model.serving = false;
    const settled: string[] = [];
    const wait = (name: string) => (): void => {
      settled.push(name);
    };
    const first = blk.read(0, 512).then(wait('0'));
    const waiting = Array.from({ length: limits.guestQueueWaiters }, (_, i) =>
      blk.read(0, 512).then(wait(String(i + 1))),
    );
    await assert.rejects(blk.read(0, 512), isCode('limit-reached'));
    model.serving = true;
    bus.notify(3, 0);
    await Promise.all([first, ...waiting]);
    assert.deepEqual(
      settled,
      Array.from({ length: limits.guestQueueWaiters + 1 }, (_, i) => String(i)),
    );
  }));

test('a queue without event index and indirect descriptors', () =>
  withPeer(async ({ model, connect }) => {
    model.offered = FeatureSet.of(feature.VERSION_1, feature.ACCESS_PLATFORM);
    const blk = await BlkDriver.open(await connect(), 3, { size: 4, depth: 8, transferBytes: 512 });
    randomFillSync(model.disk);
    // Three descriptors a request, four entries: one at a time.
    assert.deepEqual(await blk.read(0, 16 * 1024), model.disk.subarray(0, 16 * 1024));
    // No FLUSH: nothing is sent.
    const before = model.completed;
    await blk.flush();
    assert.equal(model.completed, before);
  }));

test('closing ends what waits', () =>
  withPeer(async ({ model, connect }) => {
    const bus = await connect();
    const blk = await BlkDriver.open(bus, 3, { depth: 1 });
    model.serving = false;
    const pending = [blk.read(0, 512), blk.read(0, 512)].map((each) => assert.rejects(each, isCode('bus-lost')));
    await blk.close();
    await Promise.all(pending);
    await blk.close();
    assert.equal(model.status, 0);
    assert.equal(bus.memory.regions[0]?.buffers, 0);
    const other = await BlkDriver.open(bus, 3);
    model.serving = false;
    const last = assert.rejects(other.read(0, 512), isCode('bus-lost'));
    bus.close();
    await last;
  }));
