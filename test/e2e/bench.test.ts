import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';

const program = fileURLToPath(new URL('../bench/main.js', import.meta.url));
const directory = mkdtempSync(join(tmpdir(), 'vmsg-bench-test-'));
after(() => rmSync(directory, { recursive: true }));

interface Entry {
  readonly [field: string]: string | number | null;
}

const judged = ['low', 'high', 'bar', 'stretch', 'held'];
const sides = ['ours', 'baseline', 'oursName', 'baselineName', 'ratio'];
const fields = ['kind', 'name', 'unit', ...sides, ...judged, 'missing'];

interface Outcome {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function bench(args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<Outcome> {
  const child = spawn(process.execPath, [program, ...args], {
    env: { ...process.env, INIT_CWD: directory, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const output = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].on('data', (text) => {
      output[name] += String(text);
    });
  }
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolve({ code, ...output }));
  });
}

function readEntries(file: string): Entry[] {
  const report = JSON.parse(readFileSync(join(directory, file), 'utf8')) as { facts: string[]; results: Entry[] };
  assert.deepEqual(Object.keys(report), ['facts', 'results']);
  for (const entry of report.results) assert.deepEqual(new Set(Object.keys(entry)), new Set(fields));
  return report.results;
}

const isMeasured = (value: Entry[string] | undefined): boolean => typeof value === 'number' && value > 0;

test('one item gives a table, JSON, Markdown and a plot', async () => {
  const { code, stdout, stderr } = await bench(
    ['--quick', '--only', 'ring throughput 64', '--json', 'out.json', '--md', 'out.md', '--svg', 'out.svg'],
    {},
  );
  assert.equal(code, 0, stderr);
  assert.match(stdout, /^ring throughput 64 B +M\/s +[\d.]+/m);
  assert.match(stdout, /^node +v\d+/m);
  assert.match(stderr, /^1\/1 ring throughput 64 B/m);
  const [entry, ...others] = readEntries('out.json');
  assert.deepEqual(others, []);
  assert.deepEqual([entry?.name, entry?.unit, entry?.bar], ['ring throughput 64 B', 'M/s', 0.2]);
  assert.ok(isMeasured(entry?.ours), String(entry?.ours));
  const hasCompiler = spawnSync('gcc', ['--version']).error === undefined;
  for (const field of ['baseline', 'ratio']) assert.equal(isMeasured(entry?.[field]), hasCompiler, field);
  assert.equal(entry?.missing, hasCompiler ? null : 'no gcc');
  // Too few rounds for an interval.
  for (const field of ['low', 'high']) assert.equal(entry?.[field], null, field);
  assert.match(readFileSync(join(directory, 'out.md'), 'utf8'), /^\| ring throughput 64 B \| M\/s \| [\d.]+/m);
  assert.match(readFileSync(join(directory, 'out.svg'), 'utf8'), /^<svg /);
});

test('without a compiler ours is reported alone', async () => {
  const empty = join(directory, 'empty');
  mkdirSync(empty);
  const args = ['--quick', '--only', 'relay hop 64', '--json', 'alone.json'];
  const { code, stdout, stderr } = await bench(args, { PATH: empty });
  assert.equal(code, 0, stderr);
  assert.match(stdout, /no gcc/);
  for (const entry of readEntries('alone.json')) {
    assert.ok(isMeasured(entry.ours), String(entry.ours));
    for (const field of ['baseline', 'ratio', 'held']) assert.equal(entry[field], null, field);
    assert.equal(entry.missing, 'no gcc');
  }
});

test('without qemu-storage-daemon its rows are empty and say so', async () => {
  const env = { VMSG_BENCH_PREPARED: '{"storageDaemon":{"missing":"gone"},"libblkio":{"missing":"gone"}}' };
  const { code, stdout, stderr } = await bench(['--quick', '--only', 'joined', '--json', 'none.json'], env);
  assert.equal(code, 0, stderr);
  assert.match(stdout, /^not measured: no qemu-storage-daemon: gone$/m);
  for (const { ours, ratio } of readEntries('none.json')) assert.deepEqual([ours, ratio], [null, null]);
});

test('--publish takes neither parts nor short runs', async () => {
  const { code, stderr } = await bench(['--publish', '--quick']);
  assert.equal(code, 2);
  assert.match(stderr, /at full length/);
});

test('a name that nothing has is refused with the names there are', async () => {
  const { code, stderr } = await bench(['--only', 'nonesuch']);
  assert.equal(code, 2);
  assert.match(stderr, /message round trip/);
});
