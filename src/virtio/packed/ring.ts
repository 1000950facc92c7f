import { layout, u16, u32, u64 } from '../../wire/layout.ts';

/*
 * Layout of a packed virtqueue (virtio 1.3, section 2.8). The ring is accessed through u32 words in the byte order
 * of the host, which is little-endian on every platform that is supported. Id and flags of a descriptor share a word,
 * and so do both fields of an event suppression structure: each is read and written at once.
 */

/** One descriptor, available or used (2.8.13). */
const pvirtqDesc = layout('pvirtq_desc', 'virtio 1.3, 2.8.13', 16, {
  addr: u64(0, 'bus address of the buffer'),
  len: u32(8, 'bytes; when used, bytes that were written'),
  id: u16(12, 'buffer id, in the last descriptor of a chain'),
  flags: u16(14, 'NEXT 1, WRITE 2, INDIRECT 4, AVAIL 0x80, USED 0x8000'),
});

/** How one side wants to be notified (2.8.14). */
const pvirtqEventSuppress = layout('pvirtq_event_suppress', 'virtio 1.3, 2.8.14', 4, {
  desc: u16(0, 'position of a descriptor in bits 0..14, its wrap counter in bit 15'),
  flags: u16(2, 'ENABLE 0, DISABLE 1, DESC 2'),
});

/** Of a descriptor's word of id and flags. */
export const ID_MASK = 0xffff;
export const FLAGS_SHIFT = 16;

const AVAIL = 0x80;
const USED = 0x8000;

/** What both flags say together with a wrap counter (2.8.1). */
export const availFlags = (wrap: number): number => (wrap === 1 ? AVAIL : USED);
export const usedFlags = (wrap: number): number => (wrap === 1 ? AVAIL | USED : 0);
export const isAvail = (flags: number, wrap: number): boolean => (flags & (AVAIL | USED)) === availFlags(wrap);
export const isUsed = (flags: number, wrap: number): boolean => (flags & (AVAIL | USED)) === usedFlags(wrap);
/** Whether the device has used the descriptor in this lap, also when the driver has made it available again since. */
export const wasUsed = (flags: number, wrap: number): boolean => ((flags & USED) !== 0 ? 1 : 0) === wrap;

const EVENT_FLAGS_MASK = 3;
/** Values of an event suppression structure as a word. */
export const EVENT_ENABLE = 0;
export const EVENT_DISABLE = 1 << 16;
const EVENT_DESC = 2 << 16;

export const packedRingBytes = (size: number): { desc: number; driver: number; device: number } => ({
  desc: pvirtqDesc.size * size,
  driver: pvirtqEventSuppress.size,
  device: pvirtqEventSuppress.size,
});

/** Alignment of the three parts in bytes (2.8). */
export const packedRingAlign = { desc: 16, driver: 4, device: 4 } as const;

/** A place in the ring with the wrap counter of the lap (2.8.1). */
export class RingPosition {
  readonly #size: number;
  index: number;
  wrap: number;

  constructor(size: number, index = 0, wrap = 1) {
    this.#size = size;
    this.index = index;
    this.wrap = wrap;
  }

  /** @param count descriptors, at most the size of the queue */
  advance(count: number): void {
    this.index += count;
    if (this.index < this.#size) return;
    this.index -= this.#size;
    this.wrap ^= 1;
  }

  copy(): RingPosition {
    return new RingPosition(this.#size, this.index, this.wrap);
  }

  equals(other: RingPosition): boolean {
    return this.index === other.index && this.wrap === other.wrap;
  }

  /** Position and wrap counter in one u16 (2.8.14). */
  get packed(): number {
    return this.index | (this.wrap << 15);
  }
}

/** The word that asks for a notification once the descriptor at `position` has changed. */
export const eventAt = (position: RingPosition): number => (EVENT_DESC | position.packed) >>> 0;

/**
 * Whether a side that wrote `event` wants to hear of the last `count` descriptors before `next` (2.8.10). What is not
 * permitted counts as a wish to be notified.
 */
export function wantsEvent(event: number, eventIdx: boolean, size: number, next: RingPosition, count: number): boolean {
  const flags = (event >>> 16) & EVENT_FLAGS_MASK;
  if (flags === EVENT_DISABLE >>> 16) return false;
  const offset = event & 0x7fff;
  if (flags !== EVENT_DESC >>> 16 || !eventIdx || offset >= size) return true;
  // Two laps in a row, so that a position with its wrap counter is one number.
  const laps = 2 * size;
  const at = offset + ((event & 0x8000) !== 0 ? 0 : size);
  const end = next.index + (next.wrap === 1 ? 0 : size);
  return (end - at - 1 + 2 * laps) % laps < count;
}
