import type { Scope } from '../../src/kit/scope.ts';
import type { Baselines } from './compiler.ts';
import type { Placement, Processors } from './placement.ts';
import type { Prepared } from './prepared.ts';
import type { Estimate, Metric, Sample } from './stats.ts';
import type { World } from './world.ts';

/** One side of a comparison: runs for about that long. */
export type Run = (milliseconds: number) => Promise<Sample>;

/** What an item may use. Programs end with the scope. */
export interface Means {
  readonly scope: Scope;
  /** Undefined without a compiler. */
  readonly baselines: Baselines | undefined;
  readonly prepared: Prepared;
  readonly processors: Processors;
  /** Shorter and fewer runs, whose results are not meant to be kept. */
  readonly quick: boolean;
  /** Service and guest at a place, started for the first item that asks. */
  world(placement: Placement): Promise<World>;
}

/** A ratio of two sides that ran in turns. */
export interface Comparison {
  /** Unique over all items. */
  readonly name: string;
  /** Sides of the item. */
  readonly ours: string;
  readonly baseline: string;
  /** The ratio we aim for, and the one beyond it; docs/bench.md says why. */
  readonly bar?: number;
  readonly stretch?: number;
}

/** Sides that run in turns, and which of them are compared. */
export interface Race {
  readonly kind: 'race';
  readonly metric: Metric;
  /** What the sides are, by their names in `comparisons`; in words for a table. */
  readonly sides: Readonly<Record<string, string>>;
  readonly comparisons: readonly Comparison[];
  /**
   * Makes sides ready. One that cannot be had is a sentence that says why.
   * @param wanted the sides that are needed
   */
  open(means: Means, wanted: ReadonlySet<string>): Promise<Readonly<Record<string, Run | string>>>;
}

/** A value that is compared with a bar only. */
export interface Value {
  readonly name: string;
  readonly unit: string;
  /** The most we aim for. */
  readonly bar?: number;
  readonly stretch?: number;
}

/** Values that are measured once, in their own way. */
export interface Gauge {
  readonly kind: 'gauge';
  readonly values: readonly Value[];
  /** @returns one for each of `values`, in their order */
  measure(means: Means): Promise<readonly Estimate[]>;
}

export type Item = Race | Gauge;

export const namesOf = (item: Item): string[] =>
  (item.kind === 'race' ? item.comparisons : item.values).map(({ name }) => name);

export const microseconds: Metric = { kind: 'time', unit: 'us', scale: 1e6 };
export const millionsPerSecond: Metric = { kind: 'rate', unit: 'M/s', scale: 1e-6 };
export const operationsPerSecond: Metric = { kind: 'rate', unit: 'IOPS', scale: 1 };
export const gigabytesPerSecond = (bytes: number): Metric => ({ kind: 'rate', unit: 'GB/s', scale: bytes / 1e9 });
