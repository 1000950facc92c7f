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
  availFlags,
  EVENT_DISABLE,
  EVENT_ENABLE,
  eventAt,
  FLAGS_SHIFT,
  ID_MASK,
  isUsed,
  RingPosition,
  wantsEvent,
} from './ring.ts';

/** The private half of a packed driver queue as plain data. */
export interface PackedDriverState {
  readonly layout: 'packed';
  readonly available: { readonly index: number; readonly wrap: number };
  readonly used: { readonly index: number; readonly wrap: number };
  readonly freeDescriptors: number;
  readonly freeIds: readonly number[];
  readonly counts: Uint16Array;
  readonly exposed: Uint8Array;
  readonly writable: Float64Array;
  readonly order: Uint16Array;
  readonly added: number;
  readonly published: number;
  readonly completed: number;
  readonly hidden: { readonly at: number; readonly word: number } | undefined;
  readonly batch: UsedBuffer | undefined;
}

const LENGTH_MAX = 0xffff_ffff;

/** The driver half of a packed queue (virtio 1.3, 2.8). Buffer ids are tokens, 0 to size - 1. */
export class PackedDriver implements DriverQueue {
  readonly setup: DriverQueueSetup;
  readonly size: number;
  readonly #eventIdx: boolean;
  readonly #indirect: boolean;
  readonly #inOrder: boolean;
  readonly #desc: Uint32Array;
  readonly #driverEvent: Uint32Array;
  readonly #deviceEvent: Uint32Array;
  readonly #available: RingPosition;
  readonly #used: RingPosition;
  #freeDescriptors: number;
  readonly #freeIds: number[];
  /** By id: descriptors in the ring, 0 when the id is not outstanding. */
  readonly #counts: Uint16Array;
  /** By id: 1 once the device was shown it. */
  readonly #exposed: Uint8Array;
  /** By id: bytes the device may write. */
  readonly #writable: Float64Array;
  /** Ids as they were added; the counters do not wrap. */
  readonly #order: Uint16Array;
  #added: number;
  #published: number;
  /** With IN_ORDER: chains returned, so the oldest outstanding one is here. */
  #completed: number;
  /** First descriptor since the last kick: its word of id and flags is stored by `kick`. */
  #hidden: { readonly at: number; readonly word: number } | undefined;
  /** With IN_ORDER: the chain that ends the batch being returned. */
  #batch: UsedBuffer | undefined;
  /** Descriptors published since the last decision about a kick. */
  #unkicked: number;
  #addedDescriptors = 0;
  /** Our event suppression word as last stored. */
  #wanted: number | undefined;
  #fault: QueueFault | undefined;

  constructor(setup: DriverQueueSetup, state: PackedDriverState | undefined) {
    const { size, memory, features } = setup;
    this.setup = setup;
    this.size = size;
    this.#eventIdx = features.has(feature.EVENT_IDX);
    this.#indirect = features.has(feature.INDIRECT_DESC);
    this.#inOrder = features.has(feature.IN_ORDER);
    const words = (part: Uint8Array): Uint32Array => new Uint32Array(part.buffer, part.byteOffset, part.length / 4);
    this.#desc = words(memory.desc);
    this.#driverEvent = words(memory.driver);
    this.#deviceEvent = words(memory.device);
    this.#available = new RingPosition(size, state?.available.index, state?.available.wrap);
    this.#used = new RingPosition(size, state?.used.index, state?.used.wrap);
    this.#freeDescriptors = state?.freeDescriptors ?? size;
    this.#freeIds = state?.freeIds.slice() ?? Array.from({ length: size }, (_, i) => size - 1 - i);
    this.#counts = state?.counts.slice() ?? new Uint16Array(size);
    this.#exposed = state?.exposed.slice() ?? new Uint8Array(size);
    this.#writable = state?.writable.slice() ?? new Float64Array(size);
    this.#order = state?.order.slice() ?? new Uint16Array(size);
    this.#added = state?.added ?? 0;
    this.#published = state?.published ?? 0;
    this.#completed = state?.completed ?? 0;
    this.#hidden = state?.hidden;
    this.#batch = state?.batch;
    this.#unkicked = state === undefined ? 0 : Number.POSITIVE_INFINITY;
  }

  get freeDescriptors(): number {
    return this.#freeDescriptors;
  }

  get notificationData(): number {
    const { index, wrap } = this.#available;
    return (index | (wrap << 31)) >>> 0;
  }

