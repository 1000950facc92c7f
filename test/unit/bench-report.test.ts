import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { microseconds, type Race } from '../bench/item.ts';
import { plot } from '../bench/plot.ts';
import { preparedLines, readPrepared } from '../bench/prepared.ts';
import { missingNotes, type Result, ratioResult, valueResult } from '../bench/report.ts';
import { markdown, textTable } from '../bench/tables.ts';

const race: Race = {
  kind: 'race',
  metric: microseconds,
  sides: { a: 'this tree', b: 'C & co', c: 'what is not there' },
  comparisons: [
    { name: 'fast <one>', ours: 'a', baseline: 'b', bar: 0.9, stretch: 0.95 },
    { name: 'no bar', ours: 'b', baseline: 'a' },
    { name: 'gone', ours: 'a', baseline: 'c', bar: 0.5 },
  ],
  open: () => Promise.reject(new Error('not opened here')),
};
const samplesOf = (micros: number) => Array.from({ length: 8 }, () => ({ count: 1_000_000 / micros, seconds: 1 }));
const samples = { a: samplesOf(10), b: samplesOf(5), c: 'no compiler' };
const results: Result[] = [
  ...race.comparisons.map((comparison) => ratioResult(race, comparison, samples)),
  valueResult({ name: 'memory', unit: 'KiB', bar: 100, stretch: 30 }, { value: 50.004, low: 40, high: 60 }),
];

describe('results', () => {
  it('have medians, the ratio and what became of the bar', () => {
    const [first, second, third, value] = results;
    assert.deepEqual(first, {
      kind: 'ratio',
      name: 'fast <one>',
      unit: 'us',
      ours: 10,
      baseline: 5,
      oursName: 'this tree',
      baselineName: 'C & co',
      ratio: 0.5,
      low: 0.5,
      high: 0.5,
      bar: 0.9,
      stretch: 0.95,
      held: 'no',
      missing: null,
    });
    assert.ok(second?.kind === 'ratio' && second.ratio === 2 && second.held === null && second.bar === null);
    assert.ok(third?.kind === 'ratio' && third.ratio === null && third.held === null && third.ours === 10);
    assert.deepEqual([value?.held, value?.low, value?.kind === 'value' && value.value], ['yes', 40, 50]);
  });

  it('say once why something is missing', () => {
    assert.deepEqual(missingNotes([...results, ...results]), ['not measured: no compiler']);
  });
});

describe('tables', () => {
  it('for a terminal have aligned columns, ratios and values apart', () => {
    const lines = textTable(results).split('\n');
    assert.equal(lines.length, 7);
    assert.match(lines[0]!, /^what {8}unit {2}ours {2}baseline {2}ratio {8}95 % {3}bar {2}held {2}compared with$/);
    assert.match(lines[1]!, /^fast <one> {2}us {6}10 {9}5 {3}0\.50 {2}0\.50\.\.0\.50 {2}0\.90 {2}no {4}C & co$/);
    assert.match(lines[3]!, /^gone .* - +- +- +0\.50 {2}- /);
    assert.match(lines[6]!, /^memory {2}KiB {6}50 {2}40\.\.60 {6}100 {2}yes$/);
  });

  it('in Markdown have the facts and the image before them', () => {
    const text = markdown(results, ['cpu    2 x some'], 'plot.svg');
    assert.match(text, /^# Measurements\n\n- cpu 2 x some\n\n!\[[^\]]+\]\(plot\.svg\)\n\n\| what \|/);
    assert.match(text, /\n\| memory \| KiB \| 50 \| 40\.\.60 \| 100 \| yes \|\n$/);
    assert.doesNotMatch(markdown(results, []), /!\[/);
  });
});

/** All values of an attribute of the elements of a class. */
const attributes = (svg: string, name: string, start: string): number[] =>
  [...svg.matchAll(new RegExp(`<${start}[^>]*? ${name}="([^"]+)"`, 'g'))].map(([, value]) => Number(value));

describe('the plot', () => {
  const svg = plot(results);

  it('has a point for every result with a value, coloured by what became of its bar', () => {
    assert.equal(svg.match(/<circle /g)?.length, 3);
    assert.deepEqual(
      [...svg.matchAll(/<circle class="(\w+)"/g)].map(([, name]) => name),
      ['no', 'none', 'yes'],
    );
    assert.equal(svg.match(/class="bar"/g)?.length, 2);
  });

  it('puts what is better to the right, half and twice equally far from 1', () => {
    const [half, twice, memory] = attributes(svg, 'cx', 'circle');
    const one = attributes(svg, 'x1', 'line class="one"')[0]!;
    assert.ok(Math.abs(one - half! - (twice! - one)) < 0.3);
    // 50 KiB where 100 are allowed: twice as good as the bar.
    assert.equal(memory, twice);
  });

  it('draws intervals from their lower to their upper end', () => {
    const [from, to] = [
      attributes(svg, 'x1', 'line class="interval yes"'),
      attributes(svg, 'x2', 'line class="interval yes"'),
    ];
    assert.ok(from[0]! < to[0]!);
  });

  it('escapes names, and keeps what is off its scale at the edge', () => {
    assert.match(svg, /fast &#60;one&#62;/);
    const wild = valueResult({ name: 'w', unit: 's', bar: 1 }, { value: 0, low: 0, high: 1e6 });
    for (const at of attributes(plot([wild]), 'x[12]', 'line class="interval undecided"')) {
      assert.ok(at >= 0 && at <= 960, String(at));
    }
  });

  it('has colours for light and dark', () => {
    assert.match(svg, /prefers-color-scheme: dark/);
  });
});

describe('what was made ready', () => {
  it('is told with its version, or why it is missing', () => {
    const made = readPrepared(
      JSON.stringify({
        storageDaemon: { command: ['q'], version: '7.2', origin: 'this host' },
        libblkio: { missing: 'no archive' },
      }),
    );
    assert.deepEqual(preparedLines(made), ['qemu-storage-daemon 7.2 of this host', 'libblkio none: no archive']);
    assert.match(preparedLines(readPrepared(undefined)).join(), /npm run bench/);
  });
});
