import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, describe, test } from 'node:test';
import { type DiskFile, openDiskFile } from '../../src/bridge/backend/disk-file.ts';
import { whyNoRing } from '../../src/bridge/backend/ring-io.ts';
import { census } from '../../src/libc/census.ts';
import { linux } from '../../src/libc/constants.ts';
import { createMemfd } from '../../src/libc/memfd.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { diskIos } from '../support/disk-ios.ts';

const directory = mkdtempSync(path.join(tmpdir(), 'vmsg-disk-'));
const poller = new LoopPoller();
after(() => {
  poller.close();
  rmSync(directory, { recursive: true });
});
let files = 0;

function image(bytes: Uint8Array): string {
  const file = path.join(directory, `image-${files++}`);
  writeFileSync(file, bytes);
  return file;
}

const pattern = (length: number): Uint8Array => Uint8Array.from({ length }, (_, i) => (i * 13 + (i >> 8)) & 0xff);
const io = (start: (done: (error: Error | null) => void) => void): Promise<Error | null> => new Promise(start);
const read = (disk: DiskFile, parts: Uint8Array[], offset: number) => io((done) => disk.read(parts, offset, done));
const write = (disk: DiskFile, parts: Uint8Array[], offset: number) => io((done) => disk.write(parts, offset, done));

