import { assert } from '../../kit/assert.ts';
import { bytes, layout, u8, u16, u64 } from '../../wire/layout.ts';

const source = 'vhost-user protocol, "Inflight I/O tracking"';

/** Head of the log of one split queue. */
const queueRegionSplit = layout('QueueRegionSplit', source, 16, {
  features: u64(0, 'feature flags of the region: 0'),
  version: u16(8, '1; 0 while the region is not initialised'),
  desc_num: u16(10, 'entries of desc, the queue size'),
  last_batch_head: u16(12, 'first entry of the list of the last batch of used descriptors'),
  used_idx: u16(14, 'idx of the used ring after the last batch that is wholly recorded'),
});

/** State of one head descriptor. */
const descStateSplit = layout('DescStateSplit', source, 16, {
  inflight: u8(0, '1 from the moment the chain is taken until its used element is published'),
  padding: bytes(1, 5, 'zero'),
  next: u16(6, 'next entry of the list of the last batch'),
  counter: u64(8, 'order in which chains were taken'),
});

/** Bytes of the log of a queue of `queueSize` entries. */
export function splitInflightBytes(queueSize: number): number {
  return queueRegionSplit.size + queueSize * descStateSplit.size;
}

const VERSION = 1;
const head = queueRegionSplit.at;
const entry = descStateSplit.at;
const VERSION_AT = head.version / 2;
const DESC_NUM_AT = head.desc_num / 2;
const LAST_BATCH_AT = head.last_batch_head / 2;
const USED_IDX_AT = head.used_idx / 2;
const entryAt = (index: number): number => queueRegionSplit.size + index * descStateSplit.size;

/**
 * Remembers which chains of a split queue are being executed, so that after a kill at any point none is lost and
 * none that the driver saw completed is executed again. The memory outlives the process (a shared mapping of a
 * file). Each store leaves a state from which `recover` finds the truth; the used ring's idx is the commit point.
 *
 * The order of plain stores is enough: the next reader is another process that starts after this one is dead.
 */
export class SplitInflightLog {
  readonly queueSize: number;
  readonly #u8: Uint8Array;
  readonly #u16: Uint16Array;
  readonly #u32: Uint32Array;
  readonly #afterStore: (() => void) | undefined;
  #counter = 0;

  /**
   * @param memory exactly `splitInflightBytes(queueSize)` bytes, aligned to 8
   * @param afterStore called after each single store to the log or, by the queue, to the used ring; a test
   *   that throws here sees the memory as a kill at this point leaves it
   */
  constructor(memory: Uint8Array, queueSize: number, afterStore?: () => void) {
    assert(memory.length === splitInflightBytes(queueSize), 'the in-flight log has the size of its queue');
    assert(memory.byteOffset % 8 === 0, 'the in-flight log is aligned');
    this.queueSize = queueSize;
    this.#u8 = memory;
    this.#u16 = new Uint16Array(memory.buffer, memory.byteOffset, memory.length / 2);
    this.#u32 = new Uint32Array(memory.buffer, memory.byteOffset, memory.length / 4);
    this.#afterStore = afterStore;
  }

  /** Whether a queue was started on this log and not reset since: opening the queue then continues it. */
  get resumable(): boolean {
    return this.#u16[VERSION_AT] === VERSION && this.#u16[DESC_NUM_AT] === this.queueSize;
  }

  /** Forgets everything, as a reset of the device or queue demands. */
  reset(): void {
    this.#put16(VERSION_AT, 0);
  }

  /** Begins the log of a queue whose rings are at index 0. */
  start(): void {
    this.#put16(VERSION_AT, 0);
    this.#u8.fill(0);
    this.#stored();
    this.#put16(DESC_NUM_AT, this.queueSize);
    this.#counter = 0;
    // Last: a kill before this leaves a log that is not resumable, of a queue that has taken nothing.
    this.#put16(VERSION_AT, VERSION);
  }

  /**
   * Settles what the last process left behind.
   * @param usedIdx idx of the used ring; the driver could have changed it, so it is checked for plausibility only
   * @returns heads in flight in the order they were taken, or what does not fit together
   */
  recover(usedIdx: number): number[] | { readonly inconsistent: string } {
    const batch = (usedIdx - this.#u16[USED_IDX_AT]!) & 0xffff;
    if (batch > this.queueSize) return { inconsistent: `${batch} entries published by the last batch` };
    // The used ring was published but the process ended before it cleared the batch.
    let index = this.#u16[LAST_BATCH_AT]!;
    for (let i = 0; i < batch; i++) {
      if (index >= this.queueSize) return { inconsistent: `entry ${index} in the list of the last batch` };
      this.#putInflight(index, 0);
      index = this.#u16[(entryAt(index) + entry.next) / 2]!;
    }
    if (batch > 0) this.#put16(USED_IDX_AT, usedIdx);
    const heads: number[] = [];
    for (let i = 0; i < this.queueSize; i++) if (this.#u8[entryAt(i) + entry.inflight] === 1) heads.push(i);
    heads.sort((a, b) => this.#counterOf(a) - this.#counterOf(b));
    const last = heads.at(-1);
    this.#counter = last === undefined ? 0 : this.#counterOf(last) + 1;
    return heads;
  }

  /** Before a chain is executed. */
  taken(index: number): void {
    const at = (entryAt(index) + entry.counter) / 4;
    this.#u32[at] = this.#counter >>> 0;
    this.#stored();
    this.#u32[at + 1] = Math.floor(this.#counter / 2 ** 32);
    this.#stored();
    this.#counter += 1;
    this.#putInflight(index, 1);
  }

  /** Before its used element is published: links the chain into the batch. */
  completed(index: number): void {
    this.#put16((entryAt(index) + entry.next) / 2, this.#u16[LAST_BATCH_AT]!);
    this.#put16(LAST_BATCH_AT, index);
  }

  /** After used.idx was published: the first `count` of `heads` are the batch. */
  published(heads: Uint16Array, count: number, usedIdx: number): void {
    for (let i = 0; i < count; i++) this.#putInflight(heads[i]!, 0);
    this.#put16(USED_IDX_AT, usedIdx);
  }

  /** The queue has stored to the used ring. */
  ringStored(): void {
    this.#stored();
  }

  #counterOf(index: number): number {
    const at = (entryAt(index) + entry.counter) / 4;
    return this.#u32[at + 1]! * 2 ** 32 + this.#u32[at]!;
  }

  #putInflight(index: number, value: 0 | 1): void {
    this.#u8[entryAt(index) + entry.inflight] = value;
    this.#stored();
  }

  #put16(at: number, value: number): void {
    this.#u16[at] = value;
    this.#stored();
  }

  #stored(): void {
    if (this.#afterStore !== undefined) this.#afterStore();
  }
}
