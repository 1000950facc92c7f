import { limits } from '../../src/kit/limits.ts';
import type { Access } from '../../src/ports/memory.ts';
import { feature } from '../../src/virtio/features.ts';
import type { RingLayout } from '../../src/virtio/geometry.ts';
import type { QueueFaultReason, QueueSetup } from '../../src/virtio/queue.ts';
import type { TestMemory } from './virtqueue-memory.ts';

/** The faults that a chain or an index of a driver can lead to. */
export const deviceReasons = (layout: RingLayout): readonly QueueFaultReason[] =>
  layout === 'packed' ? commonReasons : [...commonReasons, 'head-range', 'next-range', 'indirect-nested'];

const commonReasons = [
  'avail-index',
  'head-in-flight',
  'chain-length',
  'chain-bytes',
  'chain-order',
  'indirect-not-negotiated',
  'indirect-with-next',
  'indirect-length',
  'address',
] as const satisfies readonly QueueFaultReason[];

export type Prediction =
  | { readonly kind: 'none' }
  | { readonly kind: 'fault'; readonly reason: QueueFaultReason }
  | {
      readonly kind: 'chain';
      readonly head: number;
      /** Descriptors of the ring that it takes: 1 in a split queue, whose entries are heads. */
      readonly entries: number;
      readonly readableBytes: number;
      readonly writableBytes: number;
    };

interface OracleOptions {
  readonly memory: TestMemory;
  readonly setup: QueueSetup;
  /** Chains are handed back in the order in which they were popped. */
  readonly inOrder: boolean;
  /** An area that takes any access of at least so many bytes. */
  readonly hugeArea: number;
  readonly hugeMinBytes: number;
}

class Refused extends Error {
  readonly reason: QueueFaultReason;
  constructor(reason: QueueFaultReason) {
    super(reason);
    this.reason = reason;
  }
}

function reachable(state: OracleOptions, address: bigint, length: number, access: Access): boolean {
  if (address >> 32n === BigInt(state.hugeArea) << 16n) return length >= state.hugeMinBytes;
  const area = state.memory.areas.get(Number(address >> 48n));
  const offset = Number(address & 0xffff_ffff_ffffn);
  return area !== undefined && offset + length <= area.size && area.access.includes(access);
}

/** A little-endian number at a bus address, byte by byte. */
function read(state: OracleOptions, address: bigint, bytes: number): bigint {
  let value = 0n;
  for (let i = bytes - 1; i >= 0; i--) {
    const at = address + BigInt(i);
    const area = state.memory.areas.get(Number(at >> 48n))!;
    const offset = Number(at & 0xffff_ffff_ffffn);
    const byte = area.pieces[Math.floor(offset / area.pieceBytes)]![offset % area.pieceBytes]!;
    value = (value << 8n) | BigInt(byte);
  }
  return value;
}

interface Descriptor {
  readonly address: bigint;
  readonly length: number;
  readonly flags: number;
  readonly next: number;
}

function descriptorAt(state: OracleOptions, address: bigint): Descriptor {
  return {
    address: read(state, address, 8),
    length: Number(read(state, address + 8n, 4)),
    flags: Number(read(state, address + 12n, 2)),
    next: Number(read(state, address + 14n, 2)),
  };
}

/** All descriptors of a table that a chain visits, without those of an indirect table. */
function walk(state: OracleOptions, table: bigint, entries: number, first: number, visit: (d: Descriptor) => boolean) {
  let index = first;
  for (let visits = 1; ; visits++) {
    // More visits than entries: a loop.
    if (visits > entries) throw new Refused('chain-length');
    const descriptor = descriptorAt(state, table + BigInt(index) * 16n);
    if (!visit(descriptor) || (descriptor.flags & 1) === 0) return;
    index = descriptor.next;
    if (index >= entries) throw new Refused('next-range');
  }
}

/** Sums up the buffers of a chain. */
class Sum {
  readable = 0;
  writable = 0;
  readonly #state: OracleOptions;

  constructor(state: OracleOptions) {
    this.#state = state;
  }

