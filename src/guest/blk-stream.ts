import { VmsgError } from '../kit/errors.ts';
import { sectorBytes } from '../virtio/blk.ts';
import type { GuestBuffer } from './buffer.ts';

export interface BlkStreamOptions {
  /** First byte, a multiple of 512; 0 by default. */
  readonly offset?: number;
  /** Bytes, a multiple of 512; up to the end of the disk by default. */
  readonly length?: number;
  /** Bytes of a part, a multiple of 512; 512 KiB by default. */
  readonly chunkBytes?: number;
  /** Parts under way at a time; 4 by default. */
  readonly chunks?: number;
}

/** What a stream needs of a disk. */
export interface StreamSource {
  readonly capacityBytes: number;
  read(sector: number, into: GuestBuffer): Promise<unknown>;
  readonly device: { allocEqual(count: number, bytes: number): GuestBuffer[]; release(buffer: GuestBuffer): void };
}

/** See `BlkDriver.stream`. */
export async function* readBlkStream(
  blk: StreamSource,
  options: BlkStreamOptions,
): AsyncGenerator<GuestBuffer, void, void> {
  const { offset = 0, chunkBytes = 512 * 1024, chunks = 4 } = options;
  const length = options.length ?? blk.capacityBytes - offset;
  const whole = [offset, length, chunkBytes].every((n) => Number.isSafeInteger(n) && n >= 0 && n % sectorBytes === 0);
  if (!whole || chunkBytes === 0 || chunks < 1) throw new VmsgError('invalid-request', 'a stream has whole sectors');
  if (length === 0) return;
  const wanted = Math.min(chunkBytes, length);
  const buffers = blk.device.allocEqual(Math.min(chunks, Math.ceil(length / wanted)), wanted);
  const most = buffers[0]!.length;
  /** Reads under way in order; each settles on its own, so that none is unhandled. */
  const reads: Array<Promise<{ part: GuestBuffer } | { error: unknown }>> = [];
  let started = 0;
  const startOne = (buffer: GuestBuffer): void => {
    if (started >= length) return;
    const part = buffer.slice(0, Math.min(most, length - started));
    const sector = (offset + started) / sectorBytes;
    started += part.length;
    reads.push(
      blk.read(sector, part).then(
        () => ({ part }),
        (error: unknown) => ({ error }),
      ),
    );
  };
  try {
    for (const buffer of buffers) startOne(buffer);
    for (let i = 0; reads.length > 0; i = (i + 1) % buffers.length) {
      const result = await reads[0]!;
      if ('error' in result) throw result.error;
      yield result.part;
      reads.shift();
      startOne(buffers[i]!);
    }
  } finally {
    await Promise.all(reads);
    for (const buffer of buffers) blk.device.release(buffer);
  }
}
