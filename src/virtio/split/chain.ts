import { limits } from '../../kit/limits.ts';
import { type AddressSpace, type Lease, TranslateFault } from '../../ports/memory.ts';
import { type Chain, QueueFault } from '../queue.ts';
import { DESC_INDIRECT, DESC_NEXT, DESC_WRITE, descBytes, descWords } from './ring.ts';

/** Several leases that end together. */
export class LeaseList implements Lease {
  #leases: Lease[] = [];

  add(lease: Lease): void {
    this.#leases.push(lease);
  }

  release(): void {
    const leases = this.#leases;
    if (leases.length === 0) return;
    this.#leases = [];
    for (const lease of leases) lease.release();
  }
}

export class SplitChain implements Chain {
  readonly head: number;
  readonly readable: Uint8Array[] = [];
  readonly writable: Uint8Array[] = [];
  readableBytes = 0;
  writableBytes = 0;
  readonly lease: LeaseList = new LeaseList();

  constructor(head: number) {
    this.head = head;
  }
}

const TOTAL_MAX_BYTES = 0xffff_ffff;

/**
 * Reads descriptor chains out of memory that the driver can change at any time. Each descriptor is copied into
 * locals, once, and only the copy is judged and used. A chain is either wholly valid or a fault without leases.
 *
 * Choices where the specification leaves room: a descriptor of length 0 counts as a descriptor and is otherwise as
 * if it were absent; its address is not looked at. WRITE on the descriptor of an indirect table is ignored
 * (2.7.5.3.2). An indirect table may have more entries than the queue, up to `limits.chainDescriptorsMax`: Linux
 * makes such tables.
 */
export class ChainReader {
  readonly #memory: AddressSpace;
  readonly #size: number;
  readonly #indirectAllowed: boolean;
  /** Private copy of an indirect table; made when first needed. */
  #table: Uint32Array = new Uint32Array(0);
  #tableBytes: Uint8Array = new Uint8Array(0);
  readonly #tableParts: Uint8Array[] = [];
  /** Descriptors of the chain being read. */
  #count = 0;

  constructor(memory: AddressSpace, size: number, indirectAllowed: boolean) {
    this.#memory = memory;
    this.#size = size;
    this.#indirectAllowed = indirectAllowed;
  }

  /** @param head already known to be below the queue size */
  read(desc: Uint32Array, head: number): SplitChain | QueueFault {
    const chain = new SplitChain(head);
    this.#count = 0;
    const fault = this.#walk(desc, this.#size, head, false, chain);
    if (fault === undefined) return chain;
    chain.lease.release();
    return fault;
  }

  #walk(
    desc: Uint32Array,
    entries: number,
    first: number,
    indirect: boolean,
    chain: SplitChain,
  ): QueueFault | undefined {
    // A loop cannot be told from a long chain, and need not be: both end at the number of entries.
    let left = entries;
    let index = first;
    for (;;) {
      if (left === 0 || this.#count === limits.chainDescriptorsMax) {
        return new QueueFault('chain-length', `chain ${chain.head} loops or is longer than its table`);
      }
      left -= 1;
      this.#count += 1;
      const at = index * descWords;
      const lo = desc[at]!;
      const hi = desc[at + 1]!;
      const length = desc[at + 2]!;
      // One load takes flags and next together.
      const flagsNext = desc[at + 3]!;
      if ((flagsNext & DESC_INDIRECT) !== 0) {
        if (indirect) return new QueueFault('indirect-nested', `chain ${chain.head}: indirect table in a table`);
        return this.#indirect(hi, lo, length, flagsNext, chain);
      }
      const fault = this.#append(hi, lo, length, (flagsNext & DESC_WRITE) !== 0, chain);
      if (fault !== undefined) return fault;
      if ((flagsNext & DESC_NEXT) === 0) return undefined;
      index = flagsNext >>> 16;
      if (index >= entries) return new QueueFault('next-range', `chain ${chain.head}: next ${index} of ${entries}`);
    }
  }

  #indirect(hi: number, lo: number, length: number, flags: number, chain: SplitChain): QueueFault | undefined {
    if (!this.#indirectAllowed) return new QueueFault('indirect-not-negotiated', `chain ${chain.head}`);
    if ((flags & DESC_NEXT) !== 0) return new QueueFault('indirect-with-next', `chain ${chain.head}`);
    const entries = length / descBytes;
    if (length === 0 || length % descBytes !== 0 || entries > limits.chainDescriptorsMax) {
      return new QueueFault('indirect-length', `chain ${chain.head}: table of ${length} bytes`);
    }
    const parts = this.#tableParts;
    const lease = this.#memory.translate(hi, lo, length, 'read', parts);
    if (lease instanceof TranslateFault) return new QueueFault('address', `indirect table: ${lease.reason}`);
    if (this.#tableBytes.length < length) {
      this.#table = new Uint32Array(length / 4);
      this.#tableBytes = new Uint8Array(this.#table.buffer);
    }
    let at = 0;
    for (const part of parts) {
      this.#tableBytes.set(part, at);
      at += part.length;
    }
    parts.length = 0;
    lease.release();
    return this.#walk(this.#table, entries, 0, true, chain);
  }

  #append(hi: number, lo: number, length: number, write: boolean, chain: SplitChain): QueueFault | undefined {
    // 2.7.4.2: device-writable elements come after all device-readable ones.
    if (!write && chain.writableBytes > 0) {
      return new QueueFault('chain-order', `chain ${chain.head}: readable after writable`);
    }
    if (length === 0) return undefined;
    // 2.7.5.2 forbids more; and a used length is a u32.
    if (chain.readableBytes + chain.writableBytes + length > TOTAL_MAX_BYTES) {
      return new QueueFault('chain-bytes', `chain ${chain.head}: more than ${TOTAL_MAX_BYTES} bytes`);
    }
    const lease = write
      ? this.#memory.translate(hi, lo, length, 'write', chain.writable)
      : this.#memory.translate(hi, lo, length, 'read', chain.readable);
    if (lease instanceof TranslateFault) return new QueueFault('address', `chain ${chain.head}: ${lease.reason}`);
    chain.lease.add(lease);
    if (write) chain.writableBytes += length;
    else chain.readableBytes += length;
    return undefined;
  }
}
