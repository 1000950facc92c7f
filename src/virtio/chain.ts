import { limits } from '../kit/limits.ts';
import { type AddressSpace, type Lease, TranslateFault } from '../ports/memory.ts';
import { type Chain, QueueFault } from './queue.ts';

/** Descriptor flags that both ring layouts share (virtio 1.3, 2.7.5, 2.8.3 to 2.8.7). */
export const DESC_NEXT = 1;
export const DESC_WRITE = 2;
export const DESC_INDIRECT = 4;

/** Bytes and u32 words of a descriptor; address low, address high and length come first in both layouts. */
export const descBytes = 16;
export const descWords = descBytes / 4;

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

export class BufferChain implements Chain {
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
 * What reading a chain has in common for both ring layouts: it turns descriptors, already copied out of shared
 * memory, into host memory.
 *
 * Choices where the specification leaves room: a descriptor of length 0 counts as a descriptor and is otherwise as
 * if it were absent; its address is not looked at. An indirect table may have more entries than the queue, up to
 * `limits.chainDescriptorsMax`: Linux makes such tables.
 */
export class ChainParts {
  readonly #memory: AddressSpace;
  readonly #indirectAllowed: boolean;
  /** Private copy of an indirect table; made when first needed. */
  #table: Uint32Array = new Uint32Array(0);
  #tableBytes: Uint8Array = new Uint8Array(0);
  readonly #tableParts: Uint8Array[] = [];

  constructor(memory: AddressSpace, indirectAllowed: boolean) {
    this.#memory = memory;
    this.#indirectAllowed = indirectAllowed;
  }

  /** The indirect table that was copied last. */
  get table(): Uint32Array {
    return this.#table;
  }

  /**
   * Copies an indirect table.
   * @param linked the descriptor that refers to the table may not be there, for it is linked to others
   * @returns its entries
   */
  copyTable(chain: BufferChain, hi: number, lo: number, length: number, linked: boolean): number | QueueFault {
    if (!this.#indirectAllowed) return new QueueFault('indirect-not-negotiated', `chain ${chain.head}`);
    if (linked) return new QueueFault('indirect-with-next', `chain ${chain.head}`);
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
    return entries;
  }

  append(chain: BufferChain, hi: number, lo: number, length: number, write: boolean): QueueFault | undefined {
    // 2.7.4.2, 2.8.17: device-writable elements come after all device-readable ones.
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
