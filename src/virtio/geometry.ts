import { limits } from '../kit/limits.ts';
import { type FeatureSet, feature } from './features.ts';
import { packedRingAlign, packedRingBytes } from './packed/ring.ts';
import { isSplitSize, splitRingAlign, splitRingBytes } from './split/ring.ts';

/** The two layouts of a virtqueue (virtio 1.3, 2.7 and 2.8). */
export type RingLayout = 'split' | 'packed';

/** Bytes, or an alignment in bytes, of the parts of a queue. */
export interface RingParts {
  readonly desc: number;
  readonly driver: number;
  readonly device: number;
}

/** The layout that was negotiated. */
export const ringLayout = (features: FeatureSet): RingLayout =>
  features.has(feature.RING_PACKED) ? 'packed' : 'split';

/** Bytes of the descriptor, driver and device areas of a queue. @param size entries */
export const ringBytes = (layout: RingLayout, size: number): RingParts =>
  layout === 'packed' ? packedRingBytes(size) : splitRingBytes(size);

/** Alignment of the three areas, bytes. */
export const ringAlign = (layout: RingLayout): RingParts => (layout === 'packed' ? packedRingAlign : splitRingAlign);

/** Whether a queue may have so many entries: up to `limits.queueSizeMax`, a power of two when split. */
export const isQueueSize = (layout: RingLayout, size: number): boolean =>
  Number.isInteger(size) && size >= 1 && size <= limits.queueSizeMax && (layout === 'packed' || isSplitSize(size));
