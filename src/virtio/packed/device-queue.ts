import { assert } from '../../kit/assert.ts';
import type { AddressSpace } from '../../ports/memory.ts';
import { DESC_WRITE, descWords, LeaseList } from '../chain.ts';
import { CompletionOrder } from '../completion-order.ts';
import { feature } from '../features.ts';
import { type Chain, type DeviceQueue, QueueFault, type QueueSetup } from '../queue.ts';
import { openRingParts } from '../ring-memory.ts';
import { type PackedChain, PackedChainReader } from './chain.ts';
import type { PackedInflightLog, PackedRecovery } from './inflight.ts';
import {
  availFlags,
  EVENT_DISABLE,
  EVENT_ENABLE,
  eventAt,
  FLAGS_SHIFT,
  ID_MASK,
  isAvail,
  packedRingAlign,
  packedRingBytes,
  RingPosition,
  usedFlags,
  wantsEvent,
  wasUsed,
} from './ring.ts';

interface DeviceRing {
  readonly desc: Uint32Array;
  /** Event suppression: the driver's word and ours. */
  readonly driver: Uint32Array;
  readonly device: Uint32Array;
  readonly lease: LeaseList;
}

function openRing(setup: QueueSetup, memory: AddressSpace): DeviceRing | QueueFault {
  const bytes = packedRingBytes(setup.size);
  const align = packedRingAlign;
  const lease = new LeaseList();
  const parts = openRingParts(
    memory,
    [
      { name: 'descriptor area', address: setup.descAddr, bytes: bytes.desc, align: align.desc, access: 'write' },
      { name: 'driver area', address: setup.driverAddr, bytes: bytes.driver, align: align.driver, access: 'read' },
      { name: 'device area', address: setup.deviceAddr, bytes: bytes.device, align: align.device, access: 'write' },
    ],
    lease,
  );
  if (parts instanceof QueueFault) return parts;
  const words = (part: Uint8Array): Uint32Array => new Uint32Array(part.buffer, part.byteOffset, part.length / 4);
  return { desc: words(parts[0]!), driver: words(parts[1]!), device: words(parts[2]!), lease };
}

/**
 * Opens the device half of a packed queue (virtio 1.3, 2.8); the log does what `openDeviceQueue` says.
 * @param setup of a size that was checked
 */
export function openPackedDeviceQueue(
  setup: QueueSetup,
  memory: AddressSpace,
  log: PackedInflightLog | undefined,
): DeviceQueue | QueueFault {
  const ring = openRing(setup, memory);
  if (ring instanceof QueueFault) return ring;
  const reader = new PackedChainReader(memory, setup.size, setup.features.has(feature.INDIRECT_DESC));
  if (log === undefined) return new PackedDeviceQueue(setup, ring, reader, undefined, undefined);
  assert(log.queueSize === setup.size, 'the in-flight log has the size of its queue');
  if (!log.resumable) {
    log.start();
    return new PackedDeviceQueue(setup, ring, reader, log, undefined);
  }
  const flagsAt = (at: RingPosition): number => Atomics.load(ring.desc, at.index * descWords + 3) >>> FLAGS_SHIFT;
  const found = log.recover((position) => wasUsed(flagsAt(position), position.wrap));
  if ('inconsistent' in found) {
    ring.lease.release();
    return new QueueFault('log-inconsistent', found.inconsistent);
  }
  withdrawUsed(ring.desc, found, setup.size, log);
  return new PackedDeviceQueue(setup, ring, reader, log, found);
}

/**
 * A batch that was not published may have left used descriptors behind its first one, which the driver would believe
 * as soon as the first one is there. What is in flight becomes available again; its descriptors are in the log.
 */
function withdrawUsed(desc: Uint32Array, found: PackedRecovery, size: number, log: PackedInflightLog): void {
  const at = new RingPosition(size, found.used.index, found.used.wrap);
  for (const { count } of found.chains) {
    for (let i = 0; i < count; i++, at.advance(1)) {
      const word = at.index * descWords + 3;
      desc[word] = (desc[word]! & ID_MASK) | (availFlags(at.wrap) << FLAGS_SHIFT);
      log.ringStored();
    }
  }
}

