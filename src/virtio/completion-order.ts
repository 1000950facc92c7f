import { assert } from '../kit/assert.ts';

/** A chain that may be handed back, and the bytes written to it. */
export interface Completion<T> {
  readonly chain: T;
  readonly writtenBytes: number;
}

/**
 * Hands completed chains back in the order in which they were taken, as IN_ORDER demands (virtio 1.3, 2.7.9, 2.8.8):
 * one that is completed early waits for all that were taken before it. It holds at most as many as the queue has entries.
 */
export class CompletionOrder<T> {
  readonly #size: number;
  readonly #chains: Array<T | undefined>;
  /** By place, -1 while the chain is not completed. */
  readonly #written: Float64Array;
  /** Counters that do not wrap: the first chain that waits, and the next one to be taken. */
  #first = 0;
  #next = 0;
  readonly #places = new Map<T, number>();

  /** @param size of the queue, entries */
  constructor(size: number) {
    this.#size = size;
    this.#chains = new Array<T | undefined>(size).fill(undefined);
    this.#written = new Float64Array(size).fill(-1);
  }

  taken(chain: T): void {
    assert(this.#next - this.#first < this.#size, 'no more chains are taken than the queue has entries');
    const place = this.#next % this.#size;
    this.#chains[place] = chain;
    this.#places.set(chain, place);
    this.#next += 1;
  }

  completed(chain: T, writtenBytes: number): void {
    this.#written[this.#places.get(chain)!] = writtenBytes;
    this.#places.delete(chain);
  }

  /** The next chain that may be handed back, each one once. */
  shift(): Completion<T> | undefined {
    const place = this.#first % this.#size;
    const writtenBytes = this.#written[place]!;
    if (writtenBytes < 0) return undefined;
    const chain = this.#chains[place]!;
    this.#chains[place] = undefined;
    this.#written[place] = -1;
    this.#first += 1;
    return { chain, writtenBytes };
  }
}
