import { limits } from '../../kit/limits.ts';
import { blkConfig, sectorBytes } from '../../virtio/blk.ts';
import { blkFeature } from '../../virtio/features.ts';
import { writeU64 } from '../../wire/bytes.ts';
import { encode } from '../../wire/layout.ts';

/** What a block device tells its driver, from what its image and its owner say. */
export interface BlkShape {
  readonly capacitySectors: number;
  readonly readOnly: boolean;
  readonly blockBytes: number;
  readonly canPunch: boolean;
  readonly queues: number;
}

export const blkQueueSize = 256;
/** Larger units are advice for the size of I/O (opt_io_size), not what a write is atomic in. */
const physicalBlockMaxBytes = 4096;

export function blkFeatureBits({ readOnly, canPunch, queues }: BlkShape): number[] {
  return [
    blkFeature.SIZE_MAX,
    blkFeature.SEG_MAX,
    blkFeature.BLK_SIZE,
    blkFeature.FLUSH,
    blkFeature.TOPOLOGY,
    ...(readOnly ? [blkFeature.RO] : [blkFeature.CONFIG_WCE, blkFeature.WRITE_ZEROES]),
    ...(canPunch ? [blkFeature.DISCARD] : []),
    ...(queues > 1 ? [blkFeature.MQ] : []),
  ];
}

/** The configuration space as it is after a reset: with a write cache. Fields of features not offered are zero. */
export function blkConfigBytes(shape: BlkShape): Uint8Array {
  const { capacitySectors, readOnly, blockBytes, canPunch, queues } = shape;
  const config = new Uint8Array(blkConfig.size);
  const zero = Object.fromEntries(Object.keys(blkConfig.fields).map((name) => [name, 0]));
  const physicalBytes = Math.min(blockBytes, physicalBlockMaxBytes);
  const values = {
    ...zero,
    capacity: BigInt(capacitySectors),
    sizeMax: limits.blkSegmentMaxBytes,
    segMax: blkQueueSize - 2,
    blkSize: sectorBytes,
    physicalBlockExp: Math.log2(physicalBytes / sectorBytes),
    minIoSize: physicalBytes / sectorBytes,
    optIoSize: blockBytes > physicalBytes ? blockBytes / sectorBytes : 0,
    ...(readOnly ? {} : { writeback: 1 }),
    ...(queues > 1 ? { numQueues: queues } : {}),
    ...(canPunch
      ? {
          maxDiscardSectors: limits.blkDiscardRangeMaxBytes / sectorBytes,
          maxDiscardSeg: limits.blkRangesPerRequest,
          discardSectorAlignment: blockBytes / sectorBytes,
        }
      : {}),
    ...(readOnly
      ? {}
      : {
          maxWriteZeroesSectors: limits.blkZeroRangeMaxBytes / sectorBytes,
          maxWriteZeroesSeg: limits.blkRangesPerRequest,
          writeZeroesMayUnmap: canPunch ? 1 : 0,
        }),
  };
  encode(blkConfig, values as never, config);
  return config;
}

/** Offset and bytes of the field that a resize changes. */
export function blkCapacityBytes(capacitySectors: number): { readonly offset: number; readonly data: Uint8Array } {
  const data = new Uint8Array(8);
  writeU64(data, 0, BigInt(capacitySectors));
  return { offset: blkConfig.at.capacity, data };
}
