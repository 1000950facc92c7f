import assert from 'node:assert/strict';

export interface ParsedFamily {
  readonly help: string;
  readonly type: string;
  readonly samples: { readonly labels: Record<string, string>; readonly value: number }[];
}

const unescaped = (text: string): string =>
  text.replace(/\\(.)/g, (_, char: string) => {
    assert.ok('n"\\'.includes(char), `escape \\${char}`);
    return char === 'n' ? '\n' : char;
  });

/** Reads the text format 0.0.4, and fails on whatever it does not allow. */
export function parseMetrics(text: string): Map<string, ParsedFamily> {
  const families = new Map<string, ParsedFamily>();
  assert.ok(text.endsWith('\n'));
  let help: [name: string, text: string] | undefined;
  let current: [name: string, family: ParsedFamily] | undefined;
  for (const line of text.split('\n')) {
    const [, kind, name = '', rest = ''] = /^# (HELP|TYPE) ([a-z_:][a-z0-9_:]*) (.*)$/.exec(line) ?? [];
    if (line === '') continue;
    if (kind === 'HELP') {
      help = [name, rest];
    } else if (kind === 'TYPE') {
      assert.equal(help?.[0], name, 'HELP comes before TYPE');
      assert.ok(!families.has(name), `${name} once`);
      assert.match(rest, /^(counter|gauge)$/);
      current = [name, { help: help?.[1] ?? '', type: rest, samples: [] }];
      families.set(...current);
    } else {
      const [, metric, inner, value] = /^([a-z_:][a-z0-9_:]*)(?:\{(.*)\})? (-?[0-9.e+]+)$/.exec(line) ?? [];
      assert.equal(metric, current?.[0], `a sample below its TYPE: ${line}`);
      const labels = labelsOf(inner ?? '');
      const same = current?.[1].samples.some((sample) => JSON.stringify(sample.labels) === JSON.stringify(labels));
      assert.ok(!same, `one sample for the same labels: ${line}`);
      current?.[1].samples.push({ labels, value: Number(value) });
    }
  }
  return families;
}

function labelsOf(text: string): Record<string, string> {
  const labels: Record<string, string> = {};
  let rest = text;
  while (rest !== '') {
    const [all = '', name = '', value = ''] = /^([a-z_]+)="((?:[^"\\\n]|\\.)*)"(?:,|$)/.exec(rest) ?? [];
    assert.notEqual(all, '', `labels: ${text}`);
    assert.ok(!(name in labels), `${name} once`);
    labels[name] = unescaped(value);
    rest = rest.slice(all.length);
  }
  return labels;
}

/** The value with these labels, which are all of them. */
export function sampleOf(
  families: ReadonlyMap<string, ParsedFamily>,
  name: string,
  labels: Record<string, string> = {},
): number | undefined {
  const sorted = (of: Record<string, string>): string => JSON.stringify(Object.entries(of).sort());
  return families.get(name)?.samples.find((sample) => sorted(sample.labels) === sorted(labels))?.value;
}
