import { createHash } from 'node:crypto';
import { type FileHandle, open } from 'node:fs/promises';
import { BlkDriver, type GuestBuffer, type GuestBus } from '../../guest/index.ts';
import { CliError, exitCode, usageError } from './exit-codes.ts';
import type { GuestArgs } from './guest-args.ts';
import { stderrProgress, writeOut } from './guest-output.ts';
import type { CliIo } from './io.ts';

const sector = 512;
const chunkBytes = 512 * 1024;
const down = (bytes: number): number => bytes - (bytes % sector);
const up = (bytes: number): number => down(bytes + sector - 1);

export const openDisk = (bus: GuestBus, device: number): Promise<BlkDriver> => BlkDriver.open(bus, device);

/** The range that --offset and --length choose; any bytes. */
function rangeOf(disk: BlkDriver, args: GuestArgs, lengthDefault?: number): { offset: number; length: number } {
  const offset = args.size('offset') ?? 0;
  const length = args.size('length') ?? lengthDefault ?? Math.max(0, disk.capacityBytes - offset);
  if (offset + length > disk.capacityBytes) {
    throw usageError(`bytes ${offset}..${offset + length} exceed the disk of ${disk.capacityBytes} bytes`);
  }
  return { offset, length };
}

/** Reads any bytes in order; a part is valid until the next one is asked for. */
async function* diskBytes(disk: BlkDriver, offset: number, length: number): AsyncGenerator<Uint8Array> {
  const start = down(offset);
  let at = start;
  for await (const part of disk.stream({ offset: start, length: up(offset + length) - start, chunkBytes })) {
    const from = Math.max(0, offset - at);
    const to = Math.min(part.length, offset + length - at);
    at += part.length;
    yield part.bytes.subarray(from, to);
  }
}

export async function blkRead(disk: BlkDriver, args: GuestArgs, io: CliIo): Promise<void> {
  const { offset, length } = rangeOf(disk, args);
  const path = args.path('out', 'FILE');
  const file = path === '-' ? undefined : await open(path, 'w');
  const progress = stderrProgress(io, 'reading', length);
  try {
    for await (const part of diskBytes(disk, offset, length)) {
      if (file !== undefined) await writeFully(file, part);
      // A stream may keep what it is given: it gets a copy.
      else await writeOut(io.stdout, Buffer.from(part));
      progress.add(part.length);
    }
  } finally {
    await file?.close();
  }
  io.stderr.write(`read ${length} bytes of device ${disk.device.info.number}, ${progress.mbPerSecond} MB/s\n`);
}

async function writeFully(file: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; ) at += (await file.write(bytes, at)).bytesWritten;
}

/** Fills buffers from a file or stdin: a buffer is full but for the last one. */
async function* inputChunks(path: string, into: Uint8Array): AsyncGenerator<Uint8Array> {
  if (path !== '-') {
    const file = await open(path, 'r');
    try {
      let filled = 0;
      for (;;) {
        const { bytesRead } = await file.read(into, filled, into.length - filled);
        filled += bytesRead;
        if (bytesRead > 0 && filled < into.length) continue;
        if (filled > 0) yield into.subarray(0, filled);
        if (bytesRead === 0) return;
        filled = 0;
      }
    } finally {
      await file.close();
    }
  }
  let filled = 0;
  for await (const piece of process.stdin as AsyncIterable<Uint8Array>) {
    for (let at = 0; at < piece.length; ) {
      const length = Math.min(piece.length - at, into.length - filled);
      into.set(piece.subarray(at, at + length), filled);
      filled += length;
      at += length;
      if (filled === into.length) {
        yield into;
        filled = 0;
      }
    }
  }
  if (filled > 0) yield into.subarray(0, filled);
}

