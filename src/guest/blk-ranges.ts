import { blkRange, blkRangeUnmap } from '../virtio/blk.ts';
import { encode } from '../wire/layout.ts';

/** What a device takes in one discard or write-zeroes request. */
export interface RangeLimits {
  /** Sectors of one range. */
  readonly sectors: number;
  /** Ranges of one request. */
  readonly ranges: number;
  /** Where to split, in sectors; 0 where it does not matter. */
  readonly alignment: number;
}

interface Range {
  readonly sector: number;
  readonly sectors: number;
}

/** Cuts sectors into ranges, and these into requests, as the device likes them. */
export function splitRanges(sector: number, sectors: number, limits: RangeLimits): Range[][] {
  const end = sector + sectors;
  const requests: Range[][] = [];
  for (let at = sector; at < end; ) {
    const ranges: Range[] = [];
    while (at < end && ranges.length < limits.ranges) {
      const next = rangeEnd(at, end, limits);
      ranges.push({ sector: at, sectors: next - at });
      at = next;
    }
    requests.push(ranges);
  }
  return requests;
}

function rangeEnd(at: number, end: number, { sectors, alignment }: RangeLimits): number {
  const most = at + sectors;
  if (most >= end) return end;
  const aligned = alignment > 0 ? most - (most % alignment) : most;
  return aligned > at ? aligned : most;
}

/** Writes ranges as the data of a request. @returns bytes written */
export function encodeRanges(ranges: readonly Range[], unmap: boolean, to: Uint8Array): number {
  for (const [i, { sector, sectors }] of ranges.entries()) {
    const value = { sector: BigInt(sector), sectors, flags: unmap ? blkRangeUnmap : 0 };
    encode(blkRange, value, to, i * blkRange.size);
  }
  return ranges.length * blkRange.size;
}
