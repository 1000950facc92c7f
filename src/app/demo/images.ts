import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  accessSync,
  closeSync,
  constants,
  createReadStream,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { delimiter, join } from 'node:path';
import { promisify } from 'node:util';
import { CliError, exitCode } from '../cli/exit-codes.ts';

const imageBytes = 64 * 1024 * 1024;
const patternBlockBytes = 1024 * 1024;

export interface DemoImage {
  readonly path: string;
  readonly sizeBytes: number;
  /** What it is, for the story. */
  readonly what: string;
}

/** mke2fs is in /usr/sbin, which an ordinary user does not search. */
function findMke2fs(searchPath: string | undefined): string | undefined {
  const directories = [...(searchPath ?? '').split(delimiter), '/usr/sbin', '/sbin'];
  return directories
    .filter(Boolean)
    .map((directory) => join(directory, 'mke2fs'))
    .find(isExecutable);
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** A real ext4 image with files in it; a pattern where there is no mke2fs. */
export async function makeImage(directory: string, searchPath: string | undefined): Promise<DemoImage> {
  const path = join(directory, 'disk.img');
  const mke2fs = findMke2fs(searchPath);
  if (mke2fs === undefined) {
    writePattern(path);
    return { path, sizeBytes: imageBytes, what: 'a pattern image (mke2fs was not found, so no file system)' };
  }
  const tree = join(directory, 'tree');
  mkdirSync(tree);
  writeFileSync(join(tree, 'hello.txt'), 'This file was read by a guest over virtio-msg.\n');
  writePattern(join(tree, 'pattern.bin'), imageBytes / 2);
  // No reserved blocks and no lazy work: every block has its final contents now.
  const options = ['-q', '-t', 'ext4', '-m', '0', '-E', 'lazy_itable_init=0,lazy_journal_init=0', '-d', tree];
  await promisify(execFile)(mke2fs, [...options, path, `${imageBytes / 1024}`]);
  return { path, sizeBytes: statSync(path).size, what: 'an ext4 image' };
}

/** Contents that differ from block to block, without needing memory for all of it. */
function writePattern(path: string, length: number = imageBytes): void {
  const fd = openSync(path, 'w', 0o600);
  const block = Buffer.alloc(patternBlockBytes);
  for (let offset = 0; offset < length; offset += block.length) {
    for (let i = 0; i < block.length; i += 4) block.writeUInt32LE((Math.imul(offset + i, 2654435761) ^ i) >>> 0, i);
    writeSync(fd, block, 0, Math.min(block.length, length - offset));
  }
  closeSync(fd);
}

export function makeScratch(directory: string): DemoImage {
  const path = join(directory, 'scratch.img');
  const sizeBytes = 16 * 1024 * 1024;
  const fd = openSync(path, 'w', 0o600);
  ftruncateSync(fd, sizeBytes);
  fsyncSync(fd);
  closeSync(fd);
  return { path, sizeBytes, what: 'an empty scratch disk' };
}

/** The user's own file; it is only ever read. @throws CliError naming what is wrong */
export function userImage(path: string): DemoImage {
  const refuse = (why: string): never => {
    throw new CliError(exitCode.usage, `--disk ${path}: ${why}`);
  };
  try {
    const stat = statSync(path);
    if (!stat.isFile()) refuse('not a regular file');
    if (stat.size === 0) refuse('the file is empty; a disk has at least one byte');
    accessSync(path, constants.R_OK);
    return { path, sizeBytes: stat.size, what: path };
  } catch (error) {
    if (error instanceof CliError) throw error;
    return refuse((error as Error).message);
  }
}

/** SHA-256 of the file's own bytes, hex. */
export async function sha256Of(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path, { highWaterMark: 4 * 1024 * 1024 })) hash.update(chunk as Buffer);
  return hash.digest('hex');
}
