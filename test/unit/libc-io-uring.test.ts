import assert from 'node:assert/strict';
import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, afterEach, beforeEach, describe, test } from 'node:test';
import { census } from '../../src/libc/census.ts';
import { linux } from '../../src/libc/constants.ts';
import { errnos } from '../../src/libc/errno.ts';
import { type EnterRing, IoRing } from '../../src/libc/io-uring.ts';
import { Mapping } from '../../src/libc/mapping.ts';
import { createMemfd } from '../../src/libc/memfd.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { eventually } from './libc-harness.ts';

const entries = 8;
const threads = 4;
const directory = mkdtempSync(path.join(tmpdir(), 'vmsg-ring-'));
const file = path.join(directory, 'file');
const pattern = (length: number): Uint8Array => Uint8Array.from({ length }, (_, i) => (i * 13 + (i >> 8)) & 0xff);

after(() => rmSync(directory, { recursive: true }));

/** A ring, or nothing where the kernel says that there is none: then it says why. */
function openRing(wrap?: (enter: EnterRing) => EnterRing): IoRing | undefined {
  const ring = IoRing.open(entries, threads, wrap);
  if (typeof ring !== 'string') return ring;
  assert.match(ring, /^io_uring_setup: |older than Linux|the kernel lacks/);
  return undefined;
}

let fd: number;
let ring: IoRing | undefined;

beforeEach(() => {
  writeFileSync(file, pattern(10_000));
  fd = openSync(file, 'r+');
});

afterEach(() => {
  ring?.close();
  ring = undefined;
  closeSync(fd);
});

/** Submits what was gathered, and waits for all of it. */
async function settle(open: IoRing): Promise<void> {
  open.submit();
  await eventually(() => {
    open.reap();
    assert.equal(open.inFlight, 0);
  });
}

