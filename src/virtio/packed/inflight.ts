import { assert } from '../../kit/assert.ts';
import { bytes, layout, u8, u16, u32, u64 } from '../../wire/layout.ts';
import { RingPosition } from './ring.ts';

const source = 'vhost-user protocol, "Inflight I/O tracking"';

/** Head of the log of one packed queue. */
const queueRegionPacked = layout('QueueRegionPacked', source, 32, {
  features: u64(0, 'feature flags of the region: 0'),
  version: u16(8, '1; 0 while the region is not initialised'),
  desc_num: u16(10, 'entries of desc, the queue size'),
  free_head: u16(12, 'first entry of the free list; desc_num when it is empty'),
  old_free_head: u16(14, 'the same, without what is not yet certain'),
  used_idx: u16(16, 'where the next used descriptor goes'),
  old_used_idx: u16(18, 'the same, without what is not yet certain'),
  used_wrap_counter: u8(20, 'of used_idx'),
  old_used_wrap_counter: u8(21, 'of old_used_idx'),
  padding: bytes(22, 10, 'zero'),
});

/** A copy of one descriptor that was taken. */
const descStatePacked = layout('DescStatePacked', source, 32, {
  inflight: u8(0, 'first entry of a chain: 1 while it is in flight'),
  padding: u8(1, 'zero'),
  next: u16(2, 'next entry, of the chain or of the free list'),
  last: u16(4, 'first entry of a chain: its last one'),
  num: u16(6, 'first entry of a chain: how many it has'),
  counter: u64(8, 'first entry of a chain: order in which chains were taken'),
  id: u16(16, 'buffer id'),
  flags: u16(18, 'descriptor flags'),
  len: u32(20, 'bytes'),
  addr: u64(24, 'bus address'),
});

export function packedInflightBytes(queueSize: number): number {
  return queueRegionPacked.size + queueSize * descStatePacked.size;
}

const VERSION = 1;
const head = queueRegionPacked.at;
const entry = descStatePacked.at;
const entryAt = (index: number): number => queueRegionPacked.size + index * descStatePacked.size;

/** What a process left behind. */
export interface PackedRecovery {
  /** Where the next used descriptor goes. */
  readonly used: RingPosition;
  /** Chains in flight in the order they were taken: the first log entry and the number of descriptors. */
  readonly chains: ReadonlyArray<{ readonly entry: number; readonly count: number }>;
}

/**
 * Remembers which chains of a packed queue are being executed, with their descriptors: used descriptors overwrite
 * those in the ring. The memory outlives the process. Each store leaves a state from which `recover` finds the truth;
 * the flags of the first used descriptor of a batch are the commit point. As to the order of stores, see
 * `SplitInflightLog`.
 */
export class PackedInflightLog {
  readonly queueSize: number;
  readonly #u8: Uint8Array;
  readonly #u16: Uint16Array;
  readonly #u32: Uint32Array;
  readonly #u64: BigUint64Array;
  readonly #afterStore: (() => void) | undefined;
  #counter = 0;

  /** @param memory exactly `packedInflightBytes(queueSize)` bytes, aligned to 8 */
  constructor(memory: Uint8Array, queueSize: number, afterStore?: () => void) {
    assert(memory.length === packedInflightBytes(queueSize), 'the in-flight log has the size of its queue');
    assert(memory.byteOffset % 8 === 0, 'the in-flight log is aligned');
    this.queueSize = queueSize;
    this.#u8 = memory;
    this.#u16 = new Uint16Array(memory.buffer, memory.byteOffset, memory.length / 2);
    this.#u32 = new Uint32Array(memory.buffer, memory.byteOffset, memory.length / 4);
    this.#u64 = new BigUint64Array(memory.buffer, memory.byteOffset, memory.length / 8);
    this.#afterStore = afterStore;
  }

  /** Whether a queue was started on this log and not reset since: opening the queue then continues it. */
  get resumable(): boolean {
    return this.#get16(head.version) === VERSION && this.#get16(head.desc_num) === this.queueSize;
  }

