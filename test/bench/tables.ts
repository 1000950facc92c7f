import type { RatioResult, Result, ValueResult } from './report.ts';

interface Column<R> {
  readonly name: string;
  readonly numeric: boolean;
  readonly cell: (result: R) => string;
}

const digits = (value: number | null): string =>
  value === null ? '-' : value.toLocaleString('en-US', { maximumSignificantDigits: 4, useGrouping: false });
const hundredths = (value: number | null): string => (value === null ? '-' : value.toFixed(2));
const interval = (low: number | null, high: number | null, text: (value: number | null) => string): string =>
  low === null ? '-' : `${text(low)}..${text(high)}`;

const text = <R>(name: string, cell: (result: R) => string): Column<R> => ({ name, numeric: false, cell });
const number = <R>(name: string, cell: (result: R) => string): Column<R> => ({ name, numeric: true, cell });

const ratioColumns: readonly Column<RatioResult>[] = [
  text('what', ({ name }) => name),
  text('unit', ({ unit }) => unit),
  number('ours', ({ ours }) => digits(ours)),
  number('baseline', ({ baseline }) => digits(baseline)),
  number('ratio', ({ ratio }) => hundredths(ratio)),
  number('95 %', ({ low, high }) => interval(low, high, hundredths)),
  number('bar', ({ bar }) => hundredths(bar)),
  text('held', ({ held }) => held ?? '-'),
  text('compared with', ({ baselineName }) => baselineName),
];

const valueColumns: readonly Column<ValueResult>[] = [
  text('what', ({ name }) => name),
  text('unit', ({ unit }) => unit),
  number('value', ({ value }) => digits(value)),
  number('95 %', ({ low, high }) => interval(low, high, digits)),
  number('at most', ({ bar }) => digits(bar)),
  text('held', ({ held }) => held ?? '-'),
];

function rowsOf<R>(columns: readonly Column<R>[], results: readonly R[]): string[][] {
  return results.map((result) => columns.map(({ cell }) => cell(result)));
}

const ratiosIn = (results: readonly Result[]): RatioResult[] => results.filter((result) => result.kind === 'ratio');
const valuesIn = (results: readonly Result[]): ValueResult[] => results.filter((result) => result.kind === 'value');

function textRows<R>(columns: readonly Column<R>[], results: readonly R[]): string[] {
  if (results.length === 0) return [];
  const rows = [columns.map(({ name }) => name), ...rowsOf(columns, results)];
  const widths = columns.map((_, i) => Math.max(...rows.map((row) => row[i]!.length)));
  const line = (row: readonly string[]): string =>
    row.map((cell, i) => (columns[i]!.numeric ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!))).join('  ');
  return rows.map((row) => line(row).trimEnd());
}

/** For a terminal: aligned columns, numbers to the right; ratios and values apart. */
export function textTable(results: readonly Result[]): string {
  const [ratios, values] = [textRows(ratioColumns, ratiosIn(results)), textRows(valueColumns, valuesIn(results))];
  return [...ratios, ...(ratios.length > 0 && values.length > 0 ? [''] : []), ...values].join('\n');
}

function markdownRows<R>(columns: readonly Column<R>[], results: readonly R[]): string[] {
  if (results.length === 0) return [];
  const line = (row: readonly string[]): string => `| ${row.join(' | ')} |`;
  const rule = columns.map(({ numeric }) => (numeric ? '---:' : '---'));
  return ['', line(columns.map(({ name }) => name)), line(rule), ...rowsOf(columns, results).map(line)];
}

/** @param plot name of an image file beside it */
export function markdown(results: readonly Result[], facts: readonly string[], plot?: string): string {
  const list = facts.map((fact) => `- ${fact.replace(/ +/g, ' ')}`);
  const image = plot === undefined ? [] : ['', `![The ratios with their intervals and bars](${plot})`];
  const tables = [...markdownRows(ratioColumns, ratiosIn(results)), ...markdownRows(valueColumns, valuesIn(results))];
  return `${['# Measurements', '', ...list, ...image, ...tables].join('\n')}\n`;
}
