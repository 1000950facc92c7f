import { countAt } from './protocol.ts';
import type { SpinBudget } from './spin.ts';

export interface RoundParts {
  /** Waits for events and takes some of them in. @param timeoutMs 0 only looks. @returns 0 when there was none */
  readonly poll: (timeoutMs: number) => number;
  /** Passes on what was taken in. @returns whether something is left */
  readonly forward: () => boolean;
  readonly spin: SpinBudget;
  /** Monotonic microseconds. */
  readonly nowUs: () => number;
  readonly counts: Float64Array;
}

/** What a data-plane thread does all the time: wait for events, take in a bounded number, pass them on. */
export class Rounds {
  readonly #p: RoundParts;
  /** An event came in the last round: the next one may be near. */
  #busy = false;
  #more = false;

  constructor(parts: RoundParts) {
    this.#p = parts;
  }

  /** One round. @param maxWaitMs 0 does not wait; there is no wait either while something is left to be passed on */
  run(maxWaitMs: number): void {
    const found = this.#more || maxWaitMs === 0 ? this.#p.poll(0) : this.#wait(maxWaitMs);
    this.#busy = found > 0;
    this.#p.counts[countAt.rounds]!++;
    this.#more = this.#p.forward();
  }

  #wait(maxWaitMs: number): number {
    const { poll, counts } = this.#p;
    const found = this.#busy ? this.#look() : 0;
    if (found > 0) return found;
    counts[countAt.sleeps]!++;
    return poll(maxWaitMs);
  }

  #look(): number {
    const { poll, spin, nowUs, counts } = this.#p;
    const us = spin.takeUs();
    if (us === 0) return 0;
    const end = nowUs() + us;
    do {
      const found = poll(0);
      if (found === 0) continue;
      counts[countAt.spinsPaid]!++;
      spin.paid();
      return found;
    } while (nowUs() < end);
    counts[countAt.spinsUnpaid]!++;
    spin.unpaid();
    return 0;
  }
}
