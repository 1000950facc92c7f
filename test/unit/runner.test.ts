import assert from 'node:assert/strict';
import path from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';

interface TapReader {
  readonly counts: Record<string, number>;
  readonly skipped: string[];
  readonly todo: string[];
  readonly remarks: { readonly test: string; readonly text: string }[];
  push(text: string): void;
}

interface Tap {
  readonly TapReader: new () => TapReader;
  judge(reader: TapReader, expected: Set<string> | undefined): string[];
  parseExpectedSkips(text: string): Set<string>;
}

interface Install {
  isInstalled(wanted: Map<string, object>, installed: Map<string, object> | undefined): boolean;
}

interface Generate {
  firstDifference(file: string, expected: string, actual: string | undefined): string | undefined;
}

interface Output {
  tap(text: string): void;
  endRun(): void;
}

interface TurnsModule {
  Turns: new (output: Output, count: number) => { output(turn: number): Output; end(turn: number): void };
}

const load = (name: string): Promise<unknown> => import(pathToFileURL(path.resolve('scripts/lib', name)).href);
const { TapReader, judge, parseExpectedSkips } = (await load('tap.mjs')) as Tap;
const { isInstalled } = (await load('install.mjs')) as Install;
const { Turns } = (await load('turns.mjs')) as TurnsModule;
const { firstDifference } = (await load('generate.mjs')) as Generate;

const stream = `TAP version 13
# Subtest: outer
    # Subtest: needs \\# root
    ok 1 - needs \\# root # SKIP not root
      ---
      duration_ms: 1
      ...
    # Subtest: later
    ok 2 - later # ${['TO', 'DO'].join('')}
      ---
      duration_ms: 1
      ...
    1..2
ok 1 - outer
  ---
  type: 'suite'
  ...
# 12.5 MB/s
# {"msg":"a line of a log"}
# pass 99
not ok 2 - broken
  ---
  error: |-
    ok 3 - quoted # SKIP in an error message
    # pass 77
  ...
1..2
# tests 4
# pass 1
# fail 1
# cancelled 0
# skipped 1
# todo 1
`;

function read(text: string, pieceLength: number): TapReader {
  const reader = new TapReader();
  for (let at = 0; at < text.length; at += pieceLength) reader.push(text.slice(at, at + pieceLength));
  return reader;
}

test('TAP is read the same however it is cut', () => {
  for (const pieceLength of [1, 7, 10_000]) {
    const { counts, skipped, todo, remarks } = read(stream, pieceLength);
    assert.deepEqual(remarks, [{ test: 'outer', text: '12.5 MB/s' }]);
    assert.deepEqual(counts, { tests: 4, pass: 1, fail: 1, cancelled: 0, skipped: 1, todo: 1 });
    assert.deepEqual([skipped, todo], [['needs # root'], ['later']]);
  }
});

test('a skip needs an entry, an unfinished test and an empty run fail', () => {
  const reader = read(stream, 100);
  const expected = parseExpectedSkips('# why we skip\nneeds # root  # no root in the container\n\n');
  assert.deepEqual([...expected], ['needs']);
  assert.equal(judge(reader, new Set()).length, 2);
  assert.deepEqual(judge(reader, new Set(['needs # root'])), ['Marked as to be done: later']);
  assert.deepEqual(judge(reader, undefined), []);
  assert.deepEqual(judge(read('# tests 0\n# pass 0\n', 100), new Set()), ['No test passed.']);
  assert.equal(judge(read('# pass 1\n# skipped 1\n', 100), new Set()).length, 1);
  assert.deepEqual(judge(read('ok 1 - a\n# pass 1\n# skipped 0\n# todo 0\n', 100), new Set()), []);
});

test('what several machines say at the same time is shown one machine after the other', () => {
  const shown: string[] = [];
  const turns = new Turns({ tap: (text) => shown.push(text), endRun: () => shown.push('|') }, 3);
  const say = [0, 1, 2].map((turn) => turns.output(turn));
  say[1]!.tap('b1');
  say[0]!.tap('a1');
  say[2]!.tap('c1');
  say[2]!.endRun();
  turns.end(2);
  say[1]!.tap('b2');
  say[0]!.endRun();
  assert.equal(shown.join(' '), 'a1 |');
  turns.end(0);
  say[1]!.tap('b3');
  assert.equal(shown.join(' '), 'a1 | b1 b2 b3');
  turns.end(1);
  assert.equal(shown.join(' '), 'a1 | b1 b2 b3 c1 |');
});

test('an install is complete only when it is what the lockfile says', () => {
  const one = { version: '1.0.0', integrity: 'x' };
  const other = { version: '1.0.0', integrity: 'y', optional: true, os: ['none'] };
  const here = { ...other, os: [process.platform], cpu: [process.arch] };
  const installed = (wanted: object, found?: object): boolean =>
    isInstalled(new Map(Object.entries(wanted)), found && new Map(Object.entries(found)));
  assert.ok(!installed({ one }));
  assert.ok(!installed({ one }, {}));
  assert.ok(installed({ one }, { one }));
  assert.ok(installed({ one, other }, { one }));
  assert.ok(!installed({ one, here }, { one }));
  assert.ok(!installed({ one }, { one: { ...one, integrity: 'z' } }));
  assert.ok(!installed({ one }, { one: { ...one, version: '1.0.1' } }));
  assert.ok(!installed({ one }, { one, here }));
});

test('a generated file that differs is named with its first line', () => {
  assert.equal(firstDifference('f', 'a\nb\n', 'a\nb\n'), undefined);
  assert.equal(firstDifference('f', 'a\nb\n', undefined), 'f is missing');
  assert.equal(firstDifference('f', 'a\nb\n', 'a\nc\n'), 'f:2 is "c", should be "b"');
  assert.equal(firstDifference('f', 'a\n', 'a\nc\n'), 'f:2 is "c", should be ""');
  assert.equal(firstDifference('f', 'a', 'a\nc'), 'f:2 is "c", should be nothing');
});
