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

/** A ratio above 1 means that ours is better. `low` and `high` are its 10th and 90th percentile over the pairs. */
export interface Comparison {
  readonly ours: number;
  readonly baseline: number | null;
  readonly ratio: number | null;
  readonly low: number | null;
  readonly high: number | null;
}

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

function inUnits(metric: Metric, { count, seconds }: Sample): number {
  return (metric.kind === 'rate' ? count / seconds : seconds / count) * metric.scale;
}

/**
 * Compares samples taken in pairs: the ratio is formed inside each pair, which ran at nearly the same time, so that
 * what else the machine does falls out of it; only then is the median taken.
 * @param baseline as many as `ours`, or null
 */
export function compare(metric: Metric, ours: readonly Sample[], baseline: readonly Sample[] | null): Comparison {
  const ourValues = ours.map((sample) => inUnits(metric, sample));
  if (baseline === null) return { ours: median(ourValues), baseline: null, ratio: null, low: null, high: null };
  if (baseline.length !== ours.length)
    throw new RangeError(`${ours.length} and ${baseline.length} samples are no pairs`);
  const baseValues = baseline.map((sample) => inUnits(metric, sample));
  const ratios = ourValues.map((our, i) => (metric.kind === 'rate' ? our / baseValues[i]! : baseValues[i]! / our));
  return {
    ours: median(ourValues),
    baseline: median(baseValues),
    ratio: median(ratios),
    low: percentile(ratios, 0.1),
    high: percentile(ratios, 0.9),
  };
}

/** Runs two things in turns, each as often first as the other. `second` null: only the first. */
export async function interleave<T>(
  pairs: number,
  first: () => Promise<T>,
  second: (() => Promise<T>) | null,
): Promise<{ first: T[]; second: T[] | null }> {
  const results = { first: [] as T[], second: second === null ? null : ([] as T[]) };
  for (let pair = 0; pair < pairs; pair++) {
    const runFirst = async () => void results.first.push(await first());
    const runSecond = async () => void results.second?.push(await second!());
    if (second === null) await runFirst();
    else for (const run of pair % 2 === 0 ? [runFirst, runSecond] : [runSecond, runFirst]) await run();
  }
  return results;
}
