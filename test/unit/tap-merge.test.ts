import assert from 'node:assert/strict';
import path from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';

interface TapMerger {
  push(text: string): string;
  endRun(): string;
  failure(name: string): string;
  end(): string;
}

const module = await import(pathToFileURL(path.resolve('scripts/lib/tap-merge.mjs')).href);
const { TapMerger } = module as { TapMerger: new () => TapMerger };

const summary = (pass: number, fail: number): string =>
  `# tests ${pass + fail}\n# suites 1\n# pass ${pass}\n# fail ${fail}\n# cancelled 0\n# skipped 0\n# todo 0\n# duration_ms 1.5\n`;

const first = `TAP version 13
# Subtest: one
    # Subtest: inner
    ok 1 - inner
      ---
      duration_ms: 1
      ...
    1..1
ok 1 - one
  ---
  duration_ms: 2
  ...
# printed by a test
# pass 77
# Subtest: two
not ok 2 - two
  ---
  error: |-
    ok 9 - quoted
1..5
  stack: ''
  ...
1..2
${summary(2, 1)}`;

const second = `TAP version 13\n# Subtest: three\nok 1 - three\n1..1\n${summary(1, 0)}`;

const merged = `TAP version 13
# Subtest: one
    # Subtest: inner
    ok 1 - inner
      ---
      duration_ms: 1
      ...
    1..1
ok 1 - one
  ---
  duration_ms: 2
  ...
# printed by a test
# pass 77
# Subtest: two
not ok 2 - two
  ---
  error: |-
    ok 9 - quoted
1..5
  stack: ''
  ...
# Subtest: three
ok 3 - three
1..3
# tests 4
# suites 2
# pass 3
# fail 1
# cancelled 0
# skipped 0
# todo 0
# duration_ms 3
`;

function feed(merger: TapMerger, text: string, pieceLength: number): string {
  let output = '';
  for (let at = 0; at < text.length; at += pieceLength) output += merger.push(text.slice(at, at + pieceLength));
  return output + merger.endRun();
}

test('several TAP streams become one, however they are cut', () => {
  for (const pieceLength of [1, 7, 10_000]) {
    const merger = new TapMerger();
    assert.equal(feed(merger, first, pieceLength) + feed(merger, second, pieceLength) + merger.end(), merged);
  }
});

test('a run that ends early is a failure beside its results', () => {
  const merger = new TapMerger();
  const output = feed(merger, 'TAP version 13\nok 1 - done\n# Subtest: cut o', 5) + merger.failure('the machine ended');
  assert.equal(output, 'TAP version 13\nok 1 - done\n# Subtest: cut o\nnot ok 2 - the machine ended\n');
  assert.match(feed(merger, second, 5) + merger.end(), /^# Subtest: three\nok 3 - three\n1\.\.3\n# tests 2\n/);
});