  add({ address, length, flags }: Descriptor): void {
    const write = (flags & 2) !== 0;
    if (!write && this.writable > 0) throw new Refused('chain-order');
    if (length === 0) return;
    if (this.readable + this.writable + length >= 2 ** 32) throw new Refused('chain-bytes');
    if (!reachable(this.#state, address, length, write ? 'write' : 'read')) throw new Refused('address');
    if (write) this.writable += length;
    else this.readable += length;
  }

  /** @returns entries of an indirect table */
  table({ address, length }: Descriptor, linked: boolean): number {
    if (!this.#state.setup.features.has(feature.INDIRECT_DESC)) throw new Refused('indirect-not-negotiated');
    if (linked) throw new Refused('indirect-with-next');
    const entries = length / 16;
    if (!Number.isInteger(entries) || entries === 0 || entries > limits.chainDescriptorsMax) {
      throw new Refused('indirect-length');
    }
    if (!reachable(this.#state, address, length, 'read')) throw new Refused('address');
    return entries;
  }

  chain(head: number, entries: number): Prediction {
    return { kind: 'chain', head, entries, readableBytes: this.readable, writableBytes: this.writable };
  }
}

/**
 * What the next pop of a device queue must give, worked out the slow and obvious way from the memory as it is.
 * Written without the code under test; follows virtio 1.3, 2.7 and 2.8.
 */
export class Oracle {
  readonly #state: OracleOptions;
  /** Entries popped so far. */
  #next = 0;
  /** Split: entries known to be available so far; the index is looked at again when all of them are popped. */
  #known = 0;
  /** Chains in flight in the order of their pops, and whether they were pushed. */
  #owned: Array<{ readonly head: number; readonly entries: number; pushed: boolean }> = [];

  constructor(state: OracleOptions) {
    this.#state = state;
  }

  /** The prediction came true. */
  popped(prediction: Prediction): void {
    if (prediction.kind !== 'chain') return;
    this.#next += prediction.entries;
    this.#owned.push({ head: prediction.head, entries: prediction.entries, pushed: false });
  }

  /** The chain was pushed, and what may be published was. */
  pushed(head: number): void {
    for (const chain of this.#owned) if (chain.head === head) chain.pushed = true;
    if (!this.#state.inOrder) this.#owned = this.#owned.filter(({ pushed }) => !pushed);
    while (this.#owned[0]?.pushed) this.#owned.shift();
  }

  predictPop(): Prediction {
    try {
      return this.#state.setup.features.has(feature.RING_PACKED) ? this.#packed() : this.#split();
    } catch (error) {
      if (error instanceof Refused) return { kind: 'fault', reason: error.reason };
      throw error;
    }
  }

  #mustNotOwn(wanted: number): void {
    if (this.#owned.some(({ head }) => head === wanted)) throw new Refused('head-in-flight');
  }

  #split(): Prediction {
    const state = this.#state;
    const { setup } = state;
    if (this.#next === this.#known) {
      const index = Number(read(state, setup.driverAddr + 2n, 2));
      const ahead = (index - (this.#next % 65536) + 65536) % 65536;
      if (ahead === 0) return { kind: 'none' };
      if (ahead > setup.size) throw new Refused('avail-index');
      this.#known += ahead;
    }
    const head = Number(read(state, setup.driverAddr + 4n + 2n * BigInt(this.#next % setup.size), 2));
    if (head >= setup.size) throw new Refused('head-range');
    this.#mustNotOwn(head);
    const sum = new Sum(state);
    walk(state, setup.descAddr, setup.size, head, (descriptor) => {
      if ((descriptor.flags & 4) === 0) {
        sum.add(descriptor);
        return true;
      }
      const entries = sum.table(descriptor, (descriptor.flags & 1) !== 0);
      walk(state, descriptor.address, entries, 0, (inner) => {
        if ((inner.flags & 4) !== 0) throw new Refused('indirect-nested');
        sum.add(inner);
        return true;
      });
      return false;
    });
    return sum.chain(head, 1);
  }

  /** A packed descriptor; `next` is its flags and `flags` its id, as they lie in memory. */
  #descriptor(address: bigint): Descriptor & { id: number } {
    const { flags, next, ...rest } = descriptorAt(this.#state, address);
    return { ...rest, next: 0, flags: next, id: flags };
  }

  #packed(): Prediction {
    const state = this.#state;
    const { size, descAddr } = state.setup;
    const at = (place: number) => this.#descriptor(descAddr + BigInt(place % size) * 16n);
    const { flags } = at(this.#next);
    const wrap = Math.floor(this.#next / size) % 2 === 0;
    const [avail, used] = [(flags & 0x80) !== 0, (flags & 0x8000) !== 0];
    if (avail !== wrap || used === wrap) return { kind: 'none' };
    const free = size - this.#owned.reduce((total, { entries }) => total + entries, 0);
    if (free === 0) throw new Refused('avail-index');
    const chain = [at(this.#next)];
    while ((chain.at(-1)!.flags & 1) !== 0) {
      if (chain.length === free) throw new Refused('chain-length');
      chain.push(at(this.#next + chain.length));
    }
    const { id } = chain.at(-1)!;
    this.#mustNotOwn(id);
    const sum = new Sum(state);
    for (const descriptor of chain) {
      if ((descriptor.flags & 4) === 0) {
        sum.add(descriptor);
        continue;
      }
      const entries = sum.table(descriptor, chain.length > 1);
      if (entries + 1 > limits.chainDescriptorsMax) throw new Refused('chain-length');
      for (let i = 0; i < entries; i++) sum.add(this.#descriptor(descriptor.address + BigInt(i) * 16n));
    }
    return sum.chain(id, chain.length);
  }
}