class PackedDeviceQueue implements DeviceQueue {
  readonly index: number;
  readonly size: number;
  readonly #eventIdx: boolean;
  readonly #reader: PackedChainReader;
  readonly #log: PackedInflightLog | undefined;
  readonly #order: CompletionOrder<PackedChain> | undefined;
  /** Undefined once closed: the views must not be touched after the lease ended. */
  #ring: DeviceRing | undefined;
  #fault: QueueFault | undefined;
  /** Chains to pop again after a restart. */
  readonly #resumed: PackedRecovery['chains'];
  #resumedAt = 0;
  readonly #available: RingPosition;
  /** Where the next used descriptor goes once it is published. */
  readonly #used: RingPosition;
  /** Descriptors that are not in flight. */
  #free: number;
  /** Bit set by buffer id: the driver may not use it again until it is published. */
  readonly #owned = new Uint32Array(0x10000 / 32);
  readonly #popped = new Map<number, PackedChain>();
  /** Chains pushed and not yet published. */
  readonly #batchIds: Uint16Array;
  readonly #batchDescriptors: Uint16Array;
  readonly #batchEntries: Uint16Array;
  readonly #batchWritten: Uint32Array;
  #batchLength = 0;
  /** Descriptors published since the last decision about an interrupt. */
  #unsignalled: number;
  /** Our event suppression word as last stored. */
  #wanted: number | undefined;

  constructor(
    setup: QueueSetup,
    ring: DeviceRing,
    reader: PackedChainReader,
    log: PackedInflightLog | undefined,
    resume: PackedRecovery | undefined,
  ) {
    const { size } = setup;
    this.index = setup.index;
    this.size = size;
    this.#eventIdx = setup.features.has(feature.EVENT_IDX);
    this.#reader = reader;
    this.#log = log;
    this.#order = setup.features.has(feature.IN_ORDER) ? new CompletionOrder(size) : undefined;
    this.#ring = ring;
    this.#resumed = resume?.chains ?? [];
    this.#used = resume?.used.copy() ?? new RingPosition(size);
    this.#available = this.#used.copy();
    this.#free = size;
    for (const { entry, count } of this.#resumed) {
      this.#available.advance(count);
      this.#free -= count;
      this.#setOwned(log!.bufferId(entry), true);
    }
    // The last process may have published and died before it could notify.
    this.#unsignalled = resume === undefined ? 0 : Number.POSITIVE_INFINITY;
    this.#batchIds = new Uint16Array(size);
    this.#batchDescriptors = new Uint16Array(size);
    this.#batchEntries = new Uint16Array(size);
    this.#batchWritten = new Uint32Array(size);
  }

  get inFlight(): number {
    return this.#popped.size;
  }

  get fault(): QueueFault | undefined {
    return this.#fault;
  }

  pop(): Chain | QueueFault | undefined {
    if (this.#fault !== undefined) return this.#fault;
    const ring = this.#ring;
    if (ring === undefined) return undefined;
    const chain = this.#resumedAt < this.#resumed.length ? this.#resume() : this.#take(ring);
    if (chain === undefined) return undefined;
    if (chain instanceof QueueFault) return this.#fail(chain);
    this.#order?.taken(chain);
    this.#popped.set(chain.head, chain);
    return chain;
  }

  #resume(): PackedChain | QueueFault {
    const { entry, count } = this.#resumed[this.#resumedAt]!;
    this.#log!.descriptors(entry, count, this.#reader.words);
    this.#reader.preset(count);
    const chain = this.#reader.resolve();
    if (chain instanceof QueueFault) return chain;
    chain.logEntry = entry;
    this.#resumedAt += 1;
    return chain;
  }

