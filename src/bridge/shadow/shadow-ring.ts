import { assert } from '../../kit/assert.ts';
import { limits } from '../../kit/limits.ts';
import type { Scheduler } from '../../kit/scheduler.ts';
import { type BufferRange, type DriverQueue, type IndirectTable, QueueFault } from '../../virtio/queue.ts';

export interface ShadowRingOwner {
  /** The serving side wants to know about new chains. */
  kick(): void;
  /** The serving side broke the ring; it is of no use any more. */
  faulted(detail: string): void;
}

/** The driver half of one ring towards a serving side, which is not trusted. */
export class ShadowRing {
  readonly #rings: DriverQueue;
  readonly #owner: ShadowRingOwner;
  readonly #scheduler: Scheduler;
  /** By token of the ring. */
  readonly #done = new Map<number, (writtenBytes: number) => void>();
  #kickPlanned = false;
  #takePlanned = false;
  #open = true;

  constructor(rings: DriverQueue, owner: ShadowRingOwner, scheduler: Scheduler) {
    this.#rings = rings;
    this.#owner = owner;
    this.#scheduler = scheduler;
  }

  /** Descriptors of a chain without a table, at most. */
  get size(): number {
    return this.#rings.size;
  }

  /** Whether a chain of so many descriptors can be submitted now. A table counts as one. */
  hasRoom(descriptors: number): boolean {
    return this.#open && this.#rings.freeDescriptors >= descriptors;
  }

  /** Hands a chain over; there is room. @param done called once when it comes back, unless the ring ends before */
  submit(
    readable: readonly BufferRange[],
    writable: readonly BufferRange[],
    table: IndirectTable | undefined,
    done: (writtenBytes: number) => void,
  ): void {
    const token = this.#rings.add(readable, writable, table === undefined ? {} : { indirect: table });
    assert(token !== undefined, 'the ring has room');
    this.#done.set(token, done);
    this.#planKick();
  }

  /** One kick for all chains of this turn. */
  #planKick(): void {
    if (this.#kickPlanned) return;
    this.#kickPlanned = true;
    this.#scheduler.soon(() => {
      this.#kickPlanned = false;
      if (this.#open && this.#rings.kick()) this.#owner.kick();
    });
  }

  /** Takes chains that came back, a bounded number before others get their turn. */
  onUsed(): void {
    if (this.#takePlanned || !this.#take(limits.queueBatchChains)) return;
    this.#takePlanned = true;
    this.#scheduler.later(() => {
      this.#takePlanned = false;
      this.onUsed();
    });
  }

  /** The serving side is in reset: takes what it has completed, and nothing after that. */
  end(): void {
    this.#take(this.#rings.size);
    this.close();
  }

  /** Touches the memory no more. */
  close(): void {
    this.#open = false;
    this.#done.clear();
  }

  /** @returns true when there may be more */
  #take(most: number): boolean {
    for (let left = most; left > 0 && this.#open; ) {
      const used = this.#rings.next();
      if (used instanceof QueueFault) {
        this.#open = false;
        this.#owner.faulted(`${used.reason}, ${used.detail}`);
        return false;
      }
      if (used === undefined) {
        if (this.#rings.enableInterrupts()) continue;
        return false;
      }
      left -= 1;
      const done = this.#done.get(used.token);
      this.#done.delete(used.token);
      done?.(used.writtenBytes);
    }
    return this.#open;
  }
}
