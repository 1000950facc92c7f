import type { Clock, Timer } from '../../src/kit/clock.ts';
import type { Random } from '../../src/kit/random.ts';
import type { Scheduler } from '../../src/kit/scheduler.ts';
import { Prng } from './virtqueue-pair.ts';

/** Unwinds whatever a simulated process was doing when it was killed. */
class SimKilled extends Error {}

interface SimEvent {
  readonly atMs: number;
  readonly order: number;
  readonly process: SimProcess;
  readonly run: () => void;
  cancelled: boolean;
}

/** A program of the world: it runs only what the loop gives it, and a kill drops all of that. */
export class SimProcess {
  readonly name: string;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly random: Random;
  /** What it holds open, by kind; counted by the ports. */
  readonly held = new Map<string, number>();
  readonly soons: Array<() => void> = [];
  timers = 0;
  #alive = true;
  #touchesLeft = Number.POSITIVE_INFINITY;
  #onDeath: Array<() => void> = [];

  constructor(loop: SimLoop, name: string) {
    this.name = name;
    this.clock = { nowMs: () => loop.nowMs, after: (delayMs, callback) => this.#timer(loop, delayMs, callback) };
    this.scheduler = {
      soon: (work) => this.soons.push(work),
      later: (work) => void loop.at(this, loop.random.chance(0.5) ? 0 : loop.random.below(100) / 100, work),
    };
    this.random = {
      fill: (target) => {
        for (let i = 0; i < target.length; i++) target[i] = loop.random.u32();
      },
    };
  }

  #timer(loop: SimLoop, delayMs: number, callback: () => void): Timer {
    this.timers += 1;
    let open = true;
    const close = (): void => {
      if (open) this.timers -= 1;
      open = false;
    };
    const event = loop.at(this, delayMs, () => {
      close();
      callback();
    });
    return {
      cancel: () => {
        close();
        event.cancelled = true;
      },
    };
  }

  get alive(): boolean {
    return this.#alive;
  }

  onDeath(work: () => void): void {
    this.#onDeath.push(work);
  }

  /** From now on nothing of it runs. */
  die(): void {
    if (!this.#alive) return;
    this.#alive = false;
    this.soons.length = 0;
    for (const work of this.#onDeath) work();
  }

  /** Kills it in the middle of what it does: at the given use of a port from now on. */
  dieAtTouch(touches: number): void {
    this.#touchesLeft = touches;
  }

  /** A process uses a port. @throws SimKilled */
  touch(): void {
    if (this.#alive && this.#touchesLeft-- <= 0) this.die();
    if (!this.#alive) throw new SimKilled(this.name);
  }

  hold(kind: string): { close(): void } {
    this.held.set(kind, (this.held.get(kind) ?? 0) + 1);
    let open = true;
    return {
      close: () => {
        if (open) this.held.set(kind, this.held.get(kind)! - 1);
        open = false;
      },
    };
  }
}

/** Simulated time and the order of everything that happens; the same seed gives the same run. */
export class SimLoop {
  readonly random: Prng;
  nowMs = 0;
  steps = 0;
  /** What the simulated programs did wrong; the first ends the run. */
  violation: string | undefined;
  /** The latest things that happened, for the report of a failure. */
  readonly trail: string[] = [];
  readonly #events: SimEvent[] = [];
  readonly #processes = new Set<SimProcess>();

  constructor(seed: number) {
    this.random = new Prng(seed);
  }

  process(name: string): SimProcess {
    const process = new SimProcess(this, name);
    this.#processes.add(process);
    process.onDeath(() => this.#processes.delete(process));
    return process;
  }

  log(text: string): void {
    this.trail.push(`${this.nowMs.toFixed(2)} ms, step ${this.steps}: ${text}`);
    if (this.trail.length > 60) this.trail.shift();
  }

  fail(what: string): void {
    if (this.violation === undefined) this.log(`VIOLATION ${what}`);
    this.violation ??= what;
  }

  check(condition: boolean, what: string): void {
    if (!condition) this.fail(what);
  }

  /** Plans an event of a process; those of the same time run in seeded order. */
  at(process: SimProcess, delayMs: number, run: () => void): { cancelled: boolean } {
    const event: SimEvent = {
      atMs: this.nowMs + Math.max(0, delayMs),
      order: this.random.u32(),
      process,
      run,
      cancelled: false,
    };
    let low = 0;
    let high = this.#events.length;
    // Latest first, so that the next one is at the end.
    while (low < high) {
      const middle = (low + high) >>> 1;
      const other = this.#events[middle]!;
      if (other.atMs > event.atMs || (other.atMs === event.atMs && other.order > event.order)) low = middle + 1;
      else high = middle;
    }
    this.#events.splice(low, 0, event);
    return event;
  }

  sleep(process: SimProcess, delayMs: number): Promise<void> {
    return new Promise((resolve) => this.at(process, delayMs, resolve));
  }

  /** Runs the next event and all that it causes at once. @returns false when nothing is planned */
  async step(): Promise<boolean> {
    for (;;) {
      const event = this.#events.pop();
      if (event === undefined) return false;
      if (event.cancelled || !event.process.alive) continue;
      this.nowMs = event.atMs;
      this.steps += 1;
      this.#guarded(event.process, event.run);
      await this.settle();
      return true;
    }
  }

  /** Runs deferred work, in seeded order, and promises until neither is left. */
  async settle(): Promise<void> {
    do {
      for (const process of this.#processes) {
        while (process.soons.length > 0) {
          const [work] = process.soons.splice(this.random.below(process.soons.length), 1);
          this.#guarded(process, work!);
        }
      }
      await new Promise<void>((resolve) => setImmediate(resolve));
    } while ([...this.#processes].some((process) => process.soons.length > 0));
  }

  #guarded(process: SimProcess, run: () => void): void {
    try {
      run();
    } catch (error) {
      if (error instanceof SimKilled) return;
      this.fail(`${process.name} threw ${error instanceof Error ? error.stack : String(error)}`);
    }
  }
}
