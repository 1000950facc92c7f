import { assert } from '../../kit/assert.ts';
import { limits } from '../../kit/limits.ts';
import { DESC_INDIRECT, DESC_NEXT, DESC_WRITE, descBytes, descWords } from '../chain.ts';
import { feature } from '../features.ts';
import {
  type BufferRange,
  type DriverQueue,
  type DriverQueueSetup,
  type IndirectTable,
  QueueFault,
  type UsedBuffer,
} from '../queue.ts';
import {
  AVAIL_RING,
  availEventAt,
  passesEvent,
  RING_FLAGS,
  RING_IDX,
  RING_SUPPRESS,
  USED_RING,
  usedEventAt,
} from './ring.ts';

/** The private half of a split driver queue as plain data. */
export interface SplitDriverState {
  readonly layout: 'split';
  readonly availNext: number;
  readonly availPublished: number;
  readonly usedNext: number;
  readonly usedSeen: number;
  readonly freeHead: number;
  readonly freeDescriptors: number;
  readonly next: Uint16Array;
  readonly length: Uint16Array;
  readonly exposed: Uint8Array;
  readonly writable: Float64Array;
  readonly added: Uint16Array;
  readonly batch: UsedBuffer | undefined;
}

const ALL_INDICES = 0x10000;
const LENGTH_MAX = 0xffff_ffff;

/**
 * The driver half of a split queue (virtio 1.3, 2.7). With IN_ORDER the free list never changes its order: chains come
 * back as they went, so descriptors are used in the order of the ring (2.7.9).
 */
export class SplitDriver implements DriverQueue {
  readonly setup: DriverQueueSetup;
  readonly size: number;
  readonly #eventIdx: boolean;
  readonly #indirect: boolean;
  readonly #inOrder: boolean;
  readonly #desc: Uint32Array;
  readonly #avail: Uint16Array;
  readonly #used: Uint16Array;
  readonly #usedElements: Uint32Array;
  /** Free list and chains; private, because the device could change the links in shared memory. */
  readonly #next: Uint16Array;
  #freeHead: number;
  #freeDescriptors: number;
  /** By head: table entries of the chain, 0 when the head is not outstanding. */
  readonly #length: Uint16Array;
  /** By head: 1 once the device was shown it. */
  readonly #exposed: Uint8Array;
  /** By head: bytes the device may write. */
  readonly #writable: Float64Array;
  /** Private copy of the available ring. */
  readonly #added: Uint16Array;
  #availNext: number;
  #availPublished: number;
  #usedNext: number;
  #usedSeen: number;
  /** With IN_ORDER: the chain that ends the batch being returned. */
  #batch: UsedBuffer | undefined;
  /** Chains published and not yet returned. */
  #outstanding: number;
  /** Chains published since the last decision about a kick. */
  #unkicked: number;
  #fault: QueueFault | undefined;

  constructor(setup: DriverQueueSetup, state: SplitDriverState | undefined) {
    const { size, memory } = setup;
    this.setup = setup;
    this.size = size;
    this.#eventIdx = setup.features.has(feature.EVENT_IDX);
    this.#indirect = setup.features.has(feature.INDIRECT_DESC);
    this.#inOrder = setup.features.has(feature.IN_ORDER);
    const { desc, driver, device } = memory;
    this.#desc = new Uint32Array(desc.buffer, desc.byteOffset, size * descWords);
    this.#avail = new Uint16Array(driver.buffer, driver.byteOffset, driver.length / 2);
    this.#used = new Uint16Array(device.buffer, device.byteOffset, device.length / 2);
    this.#usedElements = new Uint32Array(device.buffer, device.byteOffset, USED_RING + 2 * size);
    this.#next = state?.next.slice() ?? Uint16Array.from({ length: size }, (_, i) => (i + 1) % size);
    this.#freeHead = state?.freeHead ?? 0;
    this.#freeDescriptors = state?.freeDescriptors ?? size;
    this.#length = state?.length.slice() ?? new Uint16Array(size);
    this.#exposed = state?.exposed.slice() ?? new Uint8Array(size);
    this.#writable = state?.writable.slice() ?? new Float64Array(size);
    this.#added = state?.added.slice() ?? new Uint16Array(size);
    this.#availNext = state?.availNext ?? 0;
    this.#availPublished = state?.availPublished ?? 0;
    this.#usedNext = state?.usedNext ?? 0;
    this.#usedSeen = state?.usedSeen ?? 0;
    this.#batch = state?.batch;
    this.#outstanding = (this.#availPublished - this.#usedNext) & 0xffff;
    this.#unkicked = state === undefined ? 0 : ALL_INDICES;
  }

