import type { RatioResult, Result, ValueResult } from './report.ts';
import type { Held } from './stats.ts';

const width = 960;
const labelWidth = 350;
const valueWidth = 150;
const rowHeight = 22;
const topSpace = 58;
const bottomSpace = 40;
const left = labelWidth + 10;
const right = width - valueWidth;
/** Ratios and parts of a bar are plotted from here to there; what lies outside is drawn at the edge. */
const scaleMin = 0.1;
const scaleMax = 4;
const ticks = [0.1, 0.2, 0.5, 0.8, 1, 1.5, 2, 4];

interface Palette {
  readonly page: string;
  readonly ink: string;
  readonly soft: string;
  readonly grid: string;
  readonly held: Readonly<Record<Held | 'none', string>>;
}

const light: Palette = {
  page: '#ffffff',
  ink: '#1f2328',
  soft: '#59636e',
  grid: '#d1d9e0',
  held: { yes: '#1a7f37', no: '#cf222e', undecided: '#9a6700', none: '#0969da' },
};
const dark: Palette = {
  page: '#0d1117',
  ink: '#f0f6fc',
  soft: '#9198a1',
  grid: '#3d444d',
  held: { yes: '#3fb950', no: '#f85149', undecided: '#d29922', none: '#4493f8' },
};

/** Without variables, which not every renderer of SVG knows. */
const colours = ({ page, ink, soft, grid, held }: Palette): string =>
  [
    `.page { fill: ${page}; } text { fill: ${ink}; } .soft { fill: ${soft}; } .grid { stroke: ${grid}; }`,
    `.one { stroke: ${soft}; } .bar { stroke: ${ink}; }`,
    ...Object.entries(held).map(([name, colour]) => `.${name} { fill: ${colour}; stroke: ${colour}; }`),
  ].join('\n');

const style = `${colours(light)}
@media (prefers-color-scheme: dark) {
${colours(dark)}
}
text { font: 13px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
.soft { font-size: 12px; }
.title { font-size: 16px; font-weight: 600; }
.bar { stroke-width: 2.5; }
.interval { stroke-width: 4; stroke-opacity: 0.55; }`;

const escaped = (text: string): string => text.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);
const at = (value: number): string => value.toFixed(1);

/** Logarithmic: twice and half as good lie equally far from 1. */
function x(value: number): number {
  const bounded = Math.min(scaleMax, Math.max(scaleMin, value));
  return left + ((right - left) * Math.log(bounded / scaleMin)) / Math.log(scaleMax / scaleMin);
}

interface Row {
  readonly label: string;
  readonly value: number;
  readonly low: number | null;
  readonly high: number | null;
  readonly bar: number | null;
  readonly shown: string;
  readonly held: Held | 'none';
}

function ratioRow({ name, ratio, low, high, bar, held }: RatioResult): Row[] {
  if (ratio === null) return [];
  const shown = low === null ? ratio.toFixed(2) : `${ratio.toFixed(2)}  (${low.toFixed(2)}..${high!.toFixed(2)})`;
  return [{ label: name, value: ratio, low, high, bar, shown, held: held ?? 'none' }];
}

/** A value is plotted as how many times better it is than its bar, so that right is better everywhere. */
function valueRow({ name, unit, value, low, high, bar, held }: ValueResult): Row[] {
  if (bar === null) return [];
  const times = (measured: number): number => (measured === 0 ? scaleMax : bar / measured);
  const ends = low === null ? { low: null, high: null } : { low: times(high!), high: times(low) };
  const shown = `${value} ${unit === '% of a core' ? '%' : unit}`;
  return [{ label: `${name} (at most ${bar})`, value: times(value), ...ends, bar: 1, shown, held: held ?? 'none' }];
}

function drawRow(row: Row, y: number): string {
  const middle = y + rowHeight / 2;
  const parts = [`<text x="${labelWidth}" y="${at(middle + 4)}" text-anchor="end">${escaped(row.label)}</text>`];
  if (row.low !== null && row.high !== null) {
    const ends = `x1="${at(x(row.low))}" x2="${at(x(row.high))}" y1="${at(middle)}" y2="${at(middle)}"`;
    parts.push(`<line class="interval ${row.held}" ${ends}/>`);
  }
  parts.push(`<circle class="${row.held}" cx="${at(x(row.value))}" cy="${at(middle)}" r="4"/>`);
  if (row.bar !== null) {
    const place = at(x(row.bar));
    parts.push(`<line class="bar" x1="${place}" x2="${place}" y1="${at(y + 4)}" y2="${at(y + rowHeight - 4)}"/>`);
  }
  parts.push(`<text class="soft" x="${right + 12}" y="${at(middle + 4)}">${escaped(row.shown)}</text>`);
  return parts.join('');
}

/** The results that have something to show as a picture: a point, its 95 % interval and its bar, one result a row. */
export function plot(results: readonly Result[]): string {
  const rows = results.flatMap((result) => (result.kind === 'ratio' ? ratioRow(result) : valueRow(result)));
  const bottom = topSpace + rows.length * rowHeight;
  const height = bottom + bottomSpace;
  const grid = ticks.map((tick) => {
    const place = at(x(tick));
    const line = `<line class="${tick === 1 ? 'one' : 'grid'}" x1="${place}" x2="${place}" y1="${topSpace}" y2="${bottom}"/>`;
    return `${line}<text class="soft" x="${place}" y="${bottom + 18}" text-anchor="middle">${tick}</text>`;
  });
  const legend = 'ratio to the baseline, or to the bar for values; right is better; the upright stroke is the bar';
  return `${[
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img">`,
    '<title>Measurements of the bench</title>',
    `<style>\n${style}\n</style>`,
    `<rect class="page" width="${width}" height="${height}"/>`,
    '<text class="title" x="16" y="26">Ratios with 95 % intervals</text>',
    `<text class="soft" x="16" y="45">${escaped(legend)}</text>`,
    ...grid,
    ...rows.map((row, i) => drawRow(row, topSpace + i * rowHeight)),
    '</svg>',
  ].join('\n')}\n`;
}
