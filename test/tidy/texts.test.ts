import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { packageTexts } from './files.ts';
import { forbiddenWords, hasEntry } from './words.ts';

test('no file has words that belong elsewhere', () => {
  const findings = [...packageTexts()].flatMap(([file, text]) => forbiddenWords(file, text));
  if (findings.length > 0) assert.fail(findings.join('\n'));
});

test('package-lock.json names no download addresses', () => {
  assert.doesNotMatch(readFileSync('package-lock.json', 'utf8'), /"resolved"/);
});

test('the changelog has an entry for this version', () => {
  const { version } = JSON.parse(readFileSync('package.json', 'utf8')) as { version: string };
  assert.ok(hasEntry(readFileSync('CHANGELOG.md', 'utf8'), version), `no entry for ${version} or Unreleased`);
});
