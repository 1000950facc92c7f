import { assert } from '../../kit/assert.ts';
import type { AddressSpace } from '../../ports/memory.ts';
import { descWords, LeaseList } from '../chain.ts';
import { CompletionOrder } from '../completion-order.ts';
import { feature } from '../features.ts';
import { type Chain, type DeviceQueue, QueueFault, type QueueSetup } from '../queue.ts';
import { openRingParts } from '../ring-memory.ts';
import { SplitChainReader } from './chain.ts';
import type { SplitInflightLog } from './inflight.ts';
import {
  AVAIL_RING,
  availEventAt,
  passesEvent,
  RING_FLAGS,
  RING_IDX,
  RING_SUPPRESS,
  splitRingAlign,
  splitRingBytes,
  USED_RING,
  usedEventAt,
} from './ring.ts';

interface DeviceRing {
  readonly desc: Uint32Array;
  readonly avail: Uint16Array;
  /** The used ring twice: index words, and elements. */
  readonly used: Uint16Array;
  readonly usedElements: Uint32Array;
  readonly lease: LeaseList;
}

function openRing(setup: QueueSetup, memory: AddressSpace): DeviceRing | QueueFault {
  const { size } = setup;
  const bytes = splitRingBytes(size);
  const align = splitRingAlign;
  const lease = new LeaseList();
  const parts = openRingParts(
    memory,
    [
      { name: 'descriptor area', address: setup.descAddr, bytes: bytes.desc, align: align.desc, access: 'read' },
      { name: 'driver area', address: setup.driverAddr, bytes: bytes.driver, align: align.driver, access: 'read' },
      { name: 'device area', address: setup.deviceAddr, bytes: bytes.device, align: align.device, access: 'write' },
    ],
    lease,
  );
  if (parts instanceof QueueFault) return parts;
  const [d, a, u] = parts as [Uint8Array, Uint8Array, Uint8Array];
  return {
    desc: new Uint32Array(d.buffer, d.byteOffset, size * descWords),
    avail: new Uint16Array(a.buffer, a.byteOffset, bytes.driver / 2),
    used: new Uint16Array(u.buffer, u.byteOffset, bytes.device / 2),
    usedElements: new Uint32Array(u.buffer, u.byteOffset, USED_RING + 2 * size),
    lease,
  };
}

/**
 * Opens the device half of a split queue (virtio 1.3, 2.7); the log does what `openDeviceQueue` says.
 * @param setup of a size that was checked
 */
export function openSplitDeviceQueue(
  setup: QueueSetup,
  memory: AddressSpace,
  log: SplitInflightLog | undefined,
): DeviceQueue | QueueFault {
  const ring = openRing(setup, memory);
  if (ring instanceof QueueFault) return ring;
  const reader = new SplitChainReader(memory, setup.size, setup.features.has(feature.INDIRECT_DESC));
  if (log === undefined) return new SplitDeviceQueue(setup, ring, reader, undefined, undefined);
  assert(log.queueSize === setup.size, 'the in-flight log has the size of its queue');
  if (!log.resumable) {
    log.start();
    return new SplitDeviceQueue(setup, ring, reader, log, undefined);
  }
  const usedIdx = Atomics.load(ring.used, RING_IDX);
  const heads = log.recover(usedIdx);
  if (!Array.isArray(heads)) {
    ring.lease.release();
    return new QueueFault('log-inconsistent', heads.inconsistent);
  }
  return new SplitDeviceQueue(setup, ring, reader, log, { usedIdx, heads });
}

/** More than any step of a 16-bit index: "everything may have passed". */
const ALL_INDICES = 0x10000;

class SplitDeviceQueue implements DeviceQueue {
  readonly index: number;
  readonly size: number;
  readonly #eventIdx: boolean;
  readonly #reader: SplitChainReader;
  readonly #log: SplitInflightLog | undefined;
  readonly #order: CompletionOrder<Chain> | undefined;
  /** Undefined once closed: the views must not be touched after the lease ended. */
  #ring: DeviceRing | undefined;
  #fault: QueueFault | undefined;
  /** Chains to pop again after a restart. */
  readonly #resumed: readonly number[];
  #resumedAt = 0;
  /** Next entry of the available ring; free-running u16. */
  #availNext: number;
  /** avail.idx as last loaded. */
  #availSeen: number;
  /** Next entry of the used ring, ahead of the published idx by the batch. */
  #usedNext: number;
  /** By head: the driver may not offer it again until it is published. */
  readonly #owned: Uint8Array;
  readonly #popped: Array<Chain | undefined>;
  #inFlight = 0;
  /** Heads pushed and not yet published. */
  readonly #batch: Uint16Array;
  #batchLength = 0;
  /** Entries published since the last decision about an interrupt. */
  #unsignalled: number;

