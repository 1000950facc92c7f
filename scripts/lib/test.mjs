import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { StringDecoder } from 'node:string_decoder';
import { XenUnavailable } from '../../deploy/qemu/errors.mjs';
import { backendEnvironment, isBackendTest } from './backends.mjs';
import { prepare } from './build.mjs';
import { endOnSignal, run, secondsSince } from './process.mjs';
import { judge, parseExpectedSkips } from './tap.mjs';
import { TestOutput } from './test-output.mjs';
import { filesBelow, root } from './tree.mjs';
import { isXenTest, runXenTests } from './xen.mjs';

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

async function runOnTerminal(files, options, output, env) {
  const directory = mkdtempSync(path.join(tmpdir(), 'vmsg-test-'));
  const tap = path.join(directory, 'tap');
  const reporters = ['spec', 'tap'].flatMap((name, i) => [
    `--test-reporter=${name}`,
    `--test-reporter-destination=${i === 0 ? 'stdout' : tap}`,
  ]);
  try {
    const status = await run(testCommand(files, [...reporters, ...options]), { env });
    if (existsSync(tap)) output.tap(readFileSync(tap, 'utf8'));
    return status;
  } finally {
    rmSync(directory, { recursive: true });
  }
}

function runPiped(files, options, output, env) {
  const decoder = new StringDecoder();
  const onStdout = (bytes) => output.tap(decoder.write(bytes));
  return run(testCommand(files, ['--test-reporter=tap', ...options]), { onStdout, env });
}

async function runHere(files, options, output, env) {
  const start = performance.now();
  const runTests = output.onTerminal ? runOnTerminal : runPiped;
  const status = await endOnSignal(() => runTests(files, options, output, env));
  output.endRun();
  process.stderr.write(`${files.length} test files took ${secondsSince(start)}\n`);
  return status;
}

const runEmbedded = (files, options, output) => runHere(files, options, output);

async function runWithBackends(files, options, output) {
  return await runHere(files, options, output, await backendEnvironment());
}

/** Without what it needs, a suite is left out with one line, except where it was asked for or CI runs. */
function ifPossible(name, runSuite) {
  return async (files, options, output) => {
    try {
      return await runSuite(files, options, output);
    } catch (error) {
      if (!(error instanceof XenUnavailable)) throw error;
      const sentence = `${name} was not run: ${error.message}`;
      process.stderr.write(`${sentence}\n`);
      if (process.env.CI !== 'true') return 0;
      output.failure(sentence);
      return 1;
    }
  };
}

/** Compiled test files that the words select by a part of their path, without `tidy`, which belongs to the check. */
function selectFiles(words) {
  const parts = words.length === 0 ? [''] : words.map((word) => word.replace(/\.ts$/, '.js'));
  return testFiles(parts).filter((file) => !file.startsWith('dist/test/tidy/'));
}

async function runSelected(args, tiers) {
  await prepare();
  const options = args.filter((arg) => arg.startsWith('-'));
  const words = args.filter((arg) => !arg.startsWith('-'));
  const files = selectFiles(words);
  const chosen = tiers.map(({ owns, run: runTier }) => ({ files: files.filter(owns), runTier }));
  const ran = chosen.filter((tier) => tier.files.length > 0);
  if (ran.length === 0) {
    console.error(words.length === 0 ? 'There are no tests.' : `No test file matches ${words.join(' ')}.`);
    return 1;
  }
  const output = new TestOutput(process.stdout);
  let status = 0;
  for (const tier of ran) status = (await tier.runTier(tier.files, options, output)) || status;
  output.end(ran.length > 1);
  const problems = judge(
    output.reader,
    options.some((option) => choosesTests.test(option)) ? undefined : expectedSkips(),
  );
  for (const problem of problems) process.stderr.write(`${problem}\n`);
  return status === 0 && problems.length > 0 ? 1 : status;
}

const embedded = { owns: (file) => !isXenTest(file) && !isBackendTest(file), run: runEmbedded };
const backends = { owns: isBackendTest, run: ifPossible('The suite with real backends', runWithBackends) };
const xen = { owns: isXenTest, run: ifPossible('The Xen suite', runXenTests) };

/**
 * The verb: the embedded suites, those with real vhost-user backends, then, unless `--fast` is given, those that run
 * inside Xen. Words select test files by a part of their path; what begins with `-` goes to `node --test`. A terminal
 * gets the spec reporter, everything else TAP with one closing summary.
 */
export async function test(args) {
  const isFast = (arg) => arg === '--fast';
  const rest = args.filter((arg) => !isFast(arg));
  return await runSelected(rest, args.some(isFast) ? [embedded, backends] : [embedded, backends, xen]);
}

/** The verb: only the suites that run inside Xen, with the same arguments. */
export async function testXen(args) {
  return await runSelected(args, [{ owns: isXenTest, run: runXenTests }]);
}
