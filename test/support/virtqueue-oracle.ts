import { limits } from '../../src/kit/limits.ts';
import type { Access } from '../../src/ports/memory.ts';
import type { QueueFaultReason, QueueSetup } from '../../src/virtio/queue.ts';
import type { TestMemory } from './virtqueue-memory.ts';

/** The faults that a chain or an index of a driver can lead to. */
export const deviceReasons = [
  'avail-index',
  'head-range',
  'head-in-flight',
  'next-range',
  'chain-length',
  'chain-bytes',
  'chain-order',
  'indirect-not-negotiated',
  'indirect-with-next',
  'indirect-nested',
  'indirect-length',
  'address',
] as const satisfies readonly QueueFaultReason[];

export type Prediction =
  | { readonly kind: 'none' }
  | { readonly kind: 'fault'; readonly reason: QueueFaultReason }
  | {
      readonly kind: 'chain';
      readonly head: number;
      readonly readableBytes: number;
      readonly writableBytes: number;
    };

export interface OracleState {
  readonly memory: TestMemory;
  readonly setup: QueueSetup;
  readonly indirect: boolean;
  /** Chains popped so far. */
  next: number;
  /** Chains known to be available so far: the index is looked at again when all of them are popped. */
  known: number;
  /** Heads in flight. */
  readonly owned: ReadonlySet<number>;
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

function reachable(state: OracleState, address: bigint, length: number, access: Access): boolean {
  if (address >> 32n === BigInt(state.hugeArea) << 16n) return length >= state.hugeMinBytes;
  const area = state.memory.areas.get(Number(address >> 48n));
  const offset = Number(address & 0xffff_ffff_ffffn);
  return area !== undefined && offset + length <= area.size && area.access.includes(access);
}

/** A little-endian number at a bus address, byte by byte. */
function read(state: OracleState, address: bigint, bytes: number): bigint {
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

function descriptorAt(state: OracleState, address: bigint): Descriptor {
  return {
    address: read(state, address, 8),
    length: Number(read(state, address + 8n, 4)),
    flags: Number(read(state, address + 12n, 2)),
    next: Number(read(state, address + 14n, 2)),
  };
}

/** All descriptors of a table that a chain visits, without those of an indirect table. */
function walk(state: OracleState, table: bigint, entries: number, first: number, visit: (d: Descriptor) => boolean) {
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

function chainOf(state: OracleState, head: number): Prediction {
  let readable = 0;
  let writable = 0;
  const buffer = ({ address, length, flags }: Descriptor): boolean => {
    const write = (flags & 2) !== 0;
    if (!write && writable > 0) throw new Refused('chain-order');
    if (length === 0) return true;
    if (readable + writable + length >= 2 ** 32) throw new Refused('chain-bytes');
    if (!reachable(state, address, length, write ? 'write' : 'read')) throw new Refused('address');
    if (write) writable += length;
    else readable += length;
    return true;
  };
  walk(state, state.setup.descAddr, state.setup.size, head, (descriptor) => {
    const { address, length, flags } = descriptor;
    if ((flags & 4) === 0) return buffer(descriptor);
    if (!state.indirect) throw new Refused('indirect-not-negotiated');
    if ((flags & 1) !== 0) throw new Refused('indirect-with-next');
    const entries = length / 16;
    if (!Number.isInteger(entries) || entries === 0 || entries > limits.chainDescriptorsMax) {
      throw new Refused('indirect-length');
    }
    if (!reachable(state, address, length, 'read')) throw new Refused('address');
    walk(state, address, entries, 0, (inner) => {
      if ((inner.flags & 4) !== 0) throw new Refused('indirect-nested');
      return buffer(inner);
    });
    return false;
  });
  return { kind: 'chain', head, readableBytes: readable, writableBytes: writable };
}

/**
 * What the next pop of a device queue must give, worked out the slow and obvious way from the memory as it is.
 * Written without the code under test; follows virtio 1.3, 2.7.
 */
export function predictPop(state: OracleState): Prediction {
  const { setup, next } = state;
  if (next === state.known) {
    const index = Number(read(state, setup.driverAddr + 2n, 2));
    const ahead = (index - (next % 65536) + 65536) % 65536;
    if (ahead === 0) return { kind: 'none' };
    if (ahead > setup.size) return { kind: 'fault', reason: 'avail-index' };
    state.known += ahead;
  }
  const head = Number(read(state, setup.driverAddr + 4n + 2n * BigInt(next % setup.size), 2));
  if (head >= setup.size) return { kind: 'fault', reason: 'head-range' };
  if (state.owned.has(head)) return { kind: 'fault', reason: 'head-in-flight' };
  try {
    return chainOf(state, head);
  } catch (error) {
    if (error instanceof Refused) return { kind: 'fault', reason: error.reason };
    throw error;
  }
}
