import type { RingLayout } from './geometry.ts';
import { PackedInflightLog, packedInflightBytes } from './packed/inflight.ts';
import { SplitInflightLog, splitInflightBytes } from './split/inflight.ts';

/** Remembers, past the end of the process, which chains of a queue are being executed. */
export type InflightLog = SplitInflightLog | PackedInflightLog;

/** Bytes of the log of a queue of `size` entries. */
export const inflightBytes = (layout: RingLayout, size: number): number =>
  layout === 'packed' ? packedInflightBytes(size) : splitInflightBytes(size);

/**
 * @param memory exactly `inflightBytes(layout, size)` bytes, aligned to 8
 * @param afterStore called after each single store to the log or, by the queue, to its rings; a test that throws
 *   here sees the memory as a kill at this point leaves it
 */
export const openInflightLog = (
  layout: RingLayout,
  memory: Uint8Array,
  size: number,
  afterStore?: () => void,
): InflightLog =>
  layout === 'packed'
    ? new PackedInflightLog(memory, size, afterStore)
    : new SplitInflightLog(memory, size, afterStore);