export async function blkWrite(disk: BlkDriver, args: GuestArgs, io: CliIo): Promise<void> {
  const offset = args.size('offset') ?? 0;
  if (offset % sector !== 0) throw usageError('--offset is a multiple of 512 when writing');
  const path = args.path('in', 'FILE');
  const buffer = disk.device.alloc(chunkBytes, 4096);
  const progress = stderrProgress(io, 'writing', disk.capacityBytes - offset);
  let at = offset;
  for await (const bytes of inputChunks(path, buffer.bytes)) {
    if (at + bytes.length > disk.capacityBytes) {
      throw new CliError(exitCode.dataMismatch, `the input exceeds the disk of ${disk.capacityBytes} bytes`);
    }
    await writePadded(disk, at, buffer, bytes.length);
    at += bytes.length;
    progress.add(bytes.length);
  }
  await disk.flush();
  disk.device.release(buffer);
  io.stderr.write(`wrote ${at - offset} bytes to device ${disk.device.info.number}, ${progress.mbPerSecond} MB/s\n`);
}

/** Writes bytes of a buffer; what follows them in their last sector stays as it was. */
async function writePadded(disk: BlkDriver, at: number, buffer: GuestBuffer, length: number): Promise<void> {
  const whole = up(length);
  if (whole > length) {
    const last = await disk.read((at + down(length)) / sector, sector);
    buffer.bytes.set(last.subarray(length % sector), length);
  }
  await disk.write(at / sector, buffer.slice(0, whole));
}

export async function blkVerify(disk: BlkDriver, args: GuestArgs, io: CliIo): Promise<void> {
  const wanted = args.sha256();
  const expected = wanted === undefined ? await fileSum(args) : { sha256: wanted, length: undefined };
  const { offset, length } = rangeOf(disk, args, expected.length);
  const hash = createHash('sha256');
  const progress = stderrProgress(io, 'verifying', length);
  for await (const part of diskBytes(disk, offset, length)) {
    hash.update(part);
    progress.add(part.length);
  }
  const actual = hash.digest('hex');
  if (actual !== expected.sha256) {
    throw new CliError(
      exitCode.dataMismatch,
      `device ${disk.device.info.number} has SHA-256 ${actual} over ${length} bytes, not ${expected.sha256}`,
    );
  }
  io.stdout.write(`${actual}  ${length} bytes, as expected\n`);
}

/** Sum of a file, or of as much of it as --length says. */
async function fileSum(args: GuestArgs): Promise<{ sha256: string; length: number }> {
  const most = args.size('length') ?? Number.MAX_SAFE_INTEGER;
  const hash = createHash('sha256');
  let length = 0;
  for await (const bytes of inputChunks(args.path('against', 'FILE'), new Uint8Array(chunkBytes))) {
    const part = bytes.subarray(0, Math.min(bytes.length, most - length));
    hash.update(part);
    length += part.length;
    if (length === most) break;
  }
  return { sha256: hash.digest('hex'), length };
}

export async function blkCopy(disk: BlkDriver, args: GuestArgs, io: CliIo): Promise<void> {
  const other = await openDisk(disk.device.bus, args.number('to', 0xffff) ?? args.number('from', 0xffff) ?? 0);
  const [source, target] = args.text('to') === undefined ? [other, disk] : [disk, other];
  try {
    const length = args.size('length') ?? source.capacityBytes;
    if (length % sector !== 0) throw usageError('--length is a multiple of 512 when copying');
    if (length > source.capacityBytes || length > target.capacityBytes) {
      throw usageError(`${length} bytes: the disks have ${source.capacityBytes} and ${target.capacityBytes}`);
    }
    const progress = stderrProgress(io, 'copying', length);
    let at = 0;
    for await (const part of source.stream({ length, chunkBytes })) {
      await target.write(at / sector, part);
      at += part.length;
      progress.add(part.length);
    }
    await target.flush();
    const [from, to] = [source.device.info.number, target.device.info.number];
    io.stderr.write(`copied ${length} bytes from device ${from} to ${to}, ${progress.mbPerSecond} MB/s\n`);
  } finally {
    await other.close();
  }
}
