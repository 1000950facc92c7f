import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import { pathToFileURL } from 'node:url';

interface Versions {
  compareVersions(a: string, b: string): number;
  isTested(version: string, range: [string, string]): boolean;
}

interface Entry {
  readonly uris: string[];
  readonly suites: string[];
  readonly components: string[];
}

interface Sources {
  parseSourcesList(text: string): Entry[];
  parseDeb822(text: string): Entry[];
  mirrorOf(entries: Entry[]): string | undefined;
  findMirror(env: Record<string, string>, aptDirectory: string): string;
}

interface Found {
  readonly name: string;
  readonly version: string;
  readonly filename: string;
  readonly size: number;
}

interface Index {
  readonly PackageIndex: new (
    text: string,
  ) => { find(name: string): Found | undefined; need(name: string): Found; closure(name: string): Found[] };
  parseRelation(text: string): { name: string; version: string | undefined }[][];
}

interface Release {
  isWellSigned(statusLines: string): boolean;
  parseRelease(text: string): { field(name: string): string | undefined; sha256: Map<string, string> };
}

interface CacheModule {
  readonly Cache: new (
    directory: string,
  ) => {
    blob(algorithm: string, digest: string, produce: (file: string) => Promise<void>): Promise<string>;
    tree(key: string, produce: (directory: string) => Promise<void>): Promise<string>;
    readNote(name: string): { text: string; ageMs: number } | undefined;
    writeNote(name: string, text: string): Promise<void>;
  };
}

interface CpioEntry {
  readonly path: string;
  readonly type: string;
  readonly mode: number;
  readonly content?: string;
  readonly device?: [number, number];
}

interface Lock {
  readonly packages: Record<string, { dev?: boolean; dependencies?: Record<string, string> }>;
}

const load = async <T>(name: string): Promise<T> =>
  (await import(pathToFileURL(path.resolve('deploy/qemu', name)).href)) as T;
const { compareVersions, isTested } = await load<Versions>('versions.mjs');
const { parseSourcesList, parseDeb822, mirrorOf, findMirror } = await load<Sources>('sources.mjs');
const { PackageIndex, parseRelation } = await load<Index>('index.mjs');
const { isWellSigned, parseRelease } = await load<Release>('release.mjs');
const { Cache } = await load<CacheModule>('cache.mjs');
const { writeCpio } = await load<{ writeCpio(entries: CpioEntry[]): Buffer }>('cpio.mjs');
const { dataMember } = await load<{ dataMember(bytes: Buffer): { name: string; content: Buffer } }>('deb.mjs');
const { imageLock } = await load<{ imageLock(lock: object, extra: string[]): Lock }>('node-parts.mjs');
const { parseQemuVersion } = await load<{ parseQemuVersion(text: string): number[] | undefined }>('qemu.mjs');

function temporary(t: TestContext): string {
  const directory = mkdtempSync(path.join(tmpdir(), 'vmsg-image-'));
  t.after(() => rmSync(directory, { recursive: true }));
  return directory;
}

test('Debian versions have the order of dpkg', () => {
  const ascending = [
    ...['0~~', '0~~a', '0~', '0', '0a', '0+', '1.0~rc1-1', '1.0-1~bpo1', '1.0-1', '1.0-1+b1', '1.0-1+b9', '1.0-1+b10'],
    ...['1.0-1.1', '1.0-2', '1.0a-1', '1.0+dfsg-1', '1.0.1-1', '1.2-1', '1.10-1', '1:0.5-1', '1:0.5-1a', '2:0'],
  ];
  for (const [i, a] of ascending.entries()) {
    for (const [j, b] of ascending.entries())
      assert.equal(Math.sign(compareVersions(a, b)), Math.sign(i - j), `${a} ${b}`);
  }
  assert.equal(compareVersions('1.0', '0:1.0-0'), 0);
  assert.equal(compareVersions('1.01-1', '1.1-1'), 0);
});

test('a tested range begins with its first version and ends before its second', () => {
  const range: [string, string] = ['4.20', '4.21'];
  for (const version of ['4.20', '4.20.0~rc3-1', '4.20.3+127-gc42374a105-0+deb13u1'])
    assert.ok(isTested(version, range));
  for (const version of ['4.19.9', '4.21~rc1', '4.21', '1:4.20']) assert.ok(!isTested(version, range));
});

test('the mirror is the first main archive of Debian that apt uses over HTTP', () => {
  const list = parseSourcesList(`
deb cdrom:[Debian]/ trixie main
deb [arch=amd64 signed-by=/x.gpg] https://packages.example/apt stable-tools main # other software
deb-src http://mirror.example/debian trixie main
deb http://security.example/debian-security trixie-security main
deb [arch=amd64] http://mirror.example/debian/ trixie-updates main contrib
`);
  assert.equal(mirrorOf(list), 'http://mirror.example/debian');
  const deb822 = parseDeb822(`# a comment
Types: deb
URIs: http://off.example/debian
Suites: trixie
Components: main
Enabled: no

Types: deb deb-src
URIs: mirror+file:/etc/mirrors
 https://mirror.example/debian/
# between
Suites: bookworm
 bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 -----END PGP PUBLIC KEY BLOCK-----
`);
  assert.equal(mirrorOf(deb822), 'https://mirror.example/debian');
  assert.equal(mirrorOf([]), undefined);
});

