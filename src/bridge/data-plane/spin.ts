import { limits } from '../../kit/limits.ts';

/**
 * Decides before each wait whether looking for the next event for a little while, instead of sleeping, is worth it. A
 * look that found nothing is followed by a pause of 1 wait without one, the next in vain by 2, then 4, and so on; a look that
 * paid halves the pause that comes next. So where events come fast every wait begins with a look, and where they do
 * not, or where the other side needs this processor, hardly any does.
 */
export class SpinBudget {
  readonly #budgetUs: number;
  #penalty = 0;
  #pause = 0;

  /** @param budgetUs longest look in microseconds, 0 for none */
  constructor(budgetUs: number) {
    this.#budgetUs = budgetUs;
  }

  /** @returns for how long to look before this wait sleeps; `paid` or `unpaid` is called after a look */
  takeUs(): number {
    if (this.#pause === 0) return this.#budgetUs;
    this.#pause--;
    return 0;
  }

  paid(): void {
    this.#penalty >>>= 1;
  }

  unpaid(): void {
    this.#penalty = Math.min(Math.max(1, this.#penalty * 2), limits.dataPlaneSpinPauseWaits);
    this.#pause = this.#penalty;
  }
}