  /** Forgets everything, as a reset of the device or queue demands. */
  reset(): void {
    this.#put16(head.version, 0);
  }

  /** Begins the log of a queue whose ring is at its beginning. */
  start(): void {
    this.#put16(head.version, 0);
    this.#u8.fill(0);
    this.#stored();
    this.#put16(head.desc_num, this.queueSize);
    for (let i = 0; i < this.queueSize; i++) this.#put16(entryAt(i) + entry.next, i + 1);
    this.#put8(head.used_wrap_counter, 1);
    this.#put8(head.old_used_wrap_counter, 1);
    this.#counter = 0;
    // Last: a kill before this leaves a log that is not resumable, of a queue that has taken nothing.
    this.#put16(head.version, VERSION);
  }

  /**
   * Before a chain is executed.
   * @param words copies of its descriptors, laid out as in the ring
   * @returns the log entry that stands for the chain
   */
  taken(words: Uint32Array, count: number): number {
    const first = this.#get16(head.old_free_head);
    const at = entryAt(first);
    this.#put16(at + entry.num, 0);
    this.#put32(at + entry.counter, this.#counter >>> 0);
    this.#put32(at + entry.counter + 4, Math.floor(this.#counter / 2 ** 32));
    this.#counter += 1;
    this.#put8(at + entry.inflight, 1);
    let last = first;
    let free = first;
    for (let i = 0; i < count; i++) {
      last = free;
      const to = entryAt(free);
      this.#put32(to + entry.addr, words[4 * i]!);
      this.#put32(to + entry.addr + 4, words[4 * i + 1]!);
      this.#put32(to + entry.len, words[4 * i + 2]!);
      // id and flags lie here as they do in a descriptor.
      this.#put32(to + entry.id, words[4 * i + 3]!);
      free = this.#get16(to + entry.next);
    }
    this.#put16(at + entry.last, last);
    this.#put16(at + entry.num, count);
    this.#put16(head.free_head, free);
    // From here on the chain is in flight: before this store recovery rolls it back.
    this.#put16(head.old_free_head, free);
    return first;
  }

  /** Before a batch of used descriptors is published: gives the entries of its `count` first chains back. */
  completing(entries: Uint16Array, count: number, used: RingPosition): void {
    let free = this.#get16(head.free_head);
    for (let i = 0; i < count; i++) {
      const first = entries[i]!;
      this.#put16(entryAt(this.#get16(entryAt(first) + entry.last)) + entry.next, free);
      this.#put16(head.free_head, first);
      free = first;
    }
    this.#put16(head.used_idx, used.index);
    this.#put8(head.used_wrap_counter, used.wrap);
  }

  /** After the batch was published. */
  published(entries: Uint16Array, count: number): void {
    for (let i = 0; i < count; i++) this.#put8(entryAt(entries[i]!) + entry.inflight, 0);
    this.#commit();
  }

