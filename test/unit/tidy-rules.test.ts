import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deadExports, deadFiles } from '../tidy/dead.ts';
import { fileGraph, findCycles, packageOf, reachable, resolveLink } from '../tidy/graph.ts';
import { layerViolations, packagesReachedFrom } from '../tidy/layers.ts';
import { parseSources, type SourceModel } from '../tidy/parse.ts';
import { oversize } from '../tidy/sizes.ts';
import { forbiddenWords, hasEntry } from '../tidy/words.ts';

const parse = (sources: Record<string, string>): SourceModel[] => parseSources(new Map(Object.entries(sources)));

const graphOf = (edges: Record<string, string[]>) => new Map(Object.entries(edges));

test('findCycles reports each circle once and no other path', () => {
  assert.deepEqual(findCycles(graphOf({ a: ['b', 'c'], b: ['d'], c: ['d'], d: [] })), []);
  assert.deepEqual(findCycles(graphOf({ a: ['a'] })), [['a', 'a']]);
  assert.deepEqual(findCycles(graphOf({ x: ['a'], a: ['b'], b: ['c'], c: ['a', 'x2'], x2: [] })), [
    ['a', 'b', 'c', 'a'],
  ]);
  assert.equal(findCycles(graphOf({ a: ['b'], b: ['a'], c: ['d'], d: ['c'] })).length, 2);
});

test('reachable follows every edge, through circles too', () => {
  const graph = graphOf({ a: ['b'], b: ['a', 'c'], c: [], d: ['c'] });
  assert.deepEqual([...reachable(graph, ['a'])].sort(), ['a', 'b', 'c']);
});

test('resolveLink finds sources behind .ts, .js and dist paths', () => {
  const files = new Set(['src/kit/a.ts', 'scripts/lib/b.mjs']);
  assert.equal(resolveLink('src/wire/x.ts', '../kit/a.ts', files), 'src/kit/a.ts');
  assert.equal(resolveLink('src/wire/x.ts', '../kit/a.js', files), 'src/kit/a.ts');
  assert.equal(resolveLink('scripts/generate/x.mjs', '../../dist/src/kit/a.js', files), 'src/kit/a.ts');
  assert.equal(resolveLink('scripts/run.mjs', './lib/b.mjs', files), 'scripts/lib/b.mjs');
  assert.equal(resolveLink('src/wire/x.ts', './a.ts', files), undefined);
  assert.equal(packageOf('@fastify/swagger/sub'), '@fastify/swagger');
  assert.equal(packageOf('node:fs'), undefined);
});

test('layers: downward passes, upward and sideways fail', () => {
  const models = parse({
    'src/kit/a.ts': 'export const a = 1;',
    'src/wire/b.ts': "import { a } from '../kit/a.ts'; export const b = a;",
    'src/kit/up.ts': "import type { b } from '../wire/b.ts'; export type U = typeof b;",
    'src/libc/side.ts': "export { b } from '../wire/b.ts';",
    'src/bridge/commands.ts': 'export const c = 1;',
    'src/bridge/service.ts': 'export const s = 1;',
    'api/ok.ts': "import { c } from '../src/bridge/commands.ts'; export const x = c;",
    'api/bad.ts': "import { s } from '../src/bridge/service.ts'; export const x = s;",
    'src/odd/a.ts': 'export {};',
    'src/app/test.ts': "import '../../test/support/x.ts';",
    'test/support/x.ts': '',
  });
  assert.deepEqual(layerViolations(models), [
    'src/kit/up.ts:1 kit may not import src/wire/b.ts',
    'src/libc/side.ts:1 libc may not import src/wire/b.ts',
    'api/bad.ts:1 api may not import src/bridge/service.ts',
    'src/odd/a.ts: odd is not in the layer table',
    'src/app/test.ts:1 app may not import test/support/x.ts',
  ]);
});

test('layers: packages belong to few places', () => {
  const models = parse({
    'src/libc/native.ts': "import koffi from 'koffi'; export const k = koffi;",
    'src/libc/fd.ts': "import koffi from 'koffi'; export const k = koffi;",
    'src/guest/index.ts': "import '../libc/native.ts';\nimport '../virtio/log.ts';",
    'src/virtio/log.ts': "import { pino } from 'pino'; export const p = pino;",
    'api/server.ts': "import fastify from 'fastify'; export const f = fastify; import fs from 'node:fs';",
  });
  assert.deepEqual(layerViolations(models), [
    'src/libc/fd.ts:1 only files named native.ts may import koffi',
    'src/virtio/log.ts:1 virtio may not import the package pino',
  ]);
  assert.deepEqual([...packagesReachedFrom(models, 'src/guest/')].sort(), [
    ['koffi', 'src/libc/native.ts'],
    ['pino', 'src/virtio/log.ts'],
  ]);
});

