import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { runVmsg } from '../support/run-command.ts';

const directory = mkdtempSync(join(tmpdir(), 'vmsg-test-'));
after(() => rmSync(directory, { recursive: true, force: true }));

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
const lastLine = (text: string): string | undefined => text.trimEnd().split('\n').at(-1);
const demoDirectories = (): string[] => readdirSync(tmpdir()).filter((name) => name.startsWith('vmsg-demo-'));

test('the demo runs to its end and leaves nothing behind', async () => {
  const before = demoDirectories();
  const { code, stdout, stderr } = await runVmsg(['demo', '--exit']);
  assert.equal(code, 0, stderr);
  assert.equal(lastLine(stdout), 'demo: ok');
  assert.match(stdout, /SHA-256 equals that of the file/);
  assert.match(stdout, /the guest saw device 1 go/);
  assert.match(stdout, /the guest saw device 5 come/);
  assert.match(stdout, /the guest said "hello from guest process (\d+)"/);
  assert.match(stdout, /the guest heard "the host read \d+ characters"/);
  assert.match(stdout, /serves entropy on the bus served/);
  assert.equal(stdout.match(/device \d+: 32 bytes/g)?.length, 2, 'both entropy devices were used');
  assert.match(stdout, /rng: the entropy of the kernel/);
  assert.match(stdout, /messages [1-9]\d* \([1-9]\d* from the guest, [1-9]\d* to it\), doorbells [1-9]\d*/);
  assert.deepEqual(
    demoDirectories().filter((name) => !before.includes(name)),
    [],
  );
});

for (const sizeBytes of [1, 511, 512, 513, 1024 * 1024 + 7]) {
  test(`--disk takes a file of ${sizeBytes} bytes, read-only, and does not change it`, async () => {
    const path = join(directory, `disk-${sizeBytes}`);
    const content = Buffer.alloc(sizeBytes, 0x5a);
    writeFileSync(path, content);
    chmodSync(path, 0o444);
    const { code, stdout, stderr } = await runVmsg(['demo', '--exit', '--disk', path]);
    assert.equal(code, 0, stderr);
    assert.equal(lastLine(stdout), 'demo: ok');
    assert.ok(stdout.includes(sha256(content).slice(0, 16)), 'the story shows the hash of the own bytes of the file');
    assert.deepEqual(readFileSync(path), content);
  });
}

test('--disk takes a large sparse file', async () => {
  const path = join(directory, 'sparse');
  writeFileSync(path, 'begin');
  truncateSync(path, 200 * 1024 * 1024 + 3);
  const { code, stdout, stderr } = await runVmsg(['demo', '--exit', '--disk', path]);
  assert.equal(code, 0, stderr);
  assert.equal(lastLine(stdout), 'demo: ok');
});

for (const [name, make, sentence] of [
  ['a missing file', () => join(directory, 'missing'), /ENOENT/],
  ['a directory', () => directory, /not a regular file/],
  ['an empty file', () => emptyFile(), /the file is empty/],
] as const) {
  test(`--disk refuses ${name} with one sentence`, async () => {
    const { code, stderr } = await runVmsg(['demo', '--exit', '--disk', make()]);
    assert.equal(code, 64);
    assert.match(stderr, sentence);
    assert.equal(stderr.trimEnd().split('\n').length, 1);
  });
}

function emptyFile(): string {
  const path = join(directory, 'empty');
  writeFileSync(path, '');
  return path;
}