  save(): PackedDriverState {
    return {
      layout: 'packed',
      available: { index: this.#available.index, wrap: this.#available.wrap },
      used: { index: this.#used.index, wrap: this.#used.wrap },
      freeDescriptors: this.#freeDescriptors,
      freeIds: this.#freeIds.slice(),
      counts: this.#counts.slice(),
      exposed: this.#exposed.slice(),
      writable: this.#writable.slice(),
      order: this.#order.slice(),
      added: this.#added,
      published: this.#published,
      completed: this.#completed,
      hidden: this.#hidden,
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
    if (table !== undefined) this.#writeTable(table, readable, writable);
    // There are as many ids as descriptors, and a chain takes at least one of these.
    const id = this.#freeIds.pop()!;
    let room = 0;
    for (const buffer of writable) room += buffer.length;
    if (table === undefined) {
      for (let i = 0; i < count; i++) {
        const write = i >= readable.length;
        const buffer = write ? writable[i - readable.length]! : readable[i]!;
        this.#write(buffer, id, (write ? DESC_WRITE : 0) | (i + 1 < count ? DESC_NEXT : 0));
      }
    } else this.#write({ hi: table.hi, lo: table.lo, length: count * descBytes }, id, DESC_INDIRECT);
    this.#freeDescriptors -= needed;
    this.#addedDescriptors += needed;
    this.#counts[id] = needed;
    this.#exposed[id] = 0;
    this.#writable[id] = room;
    this.#order[this.#added % this.size] = id;
    this.#added += 1;
    return id;
  }

  #writeTable(table: IndirectTable, readable: readonly BufferRange[], writable: readonly BufferRange[]): void {
    const count = readable.length + writable.length;
    assert(this.#indirect, 'indirect descriptors were negotiated');
    assert(count <= limits.chainDescriptorsMax, 'an indirect chain is within the limit');
    assert(count * descWords <= table.words.length, 'the chain fits into the indirect table');
    for (let i = 0; i < count; i++) {
      const write = i >= readable.length;
      const buffer = write ? writable[i - readable.length]! : readable[i]!;
      this.#put(table.words, i * descWords, buffer);
      table.words[i * descWords + 3] = (write ? DESC_WRITE : 0) << FLAGS_SHIFT;
    }
  }

  #put(words: Uint32Array, at: number, buffer: BufferRange): void {
    assert(buffer.length >= 1 && buffer.length <= LENGTH_MAX, 'a buffer has 1 to 2^32 - 1 bytes');
    words[at] = buffer.lo;
    words[at + 1] = buffer.hi;
    words[at + 2] = buffer.length;
  }

  #write(buffer: BufferRange, id: number, flags: number): void {
    const at = this.#available.index * descWords;
    this.#put(this.#desc, at, buffer);
    const word = (id | ((flags | availFlags(this.#available.wrap)) << FLAGS_SHIFT)) >>> 0;
    // The device looks at this one first, so the others may be complete before it.
    if (this.#hidden === undefined) this.#hidden = { at: at + 3, word };
    else this.#desc[at + 3] = word;
    this.#available.advance(1);
  }

  kick(): boolean {
    for (; this.#published < this.#added; this.#published++) {
      this.#exposed[this.#order[this.#published % this.size]!] = 1;
    }
    this.#unkicked += this.#addedDescriptors;
    this.#addedDescriptors = 0;
    const count = this.#unkicked;
    if (count === 0) return false;
    this.#unkicked = 0;
    const hidden = this.#hidden;
    this.#hidden = undefined;
    // 2.8.21.1: everything else before these flags; 2.8.21.2: the flags before the look at the device's word.
    if (hidden !== undefined) Atomics.store(this.#desc, hidden.at, hidden.word);
    return wantsEvent(Atomics.load(this.#deviceEvent, 0), this.#eventIdx, this.size, this.#available, count);
  }

  next(): UsedBuffer | QueueFault | undefined {
    if (this.#fault !== undefined) return this.#fault;
    let batch = this.#batch;
    if (batch === undefined) {
      const found = this.#look();
      if (!this.#inOrder || found === undefined || found instanceof QueueFault) {
        return found === undefined || found instanceof QueueFault ? found : this.#complete(found);
      }
      batch = found;
    }
    const oldest = this.#order[this.#completed % this.size]!;
    this.#batch = batch.token === oldest ? undefined : batch;
    // 2.8.8: what the batch skips was used completely.
    return this.#complete(batch.token === oldest ? batch : { token: oldest, writtenBytes: this.#writable[oldest]! });
  }

  /** The used descriptor that comes next, checked. */
  #look(): UsedBuffer | QueueFault | undefined {
    const at = this.#used.index * descWords;
    const word = Atomics.load(this.#desc, at + 3);
    const flags = word >>> FLAGS_SHIFT;
    if (!isUsed(flags, this.#used.wrap)) return undefined;
    const id = word & ID_MASK;
    const length = this.#desc[at + 2]!;
    if (id >= this.size || this.#counts[id] === 0 || this.#exposed[id] === 0) {
      return this.#fail(new QueueFault('used-id', `used descriptor names ${id}, which is not outstanding`));
    }
    const writtenBytes = (flags & DESC_WRITE) === 0 ? 0 : length;
    if (writtenBytes > this.#writable[id]!) {
      return this.#fail(new QueueFault('used-length', `${writtenBytes} bytes of ${this.#writable[id]} writable`));
    }
    return { token: id, writtenBytes };
  }

  #complete(used: UsedBuffer): UsedBuffer {
    const id = used.token;
    const count = this.#counts[id]!;
    this.#used.advance(count);
    this.#freeDescriptors += count;
    this.#counts[id] = 0;
    this.#freeIds.push(id);
    this.#completed += 1;
    return used;
  }

  suppressInterrupts(): void {
    this.#want(EVENT_DISABLE);
  }

  enableInterrupts(): boolean {
    this.#want(this.#eventIdx ? eventAt(this.#used) : EVENT_ENABLE);
    if (this.#fault !== undefined) return false;
    // 2.8.22: our word first, then the look at the flags; the device does the opposite.
    const word = Atomics.load(this.#desc, this.#used.index * descWords + 3);
    return this.#batch !== undefined || isUsed(word >>> FLAGS_SHIFT, this.#used.wrap);
  }

  #want(word: number): void {
    if (this.#wanted === word) return;
    this.#wanted = word;
    Atomics.store(this.#driverEvent, 0, word);
  }

  #fail(fault: QueueFault): QueueFault {
    this.#fault = fault;
    return fault;
  }
}
