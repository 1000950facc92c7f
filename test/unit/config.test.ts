import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { type Config, loadConfig, type Surroundings } from '../../src/app/config.ts';
import { prepareDirs } from '../../src/app/config-dirs.ts';
import { configFields, configHelp } from '../../src/app/config-help.ts';
import { VmsgError } from '../../src/kit/errors.ts';
import { temporaryDirectory } from '../api/support.ts';

const user: Surroundings = { uid: 1000, home: '/home/u', tmpdir: '/tmp', env: {} };

function load(t: TestContext, content: unknown, surroundings = user): { config: Config; directory: string } {
  const directory = temporaryDirectory(t);
  const file = path.join(directory, 'vmsg.json');
  fs.writeFileSync(file, typeof content === 'string' ? content : JSON.stringify(content));
  return { config: loadConfig(file, surroundings), directory };
}

const wrongAt = (pointer: string, message: RegExp) => (error: unknown) => {
  assert.ok(error instanceof VmsgError, String(error));
  assert.deepEqual([error.code, error.pointer], ['invalid-config', pointer]);
  assert.match(error.message, message);
  return true;
};

const bus = { domain: 'vm1', transport: 'loopback', role: 'driver' };

describe('config', () => {
  it('has a default for everything', () => {
    assert.deepEqual(loadConfig(undefined, user), {
      stateDir: '/home/u/.local/state/vmsg',
      runtimeDir: '/tmp/vmsg-1000',
      api: { socket: '/tmp/vmsg-1000/api.sock', socketMode: 0o660, tcp: null },
      log: { level: 'info' },
      lane: { mode: 'worker', dataPlaneWorkers: 1, dataPlaneSpinUs: 20 },
      disks: { io: 'auto' },
      xen: { xlPath: 'xl' },
      programs: {},
      objects: { domains: {}, buses: {}, backends: {}, attachments: {} },
    });
  });

  it('follows the XDG variables, which must be absolute, and the customs for root', () => {
    const env = { XDG_STATE_HOME: '/s', XDG_RUNTIME_DIR: '/run/user/1000' };
    const xdg = loadConfig(undefined, { ...user, env });
    assert.deepEqual([xdg.stateDir, xdg.runtimeDir], ['/s/vmsg', '/run/user/1000/vmsg']);
    const relative = loadConfig(undefined, { ...user, env: { XDG_STATE_HOME: 's', XDG_RUNTIME_DIR: 'r' } });
    assert.deepEqual([relative.stateDir, relative.runtimeDir], ['/home/u/.local/state/vmsg', '/tmp/vmsg-1000']);
    const root = loadConfig(undefined, { ...user, uid: 0, env });
    assert.deepEqual(
      [root.stateDir, root.runtimeDir, root.api.socket],
      ['/var/lib/vmsg', '/run/vmsg', '/run/vmsg/api.sock'],
    );
  });

  it('takes a full file and counts paths from its directory', (t) => {
    const { config, directory } = load(t, {
      stateDir: 'state',
      runtimeDir: '/run/x',
      api: { socket: './a.sock', socketMode: '0600', tcp: { host: '::1', port: 8080, tokenFile: 'token' } },
      log: { level: 'debug' },
      lane: { mode: 'inline', dataPlaneWorkers: 2, dataPlaneSpinUs: 0 },
      disks: { io: 'threads' },
      xen: { xlPath: 'xl-wrapper' },
      programs: {
        passt: { command: ['bin/passt'], memoryBytes: 2 ** 30 },
        mine: { command: ['mine', '--socket={socket}', 'a/b'], device: 'rng', restart: 'never' },
      },
      domains: { vm1: { description: 'first' } },
      buses: { b: bus },
      backends: { disk: { type: 'blk', path: '../disk.img' }, rng: { type: 'rng', source: '/dev/random' } },
      attachments: { a: { bus: 'b', backend: 'disk', deviceNumber: 65535 } },
    });
    assert.deepEqual(config, {
      stateDir: path.join(directory, 'state'),
      runtimeDir: '/run/x',
      api: {
        socket: path.join(directory, 'a.sock'),
        socketMode: 0o600,
        tcp: { host: '::1', port: 8080, tokenFile: path.join(directory, 'token') },
      },
      log: { level: 'debug' },
      lane: { mode: 'inline', dataPlaneWorkers: 2, dataPlaneSpinUs: 0 },
      disks: { io: 'threads' },
      xen: { xlPath: 'xl-wrapper' },
      programs: {
        passt: { command: [path.join(directory, 'bin/passt')], memoryBytes: 2 ** 30 },
        mine: { command: ['mine', '--socket={socket}', 'a/b'], device: 'rng', restart: 'never' },
      },
      objects: {
        domains: { vm1: { description: 'first' } },
        buses: { b: bus },
        backends: {
          disk: { type: 'blk', path: path.join(path.dirname(directory), 'disk.img') },
          rng: { type: 'rng', source: '/dev/random' },
        },
        attachments: { a: { bus: 'b', backend: 'disk', deviceNumber: 65535 } },
      },
    });
  });

  it('listens on 127.0.0.1 with a token in stateDir, if only a port is given', (t) => {
    const { config } = load(t, { stateDir: '/s', api: { tcp: { port: 1 } } });
    assert.deepEqual(config.api.tcp, { host: '127.0.0.1', port: 1, tokenFile: '/s/api-token' });
  });

  for (const host of ['0.0.0.0', '::', 'localhost', '127.0.0.2', '192.0.2.1', 'example.org', '']) {
    it(`does not listen on ${host || 'nothing'}: that would need TLS`, (t) => {
      assert.throws(
        () => load(t, { api: { tcp: { host, port: 8080 } } }),
        wrongAt('/api/tcp/host', /must be 127\.0\.0\.1 or ::1: beyond loopback the API needs TLS/),
      );
    });
  }

  const wrong: [string, unknown, string, RegExp][] = [
    ['no object', [], '', /must be an object/],
    ['an unknown field', { stateDirectory: '/x' }, '/stateDirectory', /not a known field/],
    ['an unknown inner field', { api: { port: 80 } }, '/api/port', /not a known field/],
    ['a mode that is not octal', { api: { socketMode: '0999' } }, '/api/socketMode', /must match pattern/],
    ['a mode as a number', { api: { socketMode: 600 } }, '/api/socketMode', /must be string/],
    ['TCP without a port', { api: { tcp: {} } }, '/api/tcp/port', /is missing/],
    ['port 0', { api: { tcp: { port: 0 } } }, '/api/tcp/port', /must be >= 1/],
    ['a port too large', { api: { tcp: { port: 65_536 } } }, '/api/tcp/port', /must be <= 65535/],
    ['a port as text', { api: { tcp: { port: '80' } } }, '/api/tcp/port', /must be integer/],
    ['an unknown field of TCP', { api: { tcp: { port: 1, token: 'x' } } }, '/api/tcp/token', /not a known field/],
    ['an empty token file', { api: { tcp: { port: 1, tokenFile: '' } } }, '/api/tcp/tokenFile', /fewer than 1/],
    ['an unknown level', { log: { level: 'loud' } }, '/log/level', /must be one of "trace", "debug"/],
    ['an empty path', { stateDir: '' }, '/stateDir', /must not have fewer than 1/],
    ['a zero byte in a path', { stateDir: '/a\u0000b' }, '/stateDir', /must match pattern/],
    ['a wrong id', { domains: { VM1: {} } }, '/domains/VM1', /is a name that does not match/],
    ['a name from the prototype', '{"domains": {"__proto__": {}}}', '/domains/__proto__', /does not match/],
    ['a missing field', { buses: { b: { domain: 'vm1', role: 'driver' } } }, '/buses/b/transport', /is missing/],
    [
      'an unknown backend type',
      { backends: { d: { type: 'net' } } },
      '/backends/d/type',
      /must be one of .*"blk", "rng"/,
    ],
    ['a backend without type', { backends: { d: { path: '/x' } } }, '/backends/d/type', /is missing/],
    [
      'a field of another type',
      { backends: { d: { type: 'rng', path: '/x' } } },
      '/backends/d/path',
      /not a known field/,
    ],
    [
      'a number too large',
      { attachments: { a: { bus: 'b', backend: 'd', deviceNumber: 65536 } } },
      '/attachments/a/deviceNumber',
      /must be <= 65535/,
    ],
    ['a uid twice', { buses: { b: { ...bus, admittedUids: [1, 1] } } }, '/buses/b/admittedUids', /duplicate/],
    ['a wrong uid', { buses: { b: { ...bus, admittedUids: [1, -1] } } }, '/buses/b/admittedUids/1', /must be >= 0/],
    ['a program without a command', { programs: { p: { device: 'blk' } } }, '/programs/p/command', /is missing/],
    ['a program without a device', { programs: { p: { command: ['p'] } } }, '/programs/p/device', /is missing/],
    [
      'a program without a socket',
      { programs: { p: { command: ['{socket}', '-x'], device: 'blk' } } },
      '/programs/p/command',
      /needs an argument with \{socket\}/,
    ],
    [
      'another device for a known program',
      { programs: { passt: { device: 'blk' } } },
      '/programs/passt/device',
      /is known for passt/,
    ],
    [
      'a command of an object',
      { backends: { b: { type: 'program', program: 'p', command: ['x'] } } },
      '/backends/b/command',
      /not a known field/,
    ],
    ['no JSON', '{"a":', '', /is not JSON/],
  ];
  for (const [what, content, pointer, message] of wrong) {
    it(`refuses ${what}`, (t) => {
      assert.throws(() => load(t, content), wrongAt(pointer, message));
    });
  }

  it('says which file cannot be read', (t) => {
    const directory = temporaryDirectory(t);
    assert.throws(
      () => loadConfig(path.join(directory, 'none.json'), user),
      wrongAt('', /none\.json: cannot be read: ENOENT/),
    );
    assert.throws(() => loadConfig(directory, user), wrongAt('', /cannot be read: EISDIR/));
  });

  it('explains every field', () => {
    const fields = configFields();
    for (const { path: name, description } of fields) assert.ok(description.length > 0, name);
    const help = configHelp(80);
    for (const name of ['stateDir', 'api.socketMode', 'backends.<id>.serial', 'attachments.<id>.deviceNumber']) {
      assert.ok(help.includes(`  ${name} (`), name);
    }
    assert.match(help, /api\.socketMode \(string, default "0660"\)/);
    for (const line of help.split('\n')) assert.ok(line.length <= 80, line);
  });
});

