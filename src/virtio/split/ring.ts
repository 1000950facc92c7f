import { layout, u16, u32, u64 } from '../../wire/layout.ts';

/*
 * Layout of a split virtqueue (virtio 1.3, section 2.7). The rings are accessed through typed arrays in the
 * byte order of the host, which is little-endian on every platform that is supported.
 */

/** One descriptor (2.7.5). */
const virtqDesc = layout('virtq_desc', 'virtio 1.3, 2.7.5', 16, {
  addr: u64(0, 'bus address of the buffer'),
  len: u32(8, 'bytes'),
  flags: u16(12, 'NEXT 1, WRITE 2, INDIRECT 4'),
  next: u16(14, 'index of the next descriptor when NEXT is set'),
});

/** Both rings start with u16 flags and u16 idx (2.7.6, 2.7.8). */
export const RING_FLAGS = 0;
export const RING_IDX = 1;
/** `VIRTQ_AVAIL_F_NO_INTERRUPT` and `VIRTQ_USED_F_NO_NOTIFY`. */
export const RING_SUPPRESS = 1;
/** First ring entry, in u16 words of the available ring. */
export const AVAIL_RING = 2;
/** First ring element, in u32 words of the used ring; an element is {id, len}. */
export const USED_RING = 1;

/** Position of `used_event` in u16 words of the available ring (2.7.7). */
export const usedEventAt = (size: number): number => AVAIL_RING + size;
/** Position of `avail_event` in u16 words of the used ring (2.7.10). */
export const availEventAt = (size: number): number => 2 + 4 * size;

/** Bytes of the three parts (2.7). The event fields are always counted: a driver reserves them in any case. */
export function splitRingBytes(size: number): { desc: number; driver: number; device: number } {
  return { desc: virtqDesc.size * size, driver: 6 + 2 * size, device: 6 + 8 * size };
}

/** Alignment of the three parts in bytes (2.7). */
export const splitRingAlign = { desc: 16, driver: 2, device: 4 } as const;

export const isSplitSize = (size: number): boolean => (size & (size - 1)) === 0;

/**
 * Whether a step from the index before the last `count` entries to `next` passes `event` (2.7.7.2, 2.7.10.1).
 * `count` may exceed 65535: then every index was passed.
 */
export const passesEvent = (event: number, next: number, count: number): boolean =>
  ((next - event - 1) & 0xffff) < count;
