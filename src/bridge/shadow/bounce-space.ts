import { RangeAllocator } from '../../guest/allocator.ts';
import { assert } from '../../kit/assert.ts';
import type { BufferRange } from '../../virtio/queue.ts';

const pageBytes = 4096;
/** Indirect tables need it; requests get it, too. */
const slotAlign = 16;

/** A part of the bounce memory. */
export class BounceSlot {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly #area: number;
  readonly #offset: number;
  readonly #release: () => void;

  constructor(memory: Uint8Array<ArrayBuffer>, area: number, offset: number, length: number, release: () => void) {
    this.bytes = memory.subarray(offset, offset + length);
    this.#area = area;
    this.#offset = offset;
    this.#release = release;
  }

  get busAddress(): bigint {
    return (BigInt(this.#area) << 48n) | BigInt(this.#offset);
  }

  /** As the serving side sees it. The memory is less than 4 GiB. */
  range(at: number, length: number): BufferRange {
    return { hi: this.#area << 16, lo: this.#offset + at, length };
  }

  /** The serving side uses it no more. */
  free(): void {
    this.#release();
  }
}

interface Arena {
  readonly start: number;
  readonly ranges: RangeAllocator;
}

/**
 * Divides bounce memory: rings first, then for each queue a part of its own, then a part that all share. With a part
 * of its own no queue waits for another one for ever, for example to send while all receive buffers are out.
 */
export class BounceSpace {
  /** Largest slot that there can ever be, bytes. */
  readonly largest: number;
  readonly #memory: Uint8Array<ArrayBuffer>;
  readonly #area: number;
  readonly #ringsEnd: number;
  readonly #own: readonly Arena[];
  readonly #shared: Arena;
  /** Queues that wait for room in the common part, in order. */
  readonly #line: number[] = [];
  #ringsUsed = 0;

  /** @param ringBytes enough for all calls of `ring`, alignment included */
  constructor(memory: Uint8Array<ArrayBuffer>, area: number, ringBytes: number, queues: number) {
    this.#memory = memory;
    this.#area = area;
    this.#ringsEnd = Math.ceil(ringBytes / pageBytes) * pageBytes;
    const room = memory.length - this.#ringsEnd;
    // A single queue needs no part of its own.
    const own = queues < 2 ? 0 : Math.floor(room / 2 / queues / pageBytes) * pageBytes;
    const arena = (start: number, length: number): Arena => ({ start, ranges: new RangeAllocator(length) });
    this.#own = own === 0 ? [] : Array.from({ length: queues }, (_, i) => arena(this.#ringsEnd + i * own, own));
    const sharedAt = this.#ringsEnd + this.#own.length * own;
    this.#shared = arena(sharedAt, memory.length - sharedAt);
    this.largest = Math.max(own, this.#shared.ranges.size);
  }

  /** Slots in use, rings aside. */
  get slots(): number {
    return this.#own.reduce((sum, { ranges }) => sum + ranges.count, this.#shared.ranges.count);
  }

  /** Memory for a part of a ring; it is never given back. */
  ring(length: number, align: number): BounceSlot {
    const offset = Math.ceil(this.#ringsUsed / align) * align;
    this.#ringsUsed = offset + length;
    assert(this.#ringsUsed <= this.#ringsEnd, 'the rings fit into their part');
    return new BounceSlot(this.#memory, this.#area, offset, length, () => {});
  }

  /** @returns undefined when there is no room now: the queue is in line for the common part then */
  take(queue: number, length: number): BounceSlot | undefined {
    const slot = this.#allocate(this.#own[queue], length);
    if (slot !== undefined) return slot;
    const first = this.#line[0] ?? queue;
    const common = first === queue ? this.#allocate(this.#shared, length) : undefined;
    if (common !== undefined) this.leave(queue);
    else if (!this.#line.includes(queue)) this.#line.push(queue);
    return common;
  }

  #allocate(arena: Arena | undefined, length: number): BounceSlot | undefined {
    const at = arena?.ranges.allocate(length, slotAlign);
    if (arena === undefined || at === undefined) return undefined;
    return new BounceSlot(this.#memory, this.#area, arena.start + at, length, () => arena.ranges.release(at));
  }

  /** The queue waits no more. */
  leave(queue: number): void {
    const at = this.#line.indexOf(queue);
    if (at >= 0) this.#line.splice(at, 1);
  }
}
