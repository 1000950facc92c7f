import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ShmBackend } from '../../src/bridge/backend/shm.ts';
import { census } from '../../src/libc/census.ts';
import { Mapping } from '../../src/libc/mapping.ts';
import { inspectMemfd } from '../../src/libc/memfd.ts';
import { readU32 } from '../../src/wire/bytes.ts';
import { run, TestRequest } from '../support/bridge-request.ts';

test('shm: the region counts requests and holds its pattern; after close nothing is left', async () => {
  const before = census();
  const backend = new ShmBackend(8192);
  const [region] = backend.sharedMemory;
  assert.ok(region !== undefined && backend.sharedMemory.length === 1);
  assert.deepEqual([region.id, region.length], [0, 8192]);
  assert.equal(typeof inspectMemfd(region.fd), 'object', 'a guest can trust that it stays');
  const seen = Mapping.map(region.fd, 0, region.length, { writable: true });
  for (let i = 4; i < region.length; i++) {
    if (seen.bytes[i] !== (31 * i + Math.floor(i / 256)) % 256) assert.fail(`byte ${i} is ${seen.bytes[i]}`);
  }
  assert.equal(readU32(seen.bytes, 0), 0);
  for (let count = 1; count <= 3; count++) {
    const request = new TestRequest([], [3, 5]);
    assert.equal(await run(backend, request), 4);
    assert.deepEqual([readU32(request.written(), 0), readU32(seen.bytes, 0)], [count, count]);
  }
  // The guest writes what it likes; the count is the device's own.
  seen.bytes.fill(0xff);
  const request = new TestRequest([new Uint8Array(9)], []);
  assert.equal(await run(backend, request), 0);
  assert.equal(readU32(seen.bytes, 0), 4);
  seen.close();
  await backend.close();
  assert.deepEqual(census(), before);
});

test('shm: a region that cannot be made leaves nothing open', () => {
  const before = census();
  assert.throws(() => new ShmBackend(0), { code: 'memory-refused' });
  assert.deepEqual(census(), before);
});