for (const way of diskIos(poller)) {
  describe(`disk file, ${way.kind}`, () => {
    const openDisk = (path: string, readOnly: boolean) => openDiskFile(path, readOnly, way);

    test('reads, writes and syncs scattered parts at their offset', async () => {
      const file = image(pattern(10_000));
      const disk = await openDisk(file, false);
      assert.deepEqual([disk.sizeBytes, disk.readOnly], [10_000, false]);
      const parts = [new Uint8Array(1), new Uint8Array(0), new Uint8Array(5000), new Uint8Array(499)];
      assert.equal(await read(disk, parts, 500), null);
      assert.deepEqual(Uint8Array.from(parts.flatMap((part) => [...part])), pattern(10_000).subarray(500, 6000));
      assert.equal(await write(disk, [new Uint8Array(3).fill(1), new Uint8Array(4).fill(2)], 9993), null);
      assert.equal(await io((done) => disk.datasync(done)), null);
      await disk.close();
      assert.deepEqual([...readFileSync(file).subarray(9992)], [pattern(10_000)[9992], 1, 1, 1, 2, 2, 2, 2]);
    });

    test('goes on when the kernel moves less than asked: more parts than it takes at a time', async () => {
      const bytes = pattern(3001);
      const file = image(bytes);
      const disk = await openDisk(file, false);
      const parts = Array.from({ length: 3001 }, () => new Uint8Array(1));
      assert.equal(await read(disk, parts, 0), null);
      assert.deepEqual(Uint8Array.from(parts.map((part) => part[0]!)), bytes);
      assert.equal(await write(disk, parts.reverse(), 0), null);
      await disk.close();
      assert.deepEqual(Uint8Array.from(readFileSync(file)), bytes.toReversed());
    });

    test('a file that became shorter is an error, not silence', async () => {
      const file = image(pattern(4096));
      const disk = await openDisk(file, true);
      truncateSync(file, 1000);
      assert.match(String(await read(disk, [new Uint8Array(512)], 800)), /became shorter/);
      assert.match(String(await read(disk, [new Uint8Array(512)], 2000)), /became shorter/);
      await disk.close();
    });

    test('close waits for what runs', async () => {
      const disk = await openDisk(image(pattern(1 << 20)), false);
      let ended = 0;
      for (let i = 0; i < 20; i++) disk.read([new Uint8Array(1 << 20)], 0, () => (ended += 1));
      disk.datasync(() => (ended += 1));
      await disk.close();
      assert.equal(ended, 21);
    });

    test('writers exclude everyone, readers exclude writers; the lock ends with close', async () => {
      const file = image(pattern(512));
      const busy = { code: 'backend-unusable', message: new RegExp(`${file}: in use`) };
      const writer = await openDisk(file, false);
      await assert.rejects(openDisk(file, false), busy);
      await assert.rejects(openDisk(file, true), busy);
      await writer.close();
      const readers = [await openDisk(file, true), await openDisk(file, true)];
      await assert.rejects(openDisk(file, false), busy);
      for (const reader of readers) await reader.close();
      const link = path.join(directory, `link-${way.kind}`);
      symlinkSync(file, link);
      const again = await openDisk(link, false);
      await assert.rejects(openDisk(file, false), busy, 'the same file under another name');
      await again.close();
    });

    test('what is no image is refused with a reason, at once, and nothing stays open', async () => {
      const fifo = path.join(directory, `fifo-${way.kind}`);
      execFileSync('mkfifo', [fifo]);
      const folder = path.join(directory, `folder-${way.kind}`);
      mkdirSync(folder);
      const before = census();
      for (const [file, readOnly, why] of [
        [fifo, true, 'not a regular file'],
        [fifo, false, 'not a regular file'],
        [folder, true, 'not a regular file'],
        [folder, false, 'cannot be opened (EISDIR)'],
        ['/dev/null', false, 'not a regular file'],
        [path.join(directory, 'missing'), true, 'cannot be opened (ENOENT)'],
        [image(new Uint8Array(0)), true, 'the file is empty'],
      ] as const) {
        await assert.rejects(openDisk(file, readOnly), { code: 'backend-unusable', message: `${file}: ${why}` });
      }
      assert.deepEqual(census(), before);
    });

    test('a file that may only be read opens read-only', async () => {
      const file = image(pattern(512));
      chmodSync(file, 0o444);
      const disk = await openDisk(file, true);
      assert.equal(disk.readOnly, true);
      assert.notEqual(await write(disk, [new Uint8Array(512)], 0), null, 'the kernel refuses as well');
      await disk.close();
    });

    test('what the file system refuses is an error, also behind what it took', async () => {
      for (const [seal, length] of [
        [linux.F_SEAL_WRITE, 512],
        [linux.F_SEAL_GROW, 8192],
      ] as const) {
        const memfd = createMemfd('sealed', 8192, seal);
        const disk = await openDisk(`/proc/self/fd/${memfd.number}`, false);
        assert.match(String(await write(disk, [new Uint8Array(length)], 4096)), /EPERM/);
        assert.equal(await read(disk, [new Uint8Array(8192)], 0), null, 'the disk goes on');
        await disk.close();
        memfd.close();
      }
    });

    test('many operations at a time, more than fit: each ends once, with its own bytes', async () => {
      const bytes = pattern(1 << 20);
      const disk = await openDisk(image(bytes), false);
      const reads = Array.from({ length: 300 }, (_, i) => {
        const parts = Array.from({ length: 1 + (i % 40) }, () => new Uint8Array(1 + ((i * 97) % 1500)));
        return { parts, offset: i * 3000 };
      });
      const results = await Promise.all(reads.map(({ parts, offset }) => read(disk, parts, offset)));
      assert.deepEqual(new Set(results), new Set([null]));
      for (const { parts, offset } of reads) {
        const got = Buffer.concat(parts);
        assert.ok(got.equals(bytes.subarray(offset, offset + got.length)), `at ${offset}`);
      }
      await Promise.all(reads.map(({ offset }, i) => write(disk, [new Uint8Array(2999).fill(i)], offset)));
      const whole = new Uint8Array(900_000);
      assert.equal(await read(disk, [whole], 0), null);
      for (const [i, { offset }] of reads.entries()) {
        assert.deepEqual([whole[offset], whole[offset + 2998]], [i & 0xff, i & 0xff]);
      }
      await disk.close();
    });
  });
}

test('an image has a ring of its own exactly where there is io_uring', async () => {
  const [threads, ring] = diskIos(poller);
  const file = image(pattern(512));
  const rings = () => census().fds.io_uring ?? 0;
  const before = rings();
  const first = await openDiskFile(file, true, threads);
  assert.equal(rings(), before);
  const second = await openDiskFile(file, true, ring);
  assert.equal(rings() > before, whyNoRing() === null);
  await first.close();
  await second.close();
  assert.equal(rings(), before);
});
