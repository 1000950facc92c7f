import { cpus, loadavg, release } from 'node:os';
import { whyNoRing } from '../../src/bridge/backend/ring-io.ts';
import type { Comparison, Race, Value } from './item.ts';
import { type Estimate, type Held, held, inUnits, median, ratioOf, type Sample } from './stats.ts';
import { describePlaces } from './world.ts';

interface Judged {
  readonly name: string;
  readonly unit: string;
  /** Ends of the 95 % interval, of the ratio or of the value; null with too few samples, or nothing to compare with. */
  readonly low: number | null;
  readonly high: number | null;
  readonly bar: number | null;
  readonly stretch: number | null;
  /** Null without a bar or an interval of anything. */
  readonly held: Held | null;
}

/** A ratio, above 1 when ours is better. */
export interface RatioResult extends Judged {
  readonly kind: 'ratio';
  readonly ours: number | null;
  readonly baseline: number | null;
  readonly oursName: string;
  readonly baselineName: string;
  readonly ratio: number | null;
  /** Why a side, and with it the ratio, is missing. */
  readonly missing: string | null;
}

/** A value, better when it is less. */
export interface ValueResult extends Judged {
  readonly kind: 'value';
  readonly value: number;
}

export type Result = RatioResult | ValueResult;

/** Four digits: more would be noise. */
const rounded = (value: number | null): number | null => (value === null ? null : Number(value.toPrecision(4)));

export function valueResult({ name, unit, bar, stretch }: Value, estimate: Estimate): ValueResult {
  return {
    kind: 'value',
    name,
    unit,
    value: Number(estimate.value.toPrecision(4)),
    low: rounded(estimate.low),
    high: rounded(estimate.high),
    bar: bar ?? null,
    stretch: stretch ?? null,
    held: bar === undefined ? null : held(estimate, bar, 'less'),
  };
}

/** @param samples of each side by its name, or why there are none */
export function ratioResult(
  { metric, sides }: Race,
  { name, ours, baseline, bar, stretch }: Comparison,
  samples: Readonly<Record<string, readonly Sample[] | string>>,
): RatioResult {
  const [mine, other] = [samples[ours] ?? 'not run', samples[baseline] ?? 'not run'];
  const of = (side: readonly Sample[] | string): number | null =>
    typeof side === 'string' ? null : rounded(median(side.map((sample) => inUnits(metric, sample))));
  const missing = typeof mine === 'string' ? mine : typeof other === 'string' ? other : null;
  const estimate = typeof mine === 'string' || typeof other === 'string' ? undefined : ratioOf(metric, mine, other);
  return {
    kind: 'ratio',
    name,
    unit: metric.unit,
    ours: of(mine),
    baseline: of(other),
    oursName: sides[ours]!,
    baselineName: sides[baseline]!,
    ratio: rounded(estimate?.value ?? null),
    low: rounded(estimate?.low ?? null),
    high: rounded(estimate?.high ?? null),
    bar: bar ?? null,
    stretch: stretch ?? null,
    held: bar === undefined || estimate === undefined ? null : held(estimate, bar, 'more'),
    missing,
  };
}

/** What the numbers were measured on, one fact a line. */
export function machineLines(): string[] {
  const processors = cpus();
  const noRing = whyNoRing();
  return [
    `cpu    ${processors.length} x ${processors[0]?.model.trim() || process.arch}`,
    `kernel Linux ${release()}`,
    `node   ${process.version}`,
    `load   ${loadavg()[0]?.toFixed(2)} in the last minute, before the measurements`,
    `images ${describePlaces()}`,
    `disks  ${noRing === null ? 'io_uring' : `thread pool: ${noRing}`}`,
  ];
}

/** Above it the other programs take turns with ours: spinning ends are interrupted, and spreads are wide. */
const loadMaxPerProcessor = 0.25;

export function loadNotes(): string[] {
  const busy = (loadavg()[0] ?? 0) > loadMaxPerProcessor * cpus().length;
  return busy ? ['busy: other programs run here, so these numbers are not fit to be quoted'] : [];
}

/** What could not be measured, once for each reason. */
export function missingNotes(results: readonly Result[]): string[] {
  const reasons = results.flatMap((result) =>
    result.kind === 'ratio' && result.missing !== null ? [result.missing] : [],
  );
  return [...new Set(reasons)].map((reason) => `not measured: ${reason}`);
}
