import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseSources, type SourceModel } from '../tidy/parse.ts';

function parseOne(text: string): SourceModel {
  const [model] = parseSources(new Map([['src/a.ts', text]]));
  assert.ok(model);
  return model;
}

test('every form of import is a link', () => {
  const { links } = parseOne(`
import d, { a as b, type C } from './1.ts';
import * as n from './2.ts';
import './3.ts';
export { x as y } from './4.ts';
export * from './5.ts';
export * as z from './6.ts';
type T = import('./7.ts').U.V;
const m = await import('./8.ts');
`);
  assert.ok(links.every((link) => link.kind === 'import'));
  assert.deepEqual(
    links.map((link) => [link.specifier, link.line, ...link.names]),
    [
      ['./1.ts', 2, 'default', 'a', 'C'],
      ['./2.ts', 3, '*'],
      ['./3.ts', 4],
      ['./4.ts', 5, 'x'],
      ['./5.ts', 6, '*'],
      ['./6.ts', 7, '*'],
      ['./7.ts', 8, 'U'],
      ['./8.ts', 9, '*'],
    ],
  );
});

test('a path in a string is a reference', () => {
  const { links } = parseOne("new Worker(new URL('./w.js', import.meta.url)); f('./data.json', 'a.js', '../x/p.mjs');");
  assert.deepEqual(
    links.map((link) => [link.kind, link.specifier]),
    [
      ['reference', './w.js'],
      ['reference', '../x/p.mjs'],
    ],
  );
});

test('what only looks like code is none', () => {
  const { links, functions, exports, strings } = parseOne(
    [
      "// import a from './no.ts'; function f() {}",
      'const s = "import b from \'./no.ts\'";',
      'const t = `export const c = $' + '{1} function g() { `;',
      'const r = /"function h() {\\/`/;',
    ].join('\n'),
  );
  assert.deepEqual([links, functions, exports], [[], [], []]);
  assert.deepEqual([...strings], ["import b from './no.ts'"]);
});

test('every form of export has a name', () => {
  const { exports } = parseOne(`
export const { p, q: [r], ...s } = f, t = 1;
export function u() {}
export class V {}
export interface W {}
export type X = W;
export abstract class Y {}
const hidden = 1;
export { hidden as shown };
export default function () {}
`);
  assert.deepEqual(
    exports.map((found) => [found.name, found.isType, found.usedInside]),
    [
      ...['p', 'r', 's', 't', 'u', 'V'].map((name) => [name, false, false]),
      ['W', true, true],
      ['X', true, false],
      ['Y', false, false],
      ['shown', false, false],
      ['default', false, false],
    ],
  );
});

test('functions of every kind are measured without their comments', () => {
  const { functions, lines } = parseOne(`/**
 * Comment.
 */
function a() {
  return { b() { return 1; } };
}
class C {
  constructor() {
  }
  get d() {
    return (x) => x;
  }
  #e = async () => {

  };
}
test('f', () => {
});
`);
  assert.equal(lines, 18);
  assert.deepEqual(
    functions.map((span) => [span.name, span.line, span.lines, span.isTestBody]),
    [
      ['a', 4, 3, false],
      ['b', 5, 1, false],
      ['constructor', 8, 2, false],
      ['d', 10, 3, false],
      ['a function', 13, 3, false],
      ['a function', 17, 2, true],
    ],
  );
});
