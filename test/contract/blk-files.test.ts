import assert from 'node:assert/strict';
import {
  closeSync,
  fsyncSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, describe, test } from 'node:test';
import { openBlk } from '../../src/bridge/backend/blk.ts';
import { type DiskFile, openDiskFile } from '../../src/bridge/backend/disk-file.ts';
import type { DiskIo } from '../../src/bridge/backend/disk-io.ts';
import { systemClock } from '../../src/kit/clock.ts';
import { census } from '../../src/libc/census.ts';
import { linux } from '../../src/libc/constants.ts';
import { punchHole } from '../../src/libc/fallocate.ts';
import { createMemfd } from '../../src/libc/memfd.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { blkFeature } from '../../src/virtio/features.ts';
import { diskIos } from '../support/disk-ios.ts';

const directory = mkdtempSync(path.join(tmpdir(), 'vmsg-blk-'));
const poller = new LoopPoller();
after(() => {
  poller.close();
  rmSync(directory, { recursive: true });
});
const mib = 1024 * 1024;
const fill = 0x77;
const content = (length: number): Buffer => Buffer.alloc(length, fill);
const io = (start: (done: (error: Error | null) => void) => void): Promise<Error | null> => new Promise(start);

function image(name: string, bytes: Buffer): string {
  const file = path.join(directory, name);
  writeFileSync(file, bytes);
  const fd = openSync(file, 'r+');
  // Storage is allocated when data is written back.
  fsyncSync(fd);
  closeSync(fd);
  return file;
}

const allocated = (file: string): number => statSync(file).blocks * 512;

/** A memory file as an image: its file system cannot zero a range by itself, and with seals even less. */
async function withMemfd(
  seals: number,
  way: DiskIo,
  act: (disk: DiskFile, file: string) => Promise<void>,
): Promise<void> {
  const fd = createMemfd('image', 4 * mib, seals);
  const file = `/proc/self/fd/${fd.number}`;
  const disk = await openDiskFile(file, false, way);
  await act(disk, file);
  await disk.close();
  fd.close();
}

for (const way of diskIos(poller)) {
  describe(`disk file, ${way.kind}: holes and zeroes`, () => {
    test('a punched range reads as zero and gives its storage back; the size stays', async () => {
      const file = image('punch', content(4 * mib));
      const before = allocated(file);
      const disk = await openDiskFile(file, false, way);
      assert.ok(disk.canPunch);
      assert.equal(await io((done) => disk.punch(mib, 2 * mib, done)), null);
      await disk.close();
      assert.ok(allocated(file) <= before - 2 * mib, `${before} bytes became ${allocated(file)}`);
      const expected = content(4 * mib).fill(0, mib, 3 * mib);
      assert.ok(readFileSync(file).equals(expected));
    });

    test('an unaligned range is punched to the byte', async () => {
      const file = image('unaligned', content(mib));
      const disk = await openDiskFile(file, false, way);
      assert.equal(await io((done) => disk.punch(512, 100_352, done)), null);
      await disk.close();
      assert.ok(readFileSync(file).equals(content(mib).fill(0, 512, 512 + 100_352)));
    });

    test('a zeroed range reads as zero and keeps its storage', async () => {
      const file = image('zero', content(4 * mib + 100));
      const before = allocated(file);
      const disk = await openDiskFile(file, false, way);
      assert.equal(await io((done) => disk.zero(512, 3 * mib, done)), null);
      assert.equal(await io((done) => disk.zero(4 * mib, 100, done)), null);
      await disk.close();
      assert.ok(allocated(file) >= before - mib, 'nothing is given back');
      const expected = content(4 * mib + 100)
        .fill(0, 512, 512 + 3 * mib)
        .fill(0, 4 * mib);
      assert.ok(readFileSync(file).equals(expected));
    });

    test('where the file system cannot zero a range, zeroes are written', () =>
      withMemfd(0, way, async (disk, file) => {
        writeFileSync(file, content(4 * mib));
        assert.equal(await io((done) => disk.zero(1536, 3 * mib + 512, done)), null);
        assert.ok(readFileSync(file).equals(content(4 * mib).fill(0, 1536, 1536 + 3 * mib + 512)));
      }));

    test('where holes cannot be punched, the file says so, and the device does not offer it', async () => {
      const before = census();
      await withMemfd(linux.F_SEAL_WRITE, way, async (disk) => {
        assert.equal(disk.canPunch, false);
        assert.match(String(await io((done) => disk.punch(0, 4096, done))), /fallocate 4096 bytes at 0: EPERM/);
        assert.match(String(await io((done) => disk.zero(0, 4096, done))), /EPERM/);
      });
      const sealed = createMemfd('sealed', mib, linux.F_SEAL_WRITE);
      const host = { configChanged: () => assert.fail('nothing changes'), failed: () => assert.fail('nothing fails') };
      const spec = { path: `/proc/self/fd/${sealed.number}`, readOnly: false, serial: '' };
      const device = await openBlk(spec, host, systemClock, way);
      assert.ok(!device.description.featureBits.includes(blkFeature.DISCARD));
      assert.ok(device.description.featureBits.includes(blkFeature.WRITE_ZEROES));
      await device.close();
      sealed.close();
      assert.deepEqual(census(), before);
    });

    test('looking for holes at open changes nothing', async () => {
      const file = image('probe', content(mib + 1));
      const before = statSync(file);
      const disk = await openDiskFile(file, false, way);
      await disk.close();
      const now = statSync(file);
      assert.deepEqual([now.size, now.blocks], [before.size, before.blocks]);
      assert.ok(readFileSync(file).equals(content(mib + 1)));
    });

    test('an error of the kernel arrives with its name', async () => {
      const error = await io((done) => punchHole(-1, 0, 1, done));
      assert.equal((error as { errnoName?: string } | null)?.errnoName, 'EBADF');
    });

    test('close waits for what erases', async () => {
      const disk = await openDiskFile(image('busy', content(4 * mib)), false, way);
      let ended = 0;
      for (let i = 0; i < 8; i++) {
        disk.punch(i * 4096, 4096, () => (ended += 1));
        disk.zero(i * 4096, 4096, () => (ended += 1));
        disk.refresh(() => (ended += 1));
      }
      await disk.close();
      assert.equal(ended, 24);
    });

    test('the size is looked at again when asked', async () => {
      const file = image('resize', content(8192));
      const disk = await openDiskFile(file, true, way);
      for (const size of [100_000, 5, 0]) {
        const before = disk.sizeBytes;
        truncateSync(file, size);
        assert.equal(disk.sizeBytes, before);
        assert.equal(await io((done) => disk.refresh(done)), null);
        assert.equal(disk.sizeBytes, size);
      }
      await disk.close();
    });
  });
}
