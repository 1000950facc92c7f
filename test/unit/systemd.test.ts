import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { describe, it } from 'node:test';
import { listen, listenFd } from '../../api/listen.ts';
import { loadConfig } from '../../src/app/config.ts';
import { activatedSocket, notifyManager } from '../../src/app/systemd.ts';
import { linux } from '../../src/libc/constants.ts';
import { Fd } from '../../src/libc/fd.ts';
import { bindNative, listenNative, readInto, socketNative } from '../../src/libc/native.ts';
import { makeServer, makeWorld, request, temporaryDirectory } from '../api/support.ts';

const root = new URL(import.meta.url.endsWith('.ts') ? '../../' : '../../../', import.meta.url);
const deployed = (name: string): string => readFileSync(new URL(`deploy/${name}`, root), 'utf8');

function boundSocket(type: number, address: string): number {
  const fd = socketNative(linux.AF_UNIX, type | linux.SOCK_NONBLOCK, 0);
  const name = Uint8Array.from([linux.AF_UNIX, 0, ...Buffer.from(address), 0]);
  assert.equal(bindNative(fd, name, name.length), 0);
  return fd;
}

describe('service manager', () => {
  it('is told through its socket', () => {
    const directory = mkdtempSync(path.join(os.tmpdir(), 'vmsg-test-'));
    const address = path.join(directory, 'notify');
    const socket = new Fd(boundSocket(linux.SOCK_DGRAM, address));
    assert.equal(notifyManager({ NOTIFY_SOCKET: address }, 'READY=1'), null);
    const text = new Uint8Array(64);
    assert.equal(Buffer.from(text.subarray(0, readInto(socket.number, text, text.length))).toString(), 'READY=1');
    socket.close();
    assert.match(notifyManager({ NOTIFY_SOCKET: address }, 'READY=1') ?? '', /refused/);
    rmSync(directory, { recursive: true });
  });

  it('need not be there', () => {
    assert.equal(notifyManager({}, 'READY=1'), null);
    assert.match(notifyManager({ NOTIFY_SOCKET: '/nowhere/notify' }, 'READY=1') ?? '', /absent/);
    assert.match(notifyManager({ NOTIFY_SOCKET: '@abstract' }, 'READY=1') ?? '', /no path/);
  });

  it('passes sockets to the process it means', () => {
    assert.equal(activatedSocket({ LISTEN_FDS: '1', LISTEN_PID: '77' }, 77), 3);
    for (const env of [
      {},
      { LISTEN_FDS: '1' },
      { LISTEN_FDS: '1', LISTEN_PID: '78' },
      { LISTEN_FDS: '0', LISTEN_PID: '77' },
    ]) {
      assert.equal(activatedSocket(env, 77), undefined);
    }
  });

  it('may listen for the service', async (t) => {
    const address = path.join(temporaryDirectory(t), 'api.sock');
    // Bound and listening already: its descriptor is all that the service gets.
    const fd = boundSocket(linux.SOCK_STREAM, address);
    assert.equal(listenNative(fd, 1), 0);
    const app = await makeServer(t, makeWorld(t));
    await listenFd(app, fd);
    assert.equal((await request(address, 'GET', '/healthz')).status, 200);
    await app.close();
  });

  it('reports a descriptor that is no socket', async (t) => {
    const app = await makeServer(t, makeWorld(t));
    await assert.rejects(listenFd(app, 999_999), { code: 'system-call' });
    await listen(app, { path: path.join(temporaryDirectory(t), 'api.sock'), mode: 0o600 });
  });
});