  #take(ring: DeviceRing): PackedChain | QueueFault | undefined {
    const reader = this.#reader;
    const { index, wrap } = this.#available;
    // 2.8.21.1: the driver stores the flags of the first descriptor last. The atomic load keeps our other reads of the
    // chain after it.
    const word = Atomics.load(ring.desc, index * descWords + 3);
    if (!isAvail(word >>> FLAGS_SHIFT, wrap)) return undefined;
    if (this.#free === 0) return new QueueFault('avail-index', `descriptor ${index} is in flight and available`);
    const fault = reader.copy(ring.desc, index, word, this.#free);
    if (fault !== undefined) return fault;
    const { id, count } = reader;
    if (this.#isOwned(id)) return new QueueFault('head-in-flight', `buffer id ${id} offered twice`);
    const chain = reader.resolve();
    if (chain instanceof QueueFault) return chain;
    if (this.#log !== undefined) chain.logEntry = this.#log.taken(reader.words, count);
    this.#setOwned(id, true);
    this.#free -= count;
    this.#available.advance(count);
    return chain;
  }

  #isOwned(id: number): boolean {
    return ((this.#owned[id >>> 5]! >>> (id & 31)) & 1) === 1;
  }

  #setOwned(id: number, owned: boolean): void {
    const bit = 1 << (id & 31);
    if (owned) this.#owned[id >>> 5]! |= bit;
    else this.#owned[id >>> 5]! &= ~bit;
  }

  push(chain: Chain, writtenBytes: number): QueueFault | undefined {
    const packed = this.#end(chain);
    if (this.#ring === undefined || this.#fault !== undefined) return this.#fault;
    assert(writtenBytes >= 0 && writtenBytes <= chain.writableBytes, 'written bytes fit into the chain');
    const order = this.#order;
    if (order === undefined) {
      this.#complete(packed, writtenBytes);
      return undefined;
    }
    order.completed(packed, writtenBytes);
    for (let done = order.shift(); done !== undefined; done = order.shift()) {
      this.#complete(done.chain, done.writtenBytes);
    }
    return undefined;
  }

  #complete(chain: PackedChain, writtenBytes: number): void {
    const at = this.#batchLength;
    this.#batchIds[at] = chain.head;
    this.#batchDescriptors[at] = chain.descriptors;
    this.#batchEntries[at] = chain.logEntry;
    this.#batchWritten[at] = writtenBytes;
    this.#batchLength = at + 1;
  }

  publish(): void {
    const ring = this.#ring;
    const count = this.#batchLength;
    if (ring === undefined || count === 0) return;
    const start = this.#used.copy();
    const end = this.#used;
    for (let i = 0; i < count; i++) end.advance(this.#batchDescriptors[i]!);
    this.#log?.completing(this.#batchEntries, count, end);
    this.#writeUsed(ring.desc, start, count);
    this.#log?.published(this.#batchEntries, count);
    let descriptors = 0;
    for (let i = 0; i < count; i++) {
      this.#setOwned(this.#batchIds[i]!, false);
      descriptors += this.#batchDescriptors[i]!;
    }
    this.#free += descriptors;
    this.#batchLength = 0;
    this.#unsignalled += descriptors;
  }

  /** The driver looks at the first used descriptor before all others, so its flags make the whole batch visible. */
  #writeUsed(desc: Uint32Array, start: RingPosition, count: number): void {
    const at = start.copy();
    let first = 0;
    for (let i = 0; i < count; i++) {
      const written = this.#batchWritten[i]!;
      // 2.8.4: WRITE in a used descriptor says that its length counts.
      const flags = usedFlags(at.wrap) | (written > 0 ? DESC_WRITE : 0);
      const word = (this.#batchIds[i]! | (flags << FLAGS_SHIFT)) >>> 0;
      desc[at.index * descWords + 2] = written;
      this.#log?.ringStored();
      if (i === 0) first = word;
      else {
        desc[at.index * descWords + 3] = word;
        this.#log?.ringStored();
      }
      at.advance(this.#batchDescriptors[i]!);
    }
    // 2.8.22: everything else before these flags. The store also precedes the load in needsInterrupt.
    Atomics.store(desc, start.index * descWords + 3, first);
    this.#log?.ringStored();
  }

  needsInterrupt(): boolean {
    const ring = this.#ring;
    const count = this.#unsignalled;
    if (ring === undefined || count === 0) return false;
    this.#unsignalled = 0;
    return wantsEvent(Atomics.load(ring.driver, 0), this.#eventIdx, this.size, this.#used, count);
  }

  suppressKicks(): void {
    this.#want(EVENT_DISABLE);
  }

  enableKicks(): boolean {
    const ring = this.#ring;
    if (ring === undefined || this.#fault !== undefined) return false;
    const { index, wrap } = this.#available;
    this.#want(this.#eventIdx ? eventAt(this.#available) : EVENT_ENABLE);
    // The driver stores flags, then looks at our word; we store our word, then look at the flags. Both are
    // sequentially consistent, so at least one side sees the other.
    const word = Atomics.load(ring.desc, index * descWords + 3);
    return this.#resumedAt < this.#resumed.length || isAvail(word >>> FLAGS_SHIFT, wrap);
  }

  #want(word: number): void {
    if (this.#ring === undefined || this.#wanted === word) return;
    this.#wanted = word;
    Atomics.store(this.#ring.device, 0, word);
  }

  abandon(chain: Chain): void {
    this.#end(chain);
  }

  #end(chain: Chain): PackedChain {
    const packed = this.#popped.get(chain.head);
    assert(packed === chain, 'the chain is in flight on this queue');
    this.#popped.delete(chain.head);
    packed.lease.release();
    return packed;
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