test('DEBIAN_MIRROR comes before apt, and without either there is a sentence', (t) => {
  const apt = temporary(t);
  assert.throws(() => findMirror({}, apt), /^Error: no Debian archive is known: set DEBIAN_MIRROR/);
  mkdirSync(path.join(apt, 'sources.list.d'));
  const stanza = 'Types: deb\nURIs: http://one.example/debian\nSuites: sid\nComponents: main\n';
  writeFileSync(path.join(apt, 'sources.list.d/debian.sources'), stanza);
  assert.equal(findMirror({}, apt), 'http://one.example/debian');
  writeFileSync(path.join(apt, 'sources.list'), 'deb http://two.example/debian trixie main\n');
  assert.equal(findMirror({}, apt), 'http://two.example/debian');
  assert.equal(findMirror({ DEBIAN_MIRROR: 'http://three.example/debian/' }, apt), 'http://three.example/debian');
});

function stanza(name: string, version: string, fields = '', filename = `pool/main/${name}_${version}.deb`): string {
  const digest = createHash('sha256').update(filename).digest('hex');
  const description = 'Description: a package\n with: two lines';
  return `Package: ${name}\nVersion: ${version}\n${fields}Filename: ${filename}\nSize: 12\nSHA256: ${digest}\n${description}`;
}

test('the index gives the newest version of a package, and what it depends on', () => {
  const index = new PackageIndex(
    [
      stanza('tool', '1.9-1'),
      stanza('tool', '1.10-1', 'Pre-Depends: libc\nDepends: none | liba (>= 1), virtual:any, tool-data (= 1.10-1)\n'),
      stanza('tool', '1.2-1'),
      stanza('liba', '1', 'Depends: libc (>= 2), tool\n'),
      stanza('provider', '1', 'Provides: other, virtual (= 3)\n'),
      stanza('tool-data', '1.10-1'),
      stanza('libc', '2'),
      stanza('evil', '1', '', '../../outside.deb'),
      stanza('unrelated', '1'),
    ].join('\n\n'),
  );
  assert.equal(index.need('tool').version, '1.10-1');
  assert.equal(index.find('evil'), undefined);
  assert.throws(() => index.need('absent'), /the archive has no package absent/);
  const names = index.closure('tool').map(({ name }) => name);
  assert.deepEqual(names.sort(), ['liba', 'libc', 'provider', 'tool', 'tool-data']);
  assert.deepEqual(parseRelation('a (= 1-1) | b:any (>> 2) , c'), [
    [
      { name: 'a', version: '1-1' },
      { name: 'b', version: undefined },
    ],
    [{ name: 'c', version: undefined }],
  ]);
});

test('a Release file counts only when a known key has signed it and no signature is bad', () => {
  const good = '[GNUPG:] GOODSIG 1 a\n[GNUPG:] VALIDSIG 1 2026';
  assert.ok(isWellSigned(`gpgv: noise\n[GNUPG:] ERRSIG 2\n[GNUPG:] NO_PUBKEY 2\n${good}`));
  assert.ok(!isWellSigned(`${good}\n[GNUPG:] BADSIG 2 b`));
  assert.ok(!isWellSigned('[GNUPG:] ERRSIG 2\n[GNUPG:] NO_PUBKEY 2'));
  assert.ok(!isWellSigned('[GNUPG:] EXPKEYSIG 1 a\n[GNUPG:] VALIDSIG 1 2026'));
  const [a, b] = ['a'.repeat(64), 'b'.repeat(64)];
  const release = parseRelease(
    `Codename: trixie\nMD5Sum:\n ${'1'.repeat(32)} 1 main/x\nSHA256:\n ${a}  123 main/x\n ${b} 4 main/y\nAcquire-By-Hash: yes\n`,
  );
  assert.deepEqual([release.field('Codename'), release.field('Acquire-By-Hash')], ['trixie', 'yes']);
  assert.deepEqual(
    [...release.sha256],
    [
      ['main/x', a],
      ['main/y', b],
    ],
  );
});

