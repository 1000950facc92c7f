import type { Clock } from './clock.ts';

/** Lets something happen a few times at once, and then once in an interval. */
export class Pace {
  readonly #clock: Clock;
  readonly #burst: number;
  readonly #intervalMs: number;
  #left: number;
  #sinceMs: number;

  constructor(clock: Clock, burst: number, intervalMs: number) {
    this.#clock = clock;
    this.#burst = burst;
    this.#intervalMs = intervalMs;
    this.#left = burst;
    this.#sinceMs = clock.nowMs();
  }

  /**
   * @param times how often it happens now, at most as often as it may at once
   * @returns 0, and it counts; else the milliseconds until it may happen
   */
  take(times = 1): number {
    const now = this.#clock.nowMs();
    const intervals = Math.floor((now - this.#sinceMs) / this.#intervalMs);
    this.#sinceMs += intervals * this.#intervalMs;
    this.#left = Math.min(this.#burst, this.#left + intervals);
    const missing = times - this.#left;
    if (missing > 0) return Math.max(1, Math.ceil(this.#sinceMs + missing * this.#intervalMs - now));
    this.#left -= times;
    return 0;
  }
}