/** Keys of systemd.unit(5), systemd.service(5), systemd.exec(5), systemd.socket(5) that we use. */
const knownKeys: Readonly<Record<string, readonly string[]>> = {
  Unit: ['Description', 'Requires', 'After', 'Before'],
  Service: [
    ...['Type', 'NotifyAccess', 'ExecStart', 'Restart', 'RestartSec', 'TimeoutStartSec', 'TimeoutStopSec', 'KillMode'],
    ...['LimitNOFILE', 'StateDirectory', 'StateDirectoryMode', 'RuntimeDirectory', 'RuntimeDirectoryMode'],
    ...['RuntimeDirectoryPreserve', 'NoNewPrivileges', 'ProtectSystem', 'ProtectHome', 'PrivateTmp', 'ProtectClock'],
    ...['ProtectControlGroups', 'ProtectHostname', 'ProtectKernelLogs', 'ProtectKernelModules'],
    ...['ProtectKernelTunables', 'LockPersonality', 'RestrictAddressFamilies', 'RestrictNamespaces'],
    ...['RestrictRealtime', 'RestrictSUIDSGID', 'SystemCallArchitectures', 'SystemCallFilter'],
    ...['SystemCallErrorNumber', 'UMask', 'CapabilityBoundingSet', 'DevicePolicy', 'DeviceAllow'],
  ],
  Socket: ['ListenStream', 'SocketMode', 'DirectoryMode'],
  Install: ['WantedBy', 'Also'],
};

/** Sections of a unit file with their keys. */
function parseUnit(text: string): Map<string, [key: string, value: string][]> {
  const sections = new Map<string, [string, string][]>();
  let current: [string, string][] | undefined;
  for (const line of text.split('\n')) {
    if (line === '' || line.startsWith('#')) continue;
    const section = /^\[(\w+)\]$/.exec(line)?.[1];
    if (section !== undefined) {
      current = [];
      sections.set(section, current);
      continue;
    }
    const [, key, value] = /^(\w+)=(.+)$/.exec(line) ?? [];
    assert.ok(key !== undefined && value !== undefined && current !== undefined, `not a line of a unit: ${line}`);
    current.push([key, value]);
  }
  return sections;
}

describe('what is deployed', () => {
  it('units have known keys only, each once but for DeviceAllow', () => {
    for (const unit of readdirSync(new URL('deploy/systemd', root))) {
      for (const [section, entries] of parseUnit(deployed(`systemd/${unit}`))) {
        const keys = entries.map(([key]) => key).filter((key) => key !== 'DeviceAllow');
        assert.equal(new Set(keys).size, keys.length, `${unit} [${section}]`);
        for (const key of keys) assert.ok(knownKeys[section]?.includes(key), `${unit} [${section}] ${key}`);
      }
    }
  });

  it('the unit starts what the service needs and keeps what a resume needs', () => {
    const service = new Map(parseUnit(deployed('systemd/vmsg.service')).get('Service'));
    assert.equal(service.get('Type'), 'notify');
    // A stop ends programs of backends after their devices; nothing outlives the service.
    assert.equal(service.get('KillMode'), 'mixed');
    assert.equal(service.get('RuntimeDirectoryPreserve'), 'yes');
    assert.equal(service.get('ExecStart'), '/usr/bin/vmsg serve --config /etc/vmsg/vmsg.json');
    const root = loadConfig(undefined, { uid: 0, home: '/root', tmpdir: '/tmp', env: {} });
    assert.equal(root.runtimeDir, `/run/${service.get('RuntimeDirectory')}`);
    assert.equal(root.stateDir, `/var/lib/${service.get('StateDirectory')}`);
    const socket = new Map(parseUnit(deployed('systemd/vmsg.socket')).get('Socket'));
    assert.equal(socket.get('ListenStream'), root.api.socket);
    assert.equal(Number.parseInt(socket.get('SocketMode') ?? '', 8), root.api.socketMode);
  });

  it('the example config is valid and names the example domain', () => {
    const file = new URL('deploy/vmsg.json', root).pathname;
    const { objects } = loadConfig(file, { uid: 0, home: '/root', tmpdir: '/tmp', env: {} });
    for (const bus of Object.values(objects.buses)) {
      const name = objects.domains[bus.domain]?.xen?.name;
      assert.equal(bus.transport, 'xen');
      assert.match(deployed(`xl/${name}.cfg`), new RegExp(`^name = "${name}"$`, 'm'));
    }
    for (const { bus, backend } of Object.values(objects.attachments)) {
      assert.ok(bus in objects.buses && backend in objects.backends);
    }
  });
});
