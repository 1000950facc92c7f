import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { StringDecoder } from 'node:string_decoder';
import { prepare } from './build.mjs';
import { run, secondsSince } from './process.mjs';
import { judge, parseExpectedSkips, TapReader } from './tap.mjs';
import { filesBelow, root } from './tree.mjs';

const concurrency = 2;
const expectedSkipsPath = path.join(root, 'test/expected-skips.txt');

const choosesTests = /^--test-(only|name-pattern|skip-pattern)/;

function expectedSkips() {
  return parseExpectedSkips(existsSync(expectedSkipsPath) ? readFileSync(expectedSkipsPath, 'utf8') : '');
}

/** Compiled test files whose path has any of `parts`; `tidy` belongs to `npm run check`. */
export function testFiles(parts) {
  return filesBelow('dist/test', '.test.js').filter((file) => parts.some((part) => file.includes(part)));
}

/** The command that runs `files` with `options` of `node --test`. */
export function testCommand(files, options) {
  return [process.execPath, '--test', `--test-concurrency=${concurrency}`, ...options, ...files];
}

async function runOnTerminal(files, options, reader) {
  const directory = mkdtempSync(path.join(tmpdir(), 'vmsg-test-'));
  const tap = path.join(directory, 'tap');
  const reporters = ['spec', 'tap'].flatMap((name, i) => [
    `--test-reporter=${name}`,
    `--test-reporter-destination=${i === 0 ? 'stdout' : tap}`,
  ]);
  try {
    const status = await run(testCommand(files, [...reporters, ...options]));
    if (existsSync(tap)) reader.push(readFileSync(tap, 'utf8'));
    return status;
  } finally {
    rmSync(directory, { recursive: true });
  }
}

function runPiped(files, options, reader) {
  const decoder = new StringDecoder();
  const onStdout = (bytes) => {
    process.stdout.write(bytes);
    reader.push(decoder.write(bytes));
  };
  return run(testCommand(files, ['--test-reporter=tap', ...options]), { onStdout });
}

/**
 * The verb. Words select test files by a part of their path; what begins with `-` goes to `node --test`. A terminal
 * gets the spec reporter, everything else TAP with one closing summary.
 */
export async function test(args) {
  await prepare();
  const start = performance.now();
  const options = args.filter((arg) => arg.startsWith('-'));
  const words = args.filter((arg) => !arg.startsWith('-')).map((word) => word.replace(/\.ts$/, '.js'));
  const all = testFiles(['']).filter((file) => !file.startsWith('dist/test/tidy/'));
  const files = words.length === 0 ? all : all.filter((file) => words.some((word) => file.includes(word)));
  if (files.length === 0) {
    console.error(words.length === 0 ? 'There are no tests.' : `No test file matches ${words.join(' ')}.`);
    return 1;
  }
  const reader = new TapReader();
  const runTests = process.stdout.isTTY ? runOnTerminal : runPiped;
  const status = await runTests(files, options, reader);
  const problems = judge(reader, options.some((option) => choosesTests.test(option)) ? undefined : expectedSkips());
  for (const problem of problems) process.stderr.write(`${problem}\n`);
  process.stderr.write(`${files.length} test files took ${secondsSince(start)}\n`);
  return status === 0 && problems.length > 0 ? 1 : status;
}
