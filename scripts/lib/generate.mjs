import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { prepare } from './build.mjs';
import { filesBelow, root } from './tree.mjs';

/**
 * Each module in scripts/generate/ exports `outputs`: an array of `{path, render}`, the path relative to the package
 * root, `render` returning the whole text (or a promise of it). The modules import the compiled code.
 */
async function loadOutputs() {
  const outputs = [];
  for (const file of filesBelow('scripts/generate', '.mjs')) {
    const module = await import(pathToFileURL(path.join(root, file)).href);
    outputs.push(...module.outputs);
  }
  return outputs;
}

/** @returns {string | undefined} where `actual` departs from `expected` first, in words */
export function firstDifference(file, expected, actual) {
  if (actual === undefined) return `${file} is missing`;
  if (actual === expected) return undefined;
  const [want, have] = [expected.split('\n'), actual.split('\n')];
  const index = want.findIndex((line, i) => line !== have[i]);
  const line = index === -1 ? want.length : index;
  const show = (text) => (text === undefined ? 'nothing' : JSON.stringify(text));
  return `${file}:${line + 1} is ${show(have[line])}, should be ${show(want[line])}`;
}

/** Compares every generated file with what its generator gives; writes those that differ if `write` is set. */
export async function syncGenerated(write) {
  const differences = [];
  for (const { path: file, render } of await loadOutputs()) {
    const absolute = path.join(root, file);
    const actual = existsSync(absolute) ? readFileSync(absolute, 'utf8') : undefined;
    const expected = await render();
    const difference = firstDifference(file, expected, actual);
    if (difference === undefined) continue;
    differences.push(difference);
    if (!write) continue;
    mkdirSync(path.dirname(absolute), { recursive: true });
    writeFileSync(absolute, expected);
    process.stderr.write(`wrote ${file}\n`);
  }
  return differences;
}

/** The verb: writes, or with `--check` reports and fails. */
export async function generate(args) {
  await prepare();
  const write = !args.includes('--check');
  const differences = await syncGenerated(write);
  if (write || differences.length === 0) return 0;
  console.error(`${differences.join('\n')}\nRun \`npm run generate\`.`);
  return 1;
}
