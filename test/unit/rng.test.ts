import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, test } from 'node:test';
import { type EntropySource, openRng, RngBackend } from '../../src/bridge/backend/rng.ts';
import { census } from '../../src/libc/census.ts';
import { CountingRandom } from '../support/bridge-fakes.ts';
import { run, TestRequest } from '../support/bridge-request.ts';

const reasons: string[] = [];
const host = { configChanged() {}, failed: (reason: string) => void reasons.push(reason) };

describe('rng', () => {
  test('fills what is writable and says how much', async () => {
    const rng = await openRng({ source: '/dev/urandom' }, new CountingRandom(), host);
    const request = new TestRequest([], [0, 7, 9]);
    const written = await run(rng, request);
    assert.equal(written, 7);
    assert.deepEqual([...request.written()], [1, 2, 3, 4, 5, 6, 7, ...new Array(9).fill(0xaa)]);
    await rng.close();
  });

  test('one request gets a bounded amount', async () => {
    const rng = await openRng({ source: '/dev/urandom' }, new CountingRandom(), host);
    const request = new TestRequest([], [100_000]);
    assert.equal(await run(rng, request), 65_536);
    assert.ok(
      request
        .written()
        .subarray(65_536)
        .every((byte) => byte === 0xaa),
    );
    await rng.close();
  });

  test('without room it completes with nothing', async () => {
    const rng = await openRng({ source: '/dev/urandom' }, new CountingRandom(), host);
    assert.equal(await run(rng, new TestRequest([new Uint8Array(5)], [])), 0);
    await rng.close();
  });

  test('a source that gives less is told as it is; one that fails is reported', async () => {
    const answers: [Error | null, number][] = [
      [null, 3],
      [new Error('unplugged'), 0],
    ];
    const source: EntropySource = { fill: (_, done) => done(...answers.shift()!), async close() {} };
    const rng = new RngBackend(source, host);
    assert.equal(await run(rng, new TestRequest([], [64])), 3);
    assert.deepEqual(reasons, []);
    assert.equal(await run(rng, new TestRequest([], [64])), 0);
    assert.deepEqual(reasons, ['the entropy source failed: unplugged']);
  });

  test('a character device is a source, a regular file and a missing one are refused', async () => {
    const directory = mkdtempSync(path.join(tmpdir(), 'vmsg-rng-'));
    const before = census();
    const file = path.join(directory, 'file');
    writeFileSync(file, 'not random');
    const zero = await openRng({ source: '/dev/zero' }, new CountingRandom(), host);
    const request = new TestRequest([], [8]);
    assert.equal(await run(zero, request), 8);
    assert.deepEqual(request.written(), new Uint8Array(8));
    await zero.close();
    for (const [source, why] of [
      [file, 'not a character device'],
      [path.join(directory, 'missing'), 'cannot be opened (ENOENT)'],
    ] as const) {
      const refused = openRng({ source }, new CountingRandom(), host);
      await assert.rejects(refused, { code: 'backend-unusable', message: `${source}: ${why}` });
    }
    assert.deepEqual(census(), before);
    rmSync(directory, { recursive: true });
  });

  test('a device that ends is a failure, not a success without bytes', async () => {
    reasons.length = 0;
    const empty = await openRng({ source: '/dev/null' }, new CountingRandom(), host);
    assert.equal(await run(empty, new TestRequest([], [8])), 0);
    assert.match(reasons[0] ?? '', /\/dev\/null gives no bytes/);
    await empty.close();
  });
});
