import { limits } from '../../kit/limits.ts';
import { blkRange, blkRangeUnmap, blkRequestType, blkStatus, sectorBytes } from '../../virtio/blk.ts';
import { readU32 } from '../../wire/bytes.ts';
import { bytesIn, gather } from './parts.ts';

/** Sectors to discard or to zero. */
export interface SectorRange {
  readonly sector: number;
  readonly sectors: number;
  readonly unmap: boolean;
}

type RangeRequest = typeof blkRequestType.DISCARD | typeof blkRequestType.WRITE_ZEROES;

const mostSectors = {
  [blkRequestType.DISCARD]: limits.blkDiscardRangeMaxBytes / sectorBytes,
  [blkRequestType.WRITE_ZEROES]: limits.blkZeroRangeMaxBytes / sectorBytes,
} as const;

/**
 * Copies and checks the data of a DISCARD or WRITE_ZEROES request (virtio 1.3, 5.2.6.2). All ranges are good, or none
 * is applied.
 * @returns the ranges, or the status to end the request with: UNSUPP for a flag that the request does not have,
 *   IOERR for anything else
 */
export function readRanges(
  type: RangeRequest,
  parts: readonly Uint8Array[],
  capacitySectors: number,
): readonly SectorRange[] | number {
  const length = bytesIn(parts);
  const count = length / blkRange.size;
  if (!Number.isInteger(count) || count === 0 || count > limits.blkRangesPerRequest) return blkStatus.IOERR;
  const copy = gather(parts, length)!;
  const known = type === blkRequestType.DISCARD ? 0 : blkRangeUnmap;
  const { at, size } = blkRange;
  const ranges: SectorRange[] = [];
  let inside = true;
  for (let base = 0; base < length; base += size) {
    const flags = readU32(copy, base + at.flags);
    if ((flags & ~known) !== 0) return blkStatus.UNSUPP;
    // Above 2^53 the number is inexact, but far beyond any capacity all the same.
    const sector = readU32(copy, base + at.sector + 4) * 0x1_0000_0000 + readU32(copy, base + at.sector);
    const sectors = readU32(copy, base + at.sectors);
    inside &&= sectors <= mostSectors[type] && sector + sectors <= capacitySectors;
    ranges.push({ sector, sectors, unmap: (flags & blkRangeUnmap) !== 0 });
  }
  return inside ? ranges : blkStatus.IOERR;
}