  get freeDescriptors(): number {
    return this.#freeDescriptors;
  }

  get notificationData(): number {
    return this.#availNext;
  }

  save(): SplitDriverState {
    return {
      layout: 'split',
      availNext: this.#availNext,
      availPublished: this.#availPublished,
      usedNext: this.#usedNext,
      usedSeen: this.#usedSeen,
      freeHead: this.#freeHead,
      freeDescriptors: this.#freeDescriptors,
      next: this.#next.slice(),
      length: this.#length.slice(),
      exposed: this.#exposed.slice(),
      writable: this.#writable.slice(),
      added: this.#added.slice(),
      batch: this.#batch,
    };
  }

  add(
    readable: readonly BufferRange[],
    writable: readonly BufferRange[],
    options: { readonly indirect?: IndirectTable } = {},
  ): number | undefined {
    const count = readable.length + writable.length;
    const table = options.indirect;
    assert(count > 0, 'a chain has at least one buffer');
    if (table === undefined) assert(count <= this.size, 'a chain fits into the queue');
    const needed = table === undefined ? count : 1;
    if (needed > this.#freeDescriptors) return undefined;
    const head = this.#freeHead;
    if (table === undefined) this.#freeHead = this.#writeChain(this.#desc, head, readable, writable, this.#next);
    else {
      this.#writeTable(table, readable, writable);
      this.#writeDesc(this.#desc, head, table.hi, table.lo, count * descBytes, DESC_INDIRECT, 0);
      this.#freeHead = this.#next[head]!;
    }
    this.#freeDescriptors -= needed;
    this.#length[head] = needed;
    this.#exposed[head] = 0;
    let room = 0;
    for (const buffer of writable) room += buffer.length;
    this.#writable[head] = room;
    const slot = this.#availNext & (this.size - 1);
    this.#added[slot] = head;
    this.#avail[AVAIL_RING + slot] = head;
    this.#availNext = (this.#availNext + 1) & 0xffff;
    return head;
  }

  #writeTable(table: IndirectTable, readable: readonly BufferRange[], writable: readonly BufferRange[]): void {
    const count = readable.length + writable.length;
    assert(this.#indirect, 'indirect descriptors were negotiated');
    assert(count <= limits.chainDescriptorsMax, 'an indirect chain is within the limit');
    assert(count * descWords <= table.words.length, 'the chain fits into the indirect table');
    this.#writeChain(table.words, 0, readable, writable, undefined);
  }

  /** @param links where entry n is followed by links[n]; without it by n + 1. @returns the entry after the last */
  #writeChain(
    words: Uint32Array,
    first: number,
    readable: readonly BufferRange[],
    writable: readonly BufferRange[],
    links: Uint16Array | undefined,
  ): number {
    let at = first;
    let left = readable.length + writable.length;
    for (let i = 0; left > 0; i++, left--) {
      const write = i >= readable.length;
      const buffer = write ? writable[i - readable.length]! : readable[i]!;
      assert(buffer.length >= 1 && buffer.length <= LENGTH_MAX, 'a buffer has 1 to 2^32 - 1 bytes');
      const next = links === undefined ? at + 1 : links[at]!;
      const more = left > 1;
      const flags = (write ? DESC_WRITE : 0) | (more ? DESC_NEXT : 0);
      this.#writeDesc(words, at, buffer.hi, buffer.lo, buffer.length, flags, more ? next : 0);
      at = next;
    }
    return at;
  }