  #commit(): void {
    this.#put16(head.old_free_head, this.#get16(head.free_head));
    const word = head.used_idx / 8;
    const now = this.#u64[word]!;
    // Index and wrap counter change in one store: half of it would not tell whether the batch was published.
    const index = now & 0xffffn;
    const wrap = (now >> 32n) & 0xffn;
    this.#u64[word] = (now & ~0xff00_ffff_0000n) | (index << 16n) | (wrap << 40n);
    this.#stored();
  }

  /** The queue has stored to its ring. */
  ringStored(): void {
    this.#stored();
  }

  /**
   * Settles what the last process left behind.
   * @param wasPublished whether the descriptor at a position of the ring is used; the driver can change that, and so
   *   decide whether the last batch is executed again
   * @returns the state to continue with, or what does not fit together
   */
  recover(wasPublished: (position: RingPosition) => boolean): PackedRecovery | { readonly inconsistent: string } {
    const old = this.#position(head.old_used_idx, head.old_used_wrap_counter);
    const now = this.#position(head.used_idx, head.used_wrap_counter);
    if (old === undefined || now === undefined) return { inconsistent: 'the position of the next used descriptor' };
    if (!old.equals(now) && wasPublished(old)) {
      this.#commit();
    } else {
      this.#put16(head.free_head, this.#get16(head.old_free_head));
      this.#put16(head.used_idx, old.index);
      this.#put8(head.used_wrap_counter, old.wrap);
    }
    const used = this.#position(head.used_idx, head.used_wrap_counter)!;
    const seen = new Uint8Array(this.queueSize);
    const free = this.#freeEntries(seen);
    if (typeof free !== 'number') return free;
    const chains: Array<{ entry: number; count: number }> = [];
    let total = free;
    for (let i = 0; i < this.queueSize; i++) {
      if (seen[i] === 1 || this.#u8[entryAt(i) + entry.inflight] !== 1) continue;
      const count = this.#get16(entryAt(i) + entry.num);
      if (!this.#isChain(i, count, seen)) return { inconsistent: `the chain at entry ${i}` };
      chains.push({ entry: i, count });
      total += count;
    }
    if (total !== this.queueSize) return { inconsistent: `${total} of ${this.queueSize} entries` };
    chains.sort((a, b) => this.#counterOf(a.entry) - this.#counterOf(b.entry));
    const last = chains.at(-1);
    this.#counter = last === undefined ? 0 : this.#counterOf(last.entry) + 1;
    return { used, chains };
  }

  /** Clears what the free list says is not in flight, and marks it. @returns its length */
  #freeEntries(seen: Uint8Array): number | { readonly inconsistent: string } {
    let count = 0;
    let index = this.#get16(head.free_head);
    for (; index < this.queueSize; index = this.#get16(entryAt(index) + entry.next)) {
      if (seen[index] === 1) return { inconsistent: `entry ${index} is free twice` };
      seen[index] = 1;
      count += 1;
      this.#put8(entryAt(index) + entry.inflight, 0);
    }
    return index === this.queueSize ? count : { inconsistent: `entry ${index} in the free list` };
  }

  #isChain(first: number, count: number, seen: Uint8Array): boolean {
    let index = first;
    for (let i = 0; i < count; i++) {
      if (index >= this.queueSize || seen[index] === 1) return false;
      seen[index] = 1;
      if (i === count - 1) return index === this.#get16(entryAt(first) + entry.last);
      index = this.#get16(entryAt(index) + entry.next);
    }
    return false;
  }

  /** Copies the descriptors of a chain of `recover` to `words`, laid out as in the ring. */
  descriptors(first: number, count: number, words: Uint32Array): void {
    let index = first;
    for (let i = 0; i < count; i++) {
      const from = entryAt(index) / 4;
      words[4 * i] = this.#u32[from + entry.addr / 4]!;
      words[4 * i + 1] = this.#u32[from + entry.addr / 4 + 1]!;
      words[4 * i + 2] = this.#u32[from + entry.len / 4]!;
      words[4 * i + 3] = this.#u32[from + entry.id / 4]!;
      index = this.#get16(entryAt(index) + entry.next);
    }
  }

  /** The buffer id of a chain of `recover`. */
  bufferId(first: number): number {
    return this.#get16(entryAt(this.#get16(entryAt(first) + entry.last)) + entry.id);
  }

  #position(indexAt: number, wrapAt: number): RingPosition | undefined {
    const index = this.#get16(indexAt);
    const wrap = this.#u8[wrapAt]!;
    return index < this.queueSize && wrap <= 1 ? new RingPosition(this.queueSize, index, wrap) : undefined;
  }

  #counterOf(index: number): number {
    const at = (entryAt(index) + entry.counter) / 4;
    return this.#u32[at + 1]! * 2 ** 32 + this.#u32[at]!;
  }

  #get16(at: number): number {
    return this.#u16[at / 2]!;
  }

  #put8(at: number, value: number): void {
    this.#u8[at] = value;
    this.#stored();
  }

  #put16(at: number, value: number): void {
    this.#u16[at / 2] = value;
    this.#stored();
  }

  #put32(at: number, value: number): void {
    this.#u32[at / 4] = value;
    this.#stored();
  }

  #stored(): void {
    if (this.#afterStore !== undefined) this.#afterStore();
  }
}