describe('io_uring', () => {
  test('reads and writes single and scattered parts, as far as the file goes', async () => {
    ring = openRing();
    if (ring === undefined) return;
    const results: [string, number][] = [];
    const note = (name: string) => (result: number) => void results.push([name, result]);
    const one = new Uint8Array(5000);
    const some = [new Uint8Array(1), new Uint8Array(0), new Uint8Array(20), new Uint8Array(100)];
    const late = new Uint8Array(4096);
    ring.read(fd, [one], 1000, false, note('one'));
    ring.read(fd, some, 3, false, note('some'));
    ring.read(fd, [late], 9000, true, note('late'));
    ring.read(fd, [new Uint8Array(1)], 10_000, false, note('end'));
    await settle(ring);
    assert.deepEqual(
      new Map(results),
      new Map([
        ['one', 5000],
        ['some', 121],
        ['late', 1000],
        ['end', 0],
      ]),
    );
    assert.deepEqual(one, pattern(10_000).subarray(1000, 6000));
    assert.deepEqual(Uint8Array.from(some.flatMap((part) => [...part])), pattern(10_000).subarray(3, 124));
    assert.deepEqual(late.subarray(0, 1000), pattern(10_000).subarray(9000));
    ring.write(fd, [Uint8Array.of(1, 2)], 0, true, note('write'));
    ring.write(fd, [Uint8Array.of(3), Uint8Array.of(4, 5)], 9999, false, note('writes'));
    await settle(ring);
    assert.deepEqual(results.slice(4).sort(), [
      ['write', 2],
      ['writes', 3],
    ]);
    assert.deepEqual([...readFileSync(file).subarray(0, 2), ...readFileSync(file).subarray(9999)], [1, 2, 3, 4, 5]);
  });

  test('reaches offsets beyond 32 bits, and mapped memory', async () => {
    ring = openRing();
    if (ring === undefined) return;
    const memory = Mapping.anonymous(8192);
    memory.bytes.set([7, 8, 9], 4097);
    const offset = 5 * 1024 ** 3 + 5;
    ftruncateSync(fd, offset + 3);
    ring.write(fd, [memory.bytes.subarray(4097, 4100)], offset, false, (result) => assert.equal(result, 3));
    await settle(ring);
    ring.read(fd, [memory.bytes.subarray(1, 2), memory.bytes.subarray(2, 4)], offset, false, (result) => {
      assert.equal(result, 3);
    });
    await settle(ring);
    assert.deepEqual([...memory.bytes.subarray(0, 5)], [0, 7, 8, 9, 0]);
    memory.close();
  });

  test('syncs, and makes holes', async () => {
    ring = openRing();
    if (ring === undefined) return;
    const memfd = createMemfd('ring', 16_384);
    const whole = Mapping.map(memfd.number, 0, 16_384, { writable: true });
    whole.bytes.fill(1);
    const results: number[] = [];
    const mode = linux.FALLOC_FL_PUNCH_HOLE | linux.FALLOC_FL_KEEP_SIZE;
    ring.allocate(memfd.number, mode, 4096, 8192, (result) => results.push(result));
    ring.sync(fd, (result) => results.push(result));
    await settle(ring);
    assert.deepEqual(results, [0, 0]);
    assert.deepEqual(
      [4095, 4096, 12_287, 12_288].map((at) => whole.bytes[at]),
      [1, 0, 0, 1],
    );
    whole.close();
    memfd.close();
  });

  test('errors are results; the ring goes on', async () => {
    ring = openRing();
    if (ring === undefined) return;
    const results: number[] = [];
    const readOnly = openSync(file, 'r');
    ring.write(readOnly, [new Uint8Array(1)], 0, false, (result) => results.push(result));
    ring.read(fd, [new Uint8Array(1)], 0, false, (result) => results.push(result));
    ring.sync(1_000_000, (result) => results.push(result));
    await settle(ring);
    assert.deepEqual(
      results.sort((a, b) => a - b),
      [-errnos.EBADF, -errnos.EBADF, 1],
    );
    closeSync(readOnly);
  });

  test('has room for so many operations and parts, again and again', async () => {
    ring = openRing();
    if (ring === undefined) return;
    let ended = 0;
    for (let round = 0; round < 50; round++) {
      while (ring.hasRoom(2)) ring.read(fd, [new Uint8Array(1), new Uint8Array(2)], round, false, () => (ended += 1));
      assert.equal(ring.inFlight, entries);
      await settle(ring);
    }
    assert.equal(ended, 50 * entries);
    assert.equal(ring.hasRoom(1024), true);
    assert.equal(ring.hasRoom(1025), false);
    ring.read(
      fd,
      Array.from({ length: 1024 }, () => new Uint8Array(1)),
      0,
      false,
      (result) => assert.equal(result, 1024),
    );
    assert.equal(ring.hasRoom(1), true);
    assert.equal(ring.hasRoom(2), false, 'iovecs live until they are submitted');
    await settle(ring);
    assert.equal(ring.hasRoom(2), true);
  });

  test('its descriptor is readable while something has ended', async () => {
    const open = openRing();
    if (open === undefined) return;
    ring = open;
    const poller = new LoopPoller();
    let ended = 0;
    const watch = poller.watch(open.fd, () => open.reap());
    open.read(fd, [new Uint8Array(100)], 0, true, () => (ended += 1));
    open.submit();
    await eventually(() => assert.equal(ended, 1));
    watch.close();
    poller.close();
  });

  test('what the kernel does not take ends with EAGAIN, and only that', async () => {
    const answers = [-errnos.EINTR, 2, -errnos.EAGAIN];
    const asked: number[] = [];
    ring = openRing((enter) => (number, operations) => {
      asked.push(operations);
      const answer = answers.shift()!;
      return answer > 0 ? enter(number, answer) : answer;
    });
    if (ring === undefined) return;
    const results: number[] = [];
    for (let i = 0; i < 5; i++) {
      ring.read(fd, [new Uint8Array(8), new Uint8Array(i)], 0, false, (result) => results.push(result));
    }
    ring.submit();
    assert.deepEqual(asked, [5, 5, 3], 'an interrupted call is made again');
    assert.deepEqual(results, [-errnos.EAGAIN, -errnos.EAGAIN, -errnos.EAGAIN]);
    answers.push(entries);
    for (let i = 5; ring.hasRoom(2); i++) {
      ring.read(fd, [new Uint8Array(8), new Uint8Array(i)], 0, false, (result) => results.push(result));
    }
    await settle(ring);
    assert.deepEqual(results.slice(3), [8, 9, 13, 14, 15, 16, 17, 18]);
  });

  test('leaves nothing open, and cannot be closed under what runs', async () => {
    const before = census();
    const open = openRing();
    if (open === undefined) return;
    open.read(fd, [new Uint8Array(1)], 0, false, () => {});
    assert.throws(() => open.close(), /under way/);
    await settle(open);
    open.close();
    assert.deepEqual(census(), before);
  });

  test('says why there is none', () => {
    const ring = IoRing.open(0, threads);
    assert.equal(typeof ring, 'string');
    assert.match(String(ring), /^io_uring_setup: /);
  });
});
