import { cpus, loadavg, release } from 'node:os';
import type { Item } from './items.ts';
import type { Comparison } from './stats.ts';
import { describePlaces } from './world.ts';

/** One entry of the JSON report. A ratio above 1 means that ours is better; without a baseline the four are null. */
export interface Result {
  readonly name: string;
  readonly unit: string;
  readonly ours: number;
  readonly baseline: number | null;
  readonly baselineName: string | null;
  readonly ratio: number | null;
  readonly low: number | null;
  readonly high: number | null;
  readonly bar: number | null;
}

/** Four digits: more would be noise. */
const rounded = (value: number | null): number | null => (value === null ? null : Number(value.toPrecision(4)));

export function resultOf(item: Item, comparison: Comparison): Result {
  return {
    name: item.name,
    unit: item.metric.unit,
    ours: Number(comparison.ours.toPrecision(4)),
    baseline: rounded(comparison.baseline),
    baselineName: comparison.baseline === null ? null : item.baselineName,
    ratio: rounded(comparison.ratio),
    low: rounded(comparison.low),
    high: rounded(comparison.high),
    bar: item.bar,
  };
}

/** What the numbers were measured on, one fact a line. */
export function machineLines(): string[] {
  const processors = cpus();
  return [
    `cpu    ${processors.length} x ${processors[0]?.model.trim() || process.arch}`,
    `kernel Linux ${release()}`,
    `node   ${process.version}`,
    `load   ${loadavg()[0]?.toFixed(2)} in the last minute, before the measurements`,
    `images ${describePlaces()}`,
  ];
}

/** Above it the other programs take turns with ours: spinning ends are interrupted, and spreads are wide. */
const loadMaxPerProcessor = 0.25;

export function loadNotes(): string[] {
  const busy = (loadavg()[0] ?? 0) > loadMaxPerProcessor * cpus().length;
  return busy ? ['busy: other programs run here, so these numbers are not fit to be quoted'] : [];
}

const columns = ['what', 'unit', 'ours', 'baseline', 'ratio', 'spread', 'bar', 'compared with'] as const;
const numeric = new Set<string>(['ours', 'baseline', 'ratio', 'spread', 'bar']);

const digits = (value: number | null): string =>
  value === null ? '-' : value.toLocaleString('en-US', { maximumSignificantDigits: 4, useGrouping: false });
const ratio = (value: number | null): string => (value === null ? '-' : value.toFixed(2));

function cells(result: Result): string[] {
  const spread = result.low === null ? '-' : `${ratio(result.low)}..${ratio(result.high)}`;
  const { name, unit, ours, baseline, bar, baselineName } = result;
  return [name, unit, digits(ours), digits(baseline), ratio(result.ratio), spread, ratio(bar), baselineName ?? '-'];
}

/** For a terminal: aligned columns, numbers to the right. */
export function textTable(results: readonly Result[]): string {
  const rows = [[...columns], ...results.map(cells)];
  const widths = columns.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  const line = (row: readonly string[]): string =>
    row.map((cell, i) => (numeric.has(columns[i]!) ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!))).join('  ');
  return rows.map((row) => line(row).trimEnd()).join('\n');
}

export function markdown(results: readonly Result[], facts: readonly string[]): string {
  const line = (row: readonly string[]): string => `| ${row.join(' | ')} |`;
  const rule = columns.map((name) => (numeric.has(name) ? '---:' : '---'));
  const list = facts.map((fact) => `- ${fact.replace(/ +/g, ' ')}`);
  return `${['# Measurements', '', ...list, '', line(columns), line(rule), ...results.map((r) => line(cells(r)))].join('\n')}\n`;
}
