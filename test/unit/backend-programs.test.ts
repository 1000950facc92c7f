import assert from 'node:assert/strict';
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { isListening } from '../../src/bridge/backend/vhost-user/spawn/listening.ts';
import {
  backendProgram,
  passtArguments,
  storageDaemonArguments,
  virtiofsdArguments,
  vsockArguments,
} from '../support/backend-programs.ts';

interface Row {
  readonly package: string;
  readonly suite: string;
  readonly file: string;
  readonly oldest: string;
  readonly tested: [string, string];
}

interface Table {
  readonly backendTable: Readonly<Record<string, Row>>;
  rowOf(name: string): Row;
  programVersion(row: Row, text: string): string | undefined;
  isTestedVersion(row: Row, version: string): boolean;
}

interface Programs {
  hostProgram(name: string, searchPath: string): Promise<{ command: string[]; version: string } | undefined>;
}

interface Image {
  installProgram(architecture: string, unpacked: object, root: string, folder: string): string[];
}

interface Unpacked {
  loaderCommand(architecture: string, tree: string, program: string): string[];
}

interface Index {
  readonly PackageIndex: new (text: string) => { closure(name: string, without?: string[]): { name: string }[] };
}

const load = async <T>(name: string): Promise<T> =>
  (await import(pathToFileURL(path.resolve('deploy', name)).href)) as T;
const { backendTable, rowOf, programVersion, isTestedVersion } = await load<Table>('backends/table.mjs');
const { hostProgram } = await load<Programs>('backends/programs.mjs');
const { installProgram } = await load<Image>('backends/image.mjs');
const { loaderCommand } = await load<Unpacked>('qemu/unpacked.mjs');
const { PackageIndex } = await load<Index>('qemu/index.mjs');

function temporary(t: TestContext): string {
  const directory = mkdtempSync(path.join(tmpdir(), 'vmsg-programs-'));
  t.after(() => rmSync(directory, { recursive: true }));
  return directory;
}

/** @returns a search path on which the program prints `text` for `option` */
function fakeProgram(t: TestContext, name: string, option: string, text: string): string {
  const directory = temporary(t);
  const file = path.join(directory, name);
  writeFileSync(file, `#!/bin/sh\n[ "$1" = ${option} ] && cat <<'END'\n${text}\nEND\n`);
  chmodSync(file, 0o755);
  return directory;
}