  #writeDesc(
    words: Uint32Array,
    index: number,
    hi: number,
    lo: number,
    length: number,
    flags: number,
    next: number,
  ): void {
    const at = index * descWords;
    words[at] = lo;
    words[at + 1] = hi;
    words[at + 2] = length;
    words[at + 3] = flags | (next << 16);
  }

  kick(): boolean {
    while (this.#availPublished !== this.#availNext) {
      this.#exposed[this.#added[this.#availPublished & (this.size - 1)]!] = 1;
      this.#availPublished = (this.#availPublished + 1) & 0xffff;
      this.#outstanding += 1;
      this.#unkicked += 1;
    }
    const count = this.#unkicked;
    if (count === 0) return false;
    this.#unkicked = 0;
    // 2.7.13.3.1: entries and descriptors before idx; 2.7.13.4.1: idx before the look at the device's word.
    Atomics.store(this.#avail, RING_IDX, this.#availNext);
    if (!this.#eventIdx) return (Atomics.load(this.#used, RING_FLAGS) & RING_SUPPRESS) === 0;
    return passesEvent(Atomics.load(this.#used, availEventAt(this.size)), this.#availNext, count);
  }

  next(): UsedBuffer | QueueFault | undefined {
    if (this.#fault !== undefined) return this.#fault;
    let batch = this.#batch;
    if (batch === undefined) {
      const found = this.#look();
      if (!this.#inOrder || found === undefined || found instanceof QueueFault) {
        return found === undefined || found instanceof QueueFault ? found : this.#complete(found);
      }
      if (!this.#endsBatch(found.token)) {
        return this.#fail(new QueueFault('used-id', `used element names ${found.token}, which is out of order`));
      }
      batch = found;
    }
    const oldest = this.#added[this.#usedNext & (this.size - 1)]!;
    this.#batch = batch.token === oldest ? undefined : batch;
    // 2.7.9: what the batch skips was used completely.
    return this.#complete(batch.token === oldest ? batch : { token: oldest, writtenBytes: this.#writable[oldest]! });
  }

  /** The used element that comes next, checked. */
  #look(): UsedBuffer | QueueFault | undefined {
    if (this.#usedNext === this.#usedSeen) {
      // 2.7.14: idx first, then the elements that it covers.
      const idx = Atomics.load(this.#used, RING_IDX);
      const step = (idx - this.#usedNext) & 0xffff;
      if (step === 0) return undefined;
      if (step > this.#outstanding)
        return this.#fail(new QueueFault('used-index', `used.idx is ${step} entries ahead`));
      this.#usedSeen = idx;
    }
    const at = USED_RING + 2 * (this.#usedNext & (this.size - 1));
    const head = this.#usedElements[at]!;
    const writtenBytes = this.#usedElements[at + 1]!;
    if (head >= this.size || this.#length[head] === 0 || this.#exposed[head] === 0) {
      return this.#fail(new QueueFault('used-id', `used element names ${head}, which is not outstanding`));
    }
    if (writtenBytes > this.#writable[head]!) {
      return this.#fail(new QueueFault('used-length', `${writtenBytes} bytes of ${this.#writable[head]} writable`));
    }
    return { token: head, writtenBytes };
  }

  /** Whether the chains that used.idx covers include `head`. */
  #endsBatch(head: number): boolean {
    const step = (this.#usedSeen - this.#usedNext) & 0xffff;
    for (let i = 0; i < step; i++) if (this.#added[(this.#usedNext + i) & (this.size - 1)] === head) return true;
    return false;
  }

  #complete(used: UsedBuffer): UsedBuffer {
    this.#free(used.token);
    this.#usedNext = (this.#usedNext + 1) & 0xffff;
    this.#outstanding -= 1;
    return used;
  }

  #free(head: number): void {
    const count = this.#length[head]!;
    if (!this.#inOrder) {
      let last = head;
      for (let i = 1; i < count; i++) last = this.#next[last]!;
      this.#next[last] = this.#freeHead;
      this.#freeHead = head;
    }
    this.#freeDescriptors += count;
    this.#length[head] = 0;
  }

  suppressInterrupts(): void {
    // 2.7.7.1: with EVENT_IDX flags stay 0, and a used_event that was passed suppresses by itself.
    if (!this.#eventIdx) Atomics.store(this.#avail, RING_FLAGS, RING_SUPPRESS);
  }

  enableInterrupts(): boolean {
    if (this.#eventIdx) Atomics.store(this.#avail, usedEventAt(this.size), this.#usedNext);
    else Atomics.store(this.#avail, RING_FLAGS, 0);
    // 2.7.14: our word first, then the look at idx; the device does the opposite.
    if (this.#fault !== undefined) return false;
    return Atomics.load(this.#used, RING_IDX) !== this.#usedNext;
  }

  #fail(fault: QueueFault): QueueFault {
    this.#fault = fault;
    return fault;
  }
}