test('the cache keeps files by digest, notices a damaged one, and makes each tree once', async (t) => {
  const directory = temporary(t);
  const cache = new Cache(directory);
  const digest = createHash('sha256').update('content').digest('hex');
  let made = 0;
  const produce = async (file: string): Promise<void> => {
    made++;
    writeFileSync(file, 'content');
  };
  const files = await Promise.all([1, 2, 3].map(() => cache.blob('sha256', digest, produce)));
  assert.equal(new Set(files).size, 1);
  made = 0;
  assert.equal(readFileSync(await cache.blob('sha256', digest, produce), 'utf8'), 'content');
  assert.equal(made, 0);
  writeFileSync(files[0]!, 'damaged');
  await cache.blob('sha256', digest, produce);
  assert.deepEqual([made, readFileSync(files[0]!, 'utf8')], [1, 'content']);
  await assert.rejects(cache.blob('sha256', '0'.repeat(64), produce), /the sha256 [0-9a-f]{64}, should have 0{64}/);

  const fill = async (tree: string): Promise<void> => {
    await new Promise((resolve) => setImmediate(resolve));
    writeFileSync(path.join(tree, 'file'), 'x');
  };
  const trees = await Promise.all([1, 2, 3].map(() => cache.tree('key', fill)));
  assert.equal(new Set(trees).size, 1);
  assert.ok(existsSync(path.join(trees[0]!, 'file')));
  const failed = cache.tree('other', async () => {
    throw new Error('no');
  });
  await assert.rejects(failed, /^Error: no$/);
  assert.deepEqual(readdirSync(path.join(directory, 'trees')), ['key']);
  await cache.writeNote('n', 'text');
  assert.equal(cache.readNote('n')?.text, 'text');
  assert.equal(cache.readNote('absent'), undefined);
  assert.deepEqual(readdirSync(path.join(directory, 'scratch')), []);
});

test('a cpio archive has the layout that the kernel reads', () => {
  const bytes = writeCpio([
    { path: 'dev', type: 'directory', mode: 0o755 },
    { path: 'dev/console', type: 'device', mode: 0o600, device: [5, 1] },
    { path: 'init', type: 'file', mode: 0o755, content: 'hello' },
  ]);
  const found: unknown[] = [];
  for (let at = 0; ; ) {
    const field = (i: number): number => Number.parseInt(bytes.toString('latin1', at + 6 + i * 8, at + 14 + i * 8), 16);
    assert.equal(bytes.toString('latin1', at, at + 6), '070701');
    const [mode, length, nameLength] = [field(1), field(6), field(11)];
    const name = bytes.toString('latin1', at + 110, at + 110 + nameLength - 1);
    const start = (at + 110 + nameLength + 3) & ~3;
    found.push([name, mode, field(9), field(10), bytes.toString('latin1', start, start + length)]);
    at = (start + length + 3) & ~3;
    if (name === 'TRAILER!!!') {
      assert.equal(at, bytes.length);
      break;
    }
  }
  assert.deepEqual(found, [
    ['dev', 0o040755, 0, 0, ''],
    ['dev/console', 0o020600, 5, 1, ''],
    ['init', 0o100755, 0, 0, 'hello'],
    ['TRAILER!!!', 0, 0, 0, ''],
  ]);
});

test('the files of a Debian package are found in it', () => {
  const member = (name: string, content: string): string =>
    `${name.padEnd(16)}${'0'.padEnd(12)}${'0'.padEnd(6)}${'0'.padEnd(6)}${'100644'.padEnd(8)}${String(content.length).padEnd(10)}\`\n${content}${content.length % 2 ? '\n' : ''}`;
  const deb = `!<arch>\n${member('debian-binary', '2.0\n')}${member('control.tar.xz', 'odd')}${member('data.tar.xz', 'the data')}`;
  const { name, content } = dataMember(Buffer.from(deb, 'latin1'));
  assert.deepEqual([name, content.toString()], ['data.tar.xz', 'the data']);
  assert.throws(() => dataMember(Buffer.from('<html>')), /This is not a Debian package/);
  assert.throws(() => dataMember(Buffer.from(`!<arch>\n${member('debian-binary', '2.0\n')}`)), /holds no files/);
});

test('the image gets production modules and the named ones, with what they need', () => {
  const top = { name: 'x', version: '1', dependencies: { a: '1' }, devDependencies: { tester: '2', compiler: '3' } };
  const lock = imageLock(
    {
      lockfileVersion: 3,
      packages: {
        '': top,
        'node_modules/a': {},
        'node_modules/tester': { dev: true, dependencies: { pure: '1', a: '1' } },
        'node_modules/pure': { dev: true },
        'node_modules/compiler': { dev: true },
      },
    },
    ['tester'],
  );
  assert.deepEqual(lock.packages[''], { name: 'x', version: '1', dependencies: { a: '1', tester: '2' } });
  const names = ['', 'node_modules/a', 'node_modules/tester', 'node_modules/pure'];
  assert.deepEqual(Object.keys(lock.packages), names);
  assert.ok(Object.values(lock.packages).every(({ dev }) => dev === undefined));
  assert.throws(
    () => imageLock({ packages: { '': top } }, ['tester']),
    /package-lock.json has no node_modules\/tester/,
  );
});

test("QEMU's version is read from what it prints", () => {
  assert.deepEqual(parseQemuVersion('QEMU emulator version 7.2.22 (Debian 1:7.2)\nCopyright'), [7, 2]);
  assert.deepEqual(parseQemuVersion('QEMU emulator version 10.0.3'), [10, 0]);
  assert.equal(parseQemuVersion('error while loading shared libraries'), undefined);
});
