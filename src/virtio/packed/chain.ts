import { limits } from '../../kit/limits.ts';
import type { AddressSpace } from '../../ports/memory.ts';
import { BufferChain, ChainParts, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, descWords } from '../chain.ts';
import { QueueFault } from '../queue.ts';
import { FLAGS_SHIFT, ID_MASK } from './ring.ts';

/** Its `head` is the buffer id. */
export class PackedChain extends BufferChain {
  /** Descriptors in the ring. */
  readonly descriptors: number;
  /** Entry of the in-flight log. */
  logEntry = 0;

  constructor(id: number, descriptors: number) {
    super(id);
    this.descriptors = descriptors;
  }
}

/**
 * Reads chains out of a ring that the driver can change at any time, in two steps: `copy` takes the descriptors of a
 * chain out of shared memory, once; `resolve` judges and uses only this copy. A chain is either wholly valid or a fault
 * without leases.
 *
 * Any u16 is a good buffer id. The AVAIL and USED flags count in the first descriptor of a chain only: the driver
 * writes it last (2.8.6).
 */
export class PackedChainReader {
  readonly #parts: ChainParts;
  readonly #size: number;
  /** The copy, 4 words a descriptor as in the ring. */
  readonly words: Uint32Array;
  #count = 0;

  constructor(memory: AddressSpace, size: number, indirectAllowed: boolean) {
    this.#parts = new ChainParts(memory, indirectAllowed);
    this.#size = size;
    this.words = new Uint32Array(size * descWords);
  }

  /** Descriptors of the copy. */
  get count(): number {
    return this.#count;
  }

  /** Buffer id of the copy. */
  get id(): number {
    return this.words[(this.#count - 1) * descWords + 3]! & ID_MASK;
  }

  /** Judges `count` descriptors that were put into `words`. */
  preset(count: number): void {
    this.#count = count;
  }

  /**
   * @param first position of an available descriptor
   * @param flagsId its word of flags and id, as it was seen to be available
   * @param free descriptors of the ring that are not in flight, at least 1
   */
  copy(ring: Uint32Array, first: number, flagsId: number, free: number): QueueFault | undefined {
    const { words } = this;
    let index = first;
    let word = flagsId;
    for (let count = 0; ; ) {
      const from = index * descWords;
      const to = count * descWords;
      words[to] = ring[from]!;
      words[to + 1] = ring[from + 1]!;
      words[to + 2] = ring[from + 2]!;
      words[to + 3] = word;
      count += 1;
      if (((word >>> FLAGS_SHIFT) & DESC_NEXT) === 0) {
        this.#count = count;
        return undefined;
      }
      if (count === free) return new QueueFault('chain-length', `chain at ${first} has more than ${free} descriptors`);
      index += 1;
      if (index === this.#size) index = 0;
      word = ring[index * descWords + 3]!;
    }
  }

  /** The chain that the copy describes. */
  resolve(): PackedChain | QueueFault {
    const chain = new PackedChain(this.id, this.#count);
    const fault = this.#resolve(chain);
    if (fault === undefined) return chain;
    chain.lease.release();
    return fault;
  }

  #resolve(chain: PackedChain): QueueFault | undefined {
    const { words } = this;
    for (let i = 0; i < this.#count; i++) {
      const at = i * descWords;
      const lo = words[at]!;
      const hi = words[at + 1]!;
      const length = words[at + 2]!;
      const flags = words[at + 3]! >>> FLAGS_SHIFT;
      if ((flags & DESC_INDIRECT) !== 0) {
        // 2.8.19: not linked in either direction.
        const entries = this.#parts.copyTable(chain, hi, lo, length, this.#count > 1);
        return entries instanceof QueueFault ? entries : this.#table(chain, entries);
      }
      const fault = this.#parts.append(chain, hi, lo, length, (flags & DESC_WRITE) !== 0);
      if (fault !== undefined) return fault;
    }
    return undefined;
  }

  /** 2.8.7: all entries of a table, in order; WRITE is the only flag with a meaning. */
  #table(chain: PackedChain, entries: number): QueueFault | undefined {
    if (entries === limits.chainDescriptorsMax) {
      return new QueueFault('chain-length', `chain ${chain.head} has more than ${entries} descriptors`);
    }
    const words = this.#parts.table;
    for (let i = 0; i < entries; i++) {
      const at = i * descWords;
      const write = ((words[at + 3]! >>> FLAGS_SHIFT) & DESC_WRITE) !== 0;
      const fault = this.#parts.append(chain, words[at + 1]!, words[at]!, words[at + 2]!, write);
      if (fault !== undefined) return fault;
    }
    return undefined;
  }
}