test('sizes: long files and functions fail, test bodies pass', () => {
  const body = 'f();\n'.repeat(80);
  const models = parse({
    'src/kit/long.ts': '// line\n'.repeat(401),
    'src/kit/fits.ts': '// line\n'.repeat(400),
    'src/kit/fn.ts': `/** doc */\nexport class A {\n  run() {\n${body}}\n}\nconst quick = () => {\n${body}};\n`,
    'test/unit/x.test.ts': `test('a', () => {\n${body}});\nt.test('b', async () => {\n${body}});\nit.only('c', function () {\n${body}});\n`,
    'test/unit/y.test.ts': `export function helper() {\n${body}}\nlist.map(() => {\n${body}});\n`,
  });
  assert.deepEqual(oversize(models), [
    'src/kit/long.ts has 401 lines, limit 400',
    'src/kit/fn.ts:3 run has 82 lines, limit 70',
    'src/kit/fn.ts:86 quick has 82 lines, limit 70',
    'test/unit/y.test.ts:1 helper has 82 lines, limit 70',
    'test/unit/y.test.ts:83 a function has 82 lines, limit 70',
  ]);
});

test('dead code: files and exports that nothing uses', () => {
  const models = parse({
    'src/app/main.ts':
      "import { used } from './a.ts'; new URL('./lane-worker.js', import.meta.url); export const fine = used;",
    'src/app/a.ts':
      'export const used = 1; export const unused = used; export type Shape = 1; export const s: Shape = 1;',
    'src/app/lane-worker.ts': "import * as all from './b.ts'; console.log(all);",
    'src/app/b.ts': 'export const { p, q: [r] } = f(); export default class {}',
    'src/app/c.ts': "export type { T } from './d.ts';",
    'src/app/d.ts': 'export type T = 1; export interface Alone {}',
    'test/unit/a.test.ts': "import type { T } from '../support/s.ts'; let x: import('../support/t.ts').U;",
    'test/support/s.ts': 'export type T = 1;',
    'test/support/t.ts': 'export type U = 1; export function V() {}',
  });
  assert.deepEqual(deadFiles(models), ['src/app/c.ts', 'src/app/d.ts']);
  assert.deepEqual(deadExports(models), [
    'src/app/a.ts:1 nobody imports unused',
    'src/app/a.ts:1 nobody imports s',
    'src/app/c.ts:1 nobody imports T',
    'src/app/d.ts:1 nobody imports Alone',
    'test/support/t.ts:1 nobody imports V',
  ]);
});

test('fileGraph counts a path in a string only when asked to', () => {
  const models = parse({ 'a.ts': "spawn('./b.js'); import './c.ts';", 'b.ts': '', 'c.ts': '' });
  assert.deepEqual(fileGraph(models, ['import']).get('a.ts'), ['c.ts']);
  assert.deepEqual(fileGraph(models, ['import', 'reference']).get('a.ts')?.toSorted(), ['b.ts', 'c.ts']);
});

test('words: each forbidden kind is found, its neighbours are not', () => {
  const findings = (text: string) => forbiddenWords('f', text).length;
  for (const parts of [
    ['// TO', 'DO later'],
    ['FIX', 'ME'],
    ['see /wo', 'rk/main'],
    ['"/tmp/bu', 'ild-x/"'],
    ['https://registry.np', 'mjs.org/koffi'],
    ['process.on("SIG', 'SEGV", f)'],
  ]) {
    assert.equal(findings(parts.join('')), 1, parts.join(''));
  }
  for (const text of [
    '# todo 0',
    'src/work/a.ts',
    '/tmp/vmsg-XXXXXX',
    "process.on('SIGTERM', f)",
    'the npm registry',
  ]) {
    assert.equal(findings(text), 0, text);
  }
});

test('changelog: the version or Unreleased has a heading', () => {
  assert.ok(hasEntry('# Changelog\n\n## [1.2.3] - 2026-01-01\n', '1.2.3'));
  assert.ok(hasEntry('## 1.2.3\n', '1.2.3'));
  assert.ok(hasEntry('## [Unreleased]\n', '1.2.3'));
  assert.ok(!hasEntry('## 1.2.30\nUnreleased 1.2.3\n', '1.2.3'));
});