  constructor(
    setup: QueueSetup,
    ring: DeviceRing,
    reader: SplitChainReader,
    log: SplitInflightLog | undefined,
    resume: { readonly usedIdx: number; readonly heads: readonly number[] } | undefined,
  ) {
    this.index = setup.index;
    this.size = setup.size;
    this.#eventIdx = setup.features.has(feature.EVENT_IDX);
    this.#reader = reader;
    this.#log = log;
    this.#order = setup.features.has(feature.IN_ORDER) ? new CompletionOrder(setup.size) : undefined;
    this.#ring = ring;
    this.#resumed = resume?.heads ?? [];
    this.#usedNext = resume?.usedIdx ?? 0;
    // Every chain taken is either published or in flight, in whatever order they ended.
    this.#availNext = (this.#usedNext + this.#resumed.length) & 0xffff;
    this.#availSeen = this.#availNext;
    // The last process may have published and died before it could notify.
    this.#unsignalled = resume === undefined ? 0 : ALL_INDICES;
    this.#owned = new Uint8Array(setup.size);
    for (const head of this.#resumed) this.#owned[head] = 1;
    this.#popped = new Array<Chain | undefined>(setup.size).fill(undefined);
    this.#batch = new Uint16Array(setup.size);
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  get fault(): QueueFault | undefined {
    return this.#fault;
  }

  pop(): Chain | QueueFault | undefined {
    if (this.#fault !== undefined) return this.#fault;
    const ring = this.#ring;
    if (ring === undefined) return undefined;
    const resumed = this.#resumedAt < this.#resumed.length;
    const head = resumed ? this.#resumed[this.#resumedAt]! : this.#nextHead(ring);
    if (typeof head !== 'number') return head;
    const chain = this.#reader.read(ring.desc, head);
    if (chain instanceof QueueFault) return this.#fail(chain);
    if (resumed) {
      this.#resumedAt += 1;
    } else {
      this.#log?.taken(head);
      this.#owned[head] = 1;
      this.#availNext = (this.#availNext + 1) & 0xffff;
    }
    this.#order?.taken(chain);
    this.#popped[head] = chain;
    this.#inFlight += 1;
    return chain;
  }

  #nextHead(ring: DeviceRing): number | QueueFault | undefined {
    if (this.#availNext === this.#availSeen) {
      // 2.7.13: the driver stores idx after the entries and descriptors it exposes. The atomic load keeps our
      // reads of those after it.
      const idx = Atomics.load(ring.avail, RING_IDX);
      const step = (idx - this.#availNext) & 0xffff;
      if (step === 0) return undefined;
      if (step > this.size) return this.#fail(new QueueFault('avail-index', `avail.idx is ${step} entries ahead`));
      this.#availSeen = idx;
    }
    const head = ring.avail[AVAIL_RING + (this.#availNext & (this.size - 1))]!;
    if (head >= this.size) return this.#fail(new QueueFault('head-range', `head ${head} of ${this.size}`));
    if (this.#owned[head] === 1) return this.#fail(new QueueFault('head-in-flight', `head ${head} offered twice`));
    return head;
  }

  push(chain: Chain, writtenBytes: number): QueueFault | undefined {
    const ring = this.#ring;
    this.abandon(chain);
    if (ring === undefined || this.#fault !== undefined) return this.#fault;
    assert(writtenBytes >= 0 && writtenBytes <= chain.writableBytes, 'written bytes fit into the chain');
    const order = this.#order;
    if (order === undefined) {
      this.#complete(ring, chain.head, writtenBytes);
      return undefined;
    }
    order.completed(chain, writtenBytes);
    for (let done = order.shift(); done !== undefined; done = order.shift()) {
      this.#complete(ring, done.chain.head, done.writtenBytes);
    }
    return undefined;
  }

  #complete(ring: DeviceRing, head: number, writtenBytes: number): void {
    const at = USED_RING + 2 * (this.#usedNext & (this.size - 1));
    ring.usedElements[at] = head;
    this.#log?.ringStored();
    ring.usedElements[at + 1] = writtenBytes;
    this.#log?.ringStored();
    this.#log?.completed(head);
    this.#usedNext = (this.#usedNext + 1) & 0xffff;
    this.#batch[this.#batchLength] = head;
    this.#batchLength += 1;
  }

  publish(): void {
    const ring = this.#ring;
    const count = this.#batchLength;
    if (ring === undefined || count === 0) return;
    // 2.7.8.2: elements and data before idx. The store also precedes the load in needsInterrupt (2.7.7.2).
    Atomics.store(ring.used, RING_IDX, this.#usedNext);
    this.#log?.ringStored();
    this.#log?.published(this.#batch, count, this.#usedNext);
    for (let i = 0; i < count; i++) this.#owned[this.#batch[i]!] = 0;
    this.#batchLength = 0;
    this.#unsignalled += count;
  }

  needsInterrupt(): boolean {
    const ring = this.#ring;
    const count = this.#unsignalled;
    if (ring === undefined || count === 0) return false;
    this.#unsignalled = 0;
    // 2.7.7.2: with EVENT_IDX the flag is ignored, without it used_event is.
    if (!this.#eventIdx) return (Atomics.load(ring.avail, RING_FLAGS) & RING_SUPPRESS) === 0;
    const published = (this.#usedNext - this.#batchLength) & 0xffff;
    return passesEvent(Atomics.load(ring.avail, usedEventAt(this.size)), published, count);
  }

  suppressKicks(): void {
    // 2.7.10.2: with EVENT_IDX flags stay 0, and an avail_event that was passed suppresses by itself.
    if (this.#ring !== undefined && !this.#eventIdx) Atomics.store(this.#ring.used, RING_FLAGS, RING_SUPPRESS);
  }

  enableKicks(): boolean {
    const ring = this.#ring;
    if (ring === undefined || this.#fault !== undefined) return false;
    if (this.#eventIdx) Atomics.store(ring.used, availEventAt(this.size), this.#availNext);
    else Atomics.store(ring.used, RING_FLAGS, 0);
    // The driver stores idx, then looks at our word (2.7.13.4.1); we store our word, then look at idx. Both are
    // sequentially consistent, so at least one side sees the other.
    return this.#resumedAt < this.#resumed.length || Atomics.load(ring.avail, RING_IDX) !== this.#availNext;
  }

  abandon(chain: Chain): void {
    assert(this.#popped[chain.head] === chain, 'the chain is in flight on this queue');
    this.#popped[chain.head] = undefined;
    this.#inFlight -= 1;
    chain.lease.release();
  }

  close(): void {
    this.#ring?.lease.release();
    this.#ring = undefined;
  }

  #fail(fault: QueueFault): QueueFault {
    this.#fault = fault;
    return fault;
  }
}