test('every backend is new enough where its tested versions begin', () => {
  assert.deepEqual(Object.keys(backendTable), ['qemu-storage-daemon', 'virtiofsd', 'passt', 'vhost-device-vsock']);
  for (const row of Object.values(backendTable)) {
    assert.ok(isTestedVersion(row, row.oldest));
    assert.ok(!isTestedVersion(row, row.tested[1]));
    assert.match(row.file, /^usr\/(bin|libexec)\//);
  }
  assert.throws(() => rowOf('toString'), /no backend toString/);
});

test('the epoch of a package does not count for the tested range', () => {
  const row = rowOf('qemu-storage-daemon');
  for (const version of ['7.2.22', '1:10.0.13+ds-0+deb13u1']) assert.ok(isTestedVersion(row, version), version);
  for (const version of ['7.1', '1:11.1.3+ds-1']) assert.ok(!isTestedVersion(row, version), version);
});

test('versions are found in what the programs print', () => {
  const said = {
    'qemu-storage-daemon': ['qemu-storage-daemon version 10.0.13 (Debian 1:10.0.13+ds)\nCopyright', '10.0.13'],
    virtiofsd: ['virtiofsd 1.14.0', '1.14.0'],
    passt: ['Usage: passt [OPTION]...\n  -s, --socket PATH\n  --vhost-user\t\tEnable vhost-user mode\n', ''],
    'vhost-device-vsock': ['vhost-device-vsock 0.3.0\n', '0.3.0'],
  } as const;
  for (const [name, [text, version]] of Object.entries(said)) {
    assert.equal(programVersion(rowOf(name), text), version);
    assert.equal(programVersion(rowOf(name), 'Usage: something [--else]'), undefined);
  }
});

test('a program of the host is used if it is new enough', async (t) => {
  const good = fakeProgram(t, 'virtiofsd', '--version', 'virtiofsd 1.14.1');
  const found = await hostProgram('virtiofsd', good);
  assert.deepEqual(found?.command, [path.join(good, 'virtiofsd')]);
  assert.equal(found.version, '1.14.1');
  assert.equal(await hostProgram('virtiofsd', fakeProgram(t, 'virtiofsd', '--version', 'virtiofsd 1.13.2')), undefined);
  assert.equal(await hostProgram('virtiofsd', fakeProgram(t, 'virtiofsd', '--version', 'what?')), undefined);
  assert.equal(await hostProgram('vhost-device-vsock', good), undefined);
});

test('a host whose passt cannot do vhost-user does without it', async (t) => {
  const help = 'Usage: passt [OPTION]...\n  -s, --socket PATH\tUNIX domain socket path';
  assert.equal(await hostProgram('passt', fakeProgram(t, 'passt', '--help', help)), undefined);
  const newer = await hostProgram('passt', fakeProgram(t, 'passt', '--help', `${help}\n  --vhost-user\t\tEnable`));
  assert.equal(newer?.version, '');
});

test('an unpacked program runs with the loader and the libraries of its own tree', () => {
  assert.deepEqual(loaderCommand('amd64', '/tree', 'usr/bin/x'), [
    '/tree/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2',
    '--library-path',
    '/tree/usr/lib/x86_64-linux-gnu',
    '/tree/usr/bin/x',
  ]);
});

test('a disk image gets the program and its libraries, and nothing else of the tree', (t) => {
  const [tree, root] = [temporary(t), temporary(t)];
  const libraries = path.join(tree, 'usr/lib/aarch64-linux-gnu');
  for (const directory of [libraries, path.join(libraries, 'gconv'), path.join(tree, 'usr/libexec')]) {
    mkdirSync(directory, { recursive: true });
  }
  for (const name of ['ld-linux-aarch64.so.1', 'libx.so.1.2', 'libx.a'])
    writeFileSync(path.join(libraries, name), name);
  symlinkSync('libx.so.1.2', path.join(libraries, 'libx.so.1'));
  writeFileSync(path.join(tree, 'usr/libexec/virtiofsd'), 'program');
  const command = installProgram('arm64', { name: 'virtiofsd', tree }, root, '/opt/backends');
  assert.deepEqual(command, loaderCommand('arm64', '/opt/backends/virtiofsd', 'usr/libexec/virtiofsd'));
  const installed = path.join(root, 'opt/backends/virtiofsd/usr');
  const copied = path.join(installed, 'lib/aarch64-linux-gnu');
  assert.deepEqual(readdirSync(copied).sort(), ['ld-linux-aarch64.so.1', 'libx.so.1', 'libx.so.1.2']);
  assert.equal(readlinkSync(path.join(copied, 'libx.so.1')), 'libx.so.1.2');
  assert.deepEqual(readdirSync(path.join(installed, 'libexec')), ['virtiofsd']);
});

test('what is left out of a closure takes along what only it depends on', () => {
  const stanza = (name: string, depends: string): string =>
    [
      ...[`Package: ${name}`, 'Version: 1', ...(depends === '' ? [] : [`Depends: ${depends}`])],
      ...[`Filename: pool/${name}.deb`, `SHA256: ${'0'.repeat(64)}`, 'Size: 1'],
    ].join('\n');
  const index = new PackageIndex(
    [stanza('a', 'b, helper | other'), stanza('b', ''), stanza('helper', 'deep'), stanza('deep', 'b')].join('\n\n'),
  );
  const names = (without?: string[]): string[] =>
    index
      .closure('a', without)
      .map(({ name }) => name)
      .sort();
  assert.deepEqual(names(), ['a', 'b', 'deep', 'helper']);
  assert.deepEqual(names(['helper']), ['a', 'b']);
});

test('the programs that the runner made ready are read from the environment', () => {
  const passt = { command: ['/usr/bin/passt'], version: '' };
  assert.deepEqual(backendProgram('passt', JSON.stringify({ passt })), passt);
  assert.throws(() => backendProgram('virtiofsd', JSON.stringify({ passt })), /does not have virtiofsd/);
});

test('backends are started with what needs no privilege', () => {
  const disk = storageDaemonArguments({ socket: '/s,1', file: '/d,1', queues: 2, writable: true }).join(' ');
  assert.match(disk, /filename=\/d,,1 --export .*addr\.path=\/s,,1,num-queues=2,writable=on$/);
  const readOnly = storageDaemonArguments({ socket: '/s', file: '/d', queues: 1, writable: false }).join(' ');
  assert.match(readOnly, /read-only=on --export /);
  assert.doesNotMatch(readOnly, /writable/);
  assert.ok(virtiofsdArguments({ socket: '/s', directory: '/d', tag: 't' }).includes('--sandbox=none'));
  assert.ok(passtArguments({ socket: '/s' }).includes('--foreground'));
  const vsock = vsockArguments({ socket: '/s', hostSocket: '/h', guestCid: 5 });
  assert.deepEqual(vsock, ['--socket', '/s', '--uds-path', '/h', '--guest-cid', '5']);
});

test('a socket listens only from the moment that the kernel says so', () => {
  const table = `Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 1234 /run/a b
0000000000000000: 00000002 00000000 00000000 0001 01 1235 /run/bound
0000000000000000: 00000003 00000000 00000000 0001 03 1236
`;
  assert.ok(isListening('/run/a b', table));
  for (const path of ['/run/bound', '/run/a', '/run/none']) assert.ok(!isListening(path, table));
});
