import assert from 'node:assert/strict';

export const slotAt = 128;
const guardBytes = 256;
const guard = 0xa5;

/** A ring in the middle of larger memory, so that any access beyond it shows. */
export class GuardedRing {
  readonly memory: Uint8Array;
  readonly ring: Uint8Array;
  readonly words: DataView;
  readonly slot: number;
  readonly capacity: number;

  constructor(capacity: number, slot: number) {
    const bytes = slotAt + capacity * slot;
    this.memory = new Uint8Array(new SharedArrayBuffer(bytes + 2 * guardBytes)).fill(guard);
    this.ring = this.memory.subarray(guardBytes, guardBytes + bytes).fill(0);
    this.words = new DataView(this.memory.buffer, guardBytes, slotAt);
    this.slot = slot;
    this.capacity = capacity;
  }

  get head(): number {
    return this.words.getUint32(0, true);
  }
  set head(value: number) {
    this.words.setUint32(0, value, true);
  }
  get tail(): number {
    return this.words.getUint32(64, true);
  }
  set tail(value: number) {
    this.words.setUint32(64, value, true);
  }
  get sleep(): number {
    return this.words.getUint32(68, true);
  }
  set sleep(value: number) {
    this.words.setUint32(68, value, true);
  }

  slotBytes(index: number): Uint8Array {
    return this.ring.slice(slotAt + index * this.slot, slotAt + (index + 1) * this.slot);
  }

  allSlots(): Uint8Array {
    return this.ring.slice(slotAt);
  }

  /** Nothing outside the ring, nor in the unused bytes of its head, was written. */
  checkGuards(): void {
    const outside = [this.memory.subarray(0, guardBytes), this.memory.subarray(guardBytes + this.ring.length)];
    for (const part of outside)
      assert.ok(
        part.every((byte) => byte === guard),
        'memory around the ring was written',
      );
    const unused = [this.ring.subarray(4, 64), this.ring.subarray(72, slotAt)];
    for (const part of unused)
      assert.ok(
        part.every((byte) => byte === 0),
        'unused bytes of the ring were written',
      );
  }
}

/** A message that tells which one it is, of a length that follows from its number. */
export function numbered(sequence: number, maxBytes: number): Uint8Array {
  const bytes = new Uint8Array(4 + ((Math.imul(sequence, 0x9e37_79b1) >>> 8) % (maxBytes - 3)));
  bytes.fill((sequence & 0xff) | 1);
  new DataView(bytes.buffer).setUint32(0, sequence, true);
  return bytes;
}

/** The same as it lies in a slot. */
export function inSlot(message: Uint8Array, slot: number): Uint8Array {
  const bytes = new Uint8Array(slot);
  bytes.set(message);
  return bytes;
}
