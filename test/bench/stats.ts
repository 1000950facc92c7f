/** One measurement: how often something was done in how much time. */
export interface Sample {
  readonly count: number;
  readonly seconds: number;
}

/** What a sample is turned into. `rate`: things a second, more is better; `time`: seconds a thing, less is better. */
export interface Metric {
  readonly kind: 'rate' | 'time';
  readonly unit: string;
  /** Units in a thing a second, or in a second. */
  readonly scale: number;
}

/** A value and the two ends of its 95 % interval; both null where there are too few samples for one. */
export interface Estimate {
  readonly value: number;
  readonly low: number | null;
  readonly high: number | null;
}

/** Whether a bar is reached: by the whole interval, by nothing of it, or by a part of it, which decides nothing. */
export type Held = 'yes' | 'no' | 'undecided';

/**
 * The value below which the part `fraction` of `values` lies, interpolated between neighbours.
 * @param values at least one, in any order
 * @param fraction 0..1
 */
export function percentile(values: readonly number[], fraction: number): number {
  if (values.length === 0) throw new RangeError('no values');
  const sorted = [...values].sort((a, b) => a - b);
  const at = fraction * (sorted.length - 1);
  const below = sorted[Math.floor(at)]!;
  const above = sorted[Math.ceil(at)]!;
  return below + (above - below) * (at - Math.floor(at));
}

export const median = (values: readonly number[]): number => percentile(values, 0.5);

const confidence = 0.95;

/** Probability that of `n` tries, each a success with probability `p`, at most `k` succeed. */
function binomialAtMost(k: number, n: number, p: number): number {
  // In logarithms: the first terms are less than any number for a high quantile of many values.
  let term = n * Math.log(1 - p);
  let sum = 0;
  for (let i = 0; i <= k; i++) {
    sum += Math.exp(term);
    term += Math.log((n - i) / (i + 1)) + Math.log(p / (1 - p));
  }
  return sum;
}

/**
 * A quantile and its 95 % interval, from order statistics: nothing is assumed about how the values are distributed. How
 * many of `n` values lie below the true quantile is binomial; the ends are the values that leave at most 2.5 % on either
 * side, so that the interval covers at least 95 %. Six values are the fewest that bound a median.
 * @param values at least one, in any order. @param fraction 0..1, without its ends
 */
export function quantile(values: readonly number[], fraction: number): Estimate {
  const sorted = [...values].sort((a, b) => a - b);
  const n = sorted.length;
  const tail = (1 - confidence) / 2;
  // Largest number of values that may be left out on one side.
  const droppable = (p: number): number => {
    let drop = 0;
    while (drop < n && binomialAtMost(drop, n, p) <= tail) drop++;
    return drop - 1;
  };
  const [below, above] = [droppable(fraction), droppable(1 - fraction)];
  const value = percentile(sorted, fraction);
  if (below < 0 || above < 0) return { value, low: null, high: null };
  return { value, low: sorted[below]!, high: sorted[n - 1 - above]! };
}

/** @param bar what is aimed for. @param better whether more or less is better */
export function held({ low, high }: Estimate, bar: number, better: 'more' | 'less'): Held {
  if (low === null || high === null) return 'undecided';
  const [worst, best] = better === 'more' ? [low, high] : [-high, -low];
  const aim = better === 'more' ? bar : -bar;
  if (worst >= aim) return 'yes';
  return best < aim ? 'no' : 'undecided';
}

export function inUnits(metric: Metric, { count, seconds }: Sample): number {
  return (metric.kind === 'rate' ? count / seconds : seconds / count) * metric.scale;
}

/**
 * The ratio of two sides that ran in turns, above 1 when ours is better: formed inside each round, whose parts ran at
 * nearly the same time, so that what else the machine does falls out of it; only then is the median taken.
 */
export function ratioOf(metric: Metric, ours: readonly Sample[], baseline: readonly Sample[]): Estimate {
  if (baseline.length !== ours.length)
    throw new RangeError(`${ours.length} and ${baseline.length} samples are no pairs`);
  const ratios = ours.map((our, i) => {
    const [mine, other] = [inUnits(metric, our), inUnits(metric, baseline[i]!)];
    return metric.kind === 'rate' ? mine / other : other / mine;
  });
  return quantile(ratios, 0.5);
}

/**
 * Runs things in turns. Every round begins with another one and every second one goes backwards, so that each comes
 * before and after each other as often.
 * @returns results by thing, one a round
 */
export async function inTurns<T>(rounds: number, things: readonly (() => Promise<T>)[]): Promise<T[][]> {
  const results: T[][] = things.map(() => []);
  const order = things.map((_, i) => i);
  for (let round = 0; round < rounds; round++) {
    const start = Math.floor(round / 2) % things.length;
    const turn = [...order.slice(start), ...order.slice(0, start)];
    for (const i of round % 2 === 0 ? turn : turn.reverse()) results[i]!.push(await things[i]!());
  }
  return results;
}
