import { limits } from '../../kit/limits.ts';
import type { AddressSpace } from '../../ports/memory.ts';
import { BufferChain, ChainParts, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, descWords } from '../chain.ts';
import { QueueFault } from '../queue.ts';

/**
 * Reads descriptor chains out of memory that the driver can change at any time. Each descriptor is copied into
 * locals, once, and only the copy is judged and used. A chain is either wholly valid or a fault without leases.
 * WRITE on the descriptor of an indirect table is ignored (2.7.5.3.2).
 */
export class SplitChainReader {
  readonly #parts: ChainParts;
  readonly #size: number;
  /** Descriptors of the chain being read. */
  #count = 0;

  constructor(memory: AddressSpace, size: number, indirectAllowed: boolean) {
    this.#parts = new ChainParts(memory, indirectAllowed);
    this.#size = size;
  }

  /** @param head already known to be below the queue size */
  read(desc: Uint32Array, head: number): BufferChain | QueueFault {
    const chain = new BufferChain(head);
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
    chain: BufferChain,
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
        const inside = this.#parts.copyTable(chain, hi, lo, length, (flagsNext & DESC_NEXT) !== 0);
        return inside instanceof QueueFault ? inside : this.#walk(this.#parts.table, inside, 0, true, chain);
      }
      const fault = this.#parts.append(chain, hi, lo, length, (flagsNext & DESC_WRITE) !== 0);
      if (fault !== undefined) return fault;
      if ((flagsNext & DESC_NEXT) === 0) return undefined;
      index = flagsNext >>> 16;
      if (index >= entries) return new QueueFault('next-range', `chain ${chain.head}: next ${index} of ${entries}`);
    }
  }
}
