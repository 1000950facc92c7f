import { lstatSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { needSuccess, needTool } from './tools.mjs';

const blockBytes = 4096;
const spareBytes = 16 * 1024 * 1024;

function measure(directory) {
  let [bytes, entries] = [blockBytes, 1];
  for (const name of readdirSync(directory)) {
    const file = path.join(directory, name);
    const found = lstatSync(file);
    if (found.isDirectory()) {
      const inside = measure(file);
      bytes += inside.bytes;
      entries += inside.entries;
    } else {
      bytes += Math.ceil(found.size / blockBytes) * blockBytes;
      entries += 1;
    }
  }
  return { bytes, entries };
}

/** Makes an ext4 image with the content of a directory; it is meant to be mounted read-only. */
export async function makeExt4(directory, image, label) {
  const mke2fs = needTool('mke2fs', 'e2fsprogs');
  const { bytes, entries } = measure(directory);
  const inodes = entries + 64;
  const blocks = Math.ceil((bytes * 1.02 + inodes * 256 + spareBytes) / blockBytes);
  const options = ['-q', '-F', '-t', 'ext4', '-b', `${blockBytes}`, '-O', '^has_journal', '-m', '0', '-I', '256'];
  const owner = ['-E', 'root_owner=0:0', '-L', label, '-N', `${inodes}`];
  await needSuccess([mke2fs, ...options, ...owner, '-d', directory, image, `${blocks}`]);
}
