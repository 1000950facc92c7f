import assert from 'node:assert/strict';
import { test } from 'node:test';
import { errorRegistry } from '../../src/kit/errors.ts';
import { deadExports, deadFiles } from './dead.ts';
import { packageSources } from './files.ts';
import { fileGraph, findCycles } from './graph.ts';
import { layerViolations, packagesReachedFrom } from './layers.ts';
import { oversize } from './sizes.ts';

const models = packageSources();

/** One finding a line, so that the report of a failure can be read. */
function assertNone(findings: readonly string[]): void {
  if (findings.length > 0) assert.fail(findings.join('\n'));
}

test('the sources are found', () => {
  const paths = models.map((model) => model.path);
  for (const file of ['src/kit/errors.ts', 'test/tidy/structure.test.ts', 'scripts/run.mjs']) {
    assert.ok(paths.includes(file), file);
  }
});

test('imports go downward only', () => {
  assertNone(layerViolations(models));
});

test('the guest library loads no package but koffi', () => {
  const others = [...packagesReachedFrom(models, 'src/guest/')].filter(([npm]) => npm !== 'koffi');
  assertNone(others.map(([npm, file]) => `${file} imports ${npm}`));
});

test('no files import each other in a circle', () => {
  assertNone(findCycles(fileGraph(models, ['import'])).map((cycle) => cycle.join(' -> ')));
});

test('files and functions are short', () => {
  assertNone(oversize(models));
});

test('every file is used', () => {
  assertNone(deadFiles(models));
});

test('every export is used', () => {
  assertNone(deadExports(models));
});

test('every error code is used', () => {
  const users = models.filter((model) => /^(src|api)\//.test(model.path) && model.path !== 'src/kit/errors.ts');
  const unused = Object.keys(errorRegistry).filter((code) => !users.some((model) => model.strings.has(code)));
  assertNone(unused.map((code) => `nothing uses the code ${code}`));
});