describe('config: directories', () => {
  const uid = process.getuid?.() ?? 0;

  it('are made for the owner only', (t) => {
    const base = temporaryDirectory(t);
    const config = { stateDir: path.join(base, 'a/state'), runtimeDir: path.join(base, 'run') };
    const dirs = prepareDirs(config, uid);
    assert.deepEqual(dirs, {
      state: config.stateDir,
      buses: path.join(config.runtimeDir, 'bus'),
      recovery: path.join(config.runtimeDir, 'recovery'),
      programs: path.join(config.runtimeDir, 'programs'),
    });
    assert.equal(fs.statSync(dirs.state).mode & 0o777, 0o700);
    assert.equal(fs.statSync(dirs.recovery).mode & 0o777, 0o700);
    assert.equal(fs.statSync(dirs.programs).mode & 0o777, 0o700);
    assert.equal(fs.statSync(dirs.buses).mode & 0o777, uid === 0 ? 0o755 : 0o700);
    assert.deepEqual(prepareDirs(config, uid), dirs, 'once more');
  });

  it('of others, links and files are refused', (t) => {
    const base = temporaryDirectory(t);
    const stateDir = path.join(base, 'state');
    const refused = (runtimeDir: string, message: RegExp, as = uid) =>
      assert.throws(
        () => prepareDirs({ stateDir, runtimeDir }, as),
        (error) => {
          assert.ok(error instanceof VmsgError);
          assert.match(error.message, message);
          return true;
        },
      );
    fs.mkdirSync(path.join(base, 'open'));
    fs.chmodSync(path.join(base, 'open'), 0o777);
    refused(path.join(base, 'open'), /can be written by other users/);
    fs.symlinkSync(base, path.join(base, 'link'));
    refused(path.join(base, 'link'), /symbolic link/);
    fs.writeFileSync(path.join(base, 'file'), '');
    refused(path.join(base, 'file'), /EEXIST/);
    refused(path.join(base, 'run'), /belongs to the user/, uid + 1);
  });
});
