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

const fields = ['name', 'unit', 'ours', 'baseline', 'baselineName', 'ratio', 'low', 'high', 'bar'];
const compared = ['baseline', 'ratio', 'low', 'high'] as const;

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
  const report = JSON.parse(readFileSync(join(directory, file), 'utf8')) as { results: Entry[] };
  assert.deepEqual(Object.keys(report), ['results']);
  for (const entry of report.results) {
    assert.deepEqual(Object.keys(entry), fields);
    assert.ok(typeof entry.ours === 'number' && entry.ours > 0, `${entry.name}: ${entry.ours}`);
  }
  return report.results;
}

test('one item gives a table, JSON and Markdown', async () => {
  const { code, stdout, stderr } = await bench(
    ['--quick', '--only', 'ring throughput 64', '--json', 'out.json', '--md', 'out.md'],
    {},
  );
  assert.equal(code, 0, stderr);
  assert.match(stdout, /^ring throughput 64 B +M\/s +[\d.]+/m);
  assert.match(stdout, /^node +v\d+/m);
  assert.match(stderr, /^1\/1 ring throughput 64 B/m);
  const [entry, ...others] = readEntries('out.json');
  assert.deepEqual(others, []);
  assert.deepEqual([entry?.name, entry?.unit, entry?.bar], ['ring throughput 64 B', 'M/s', 0.2]);
  const type = spawnSync('gcc', ['--version']).error === undefined ? 'number' : 'object';
  for (const field of compared) assert.equal(typeof entry?.[field], type, field);
  assert.match(readFileSync(join(directory, 'out.md'), 'utf8'), /^\| ring throughput 64 B \| M\/s \| [\d.]+/m);
});

test('without a compiler ours is reported alone', async () => {
  const empty = join(directory, 'empty');
  mkdirSync(empty);
  const args = ['--quick', '--only', 'relay hop 64', '--json', 'alone.json'];
  const { code, stdout, stderr } = await bench(args, { PATH: empty });
  assert.equal(code, 0, stderr);
  assert.match(stdout, /no gcc/);
  const [entry] = readEntries('alone.json');
  for (const field of [...compared, 'baselineName']) assert.equal(entry?.[field], null, field);
});

test('a name that nothing has is refused with the names there are', async () => {
  const { code, stderr } = await bench(['--only', 'nonesuch']);
  assert.equal(code, 2);
  assert.match(stderr, /message round trip/);
});
