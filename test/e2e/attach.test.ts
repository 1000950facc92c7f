import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { Resource } from '../../src/bridge/commands.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { openMessenger } from '../../src/vhost-user/socket.ts';
import { emptyQcow2 } from '../support/qcow2.ts';
import { type CommandResult, runVmsg } from '../support/run-command.ts';
import { eventually, ServiceHome, type ServiceProcess } from '../support/service-process.ts';
import { VhostUserPeer } from '../support/vhost-user-peer.ts';
import { RamDisk } from '../support/vhost-user-ram-disk.ts';

const disk = fileURLToPath(new URL('../support/spawned-disk.js', import.meta.url));
const fails = ['/bin/sh', '-c', 'echo "$0: no such luck" >&2; exit 1', 'fake'];
const home = new ServiceHome(
  {
    domains: { guest: {} },
    buses: { bus: { domain: 'guest', transport: 'loopback', role: 'driver' } },
    backends: {},
    attachments: {},
  },
  {
    log: { level: 'error' },
    programs: {
      'qemu-storage-daemon': { command: [process.execPath, disk] },
      virtiofsd: { command: fails },
      passt: { command: fails },
      'vhost-device-vsock': { command: fails },
    },
  },
);
const scratch = mkdtempSync(join(tmpdir(), 'vmsg-attach-'));
const qcow2 = join(scratch, 'disk.qcow2');
const raw = join(scratch, 'disk.img');
let service: ServiceProcess;

before(async () => {
  writeFileSync(qcow2, emptyQcow2(1 << 20));
  writeFileSync(raw, Buffer.alloc(1 << 20));
  mkdirSync(join(scratch, 'my files'));
  service = await home.start();
});
after(async () => {
  assert.equal(await service.stop(), 0);
  home.remove();
  rmSync(scratch, { recursive: true });
});

const vmsg = (...args: string[]): Promise<CommandResult> => runVmsg(args, { VMSG_API: home.apiSocket });

async function refused(code: number, sentence: RegExp, ...args: string[]): Promise<void> {
  const result = await vmsg(...args);
  assert.equal(result.code, code, result.stderr);
  assert.match(result.stderr.trimEnd().split('\n').at(-1) ?? '', sentence);
  assert.equal(result.stdout, '');
}

async function succeeds(...args: string[]): Promise<CommandResult> {
  const result = await vmsg(...args);
  assert.equal(result.code, 0, result.stderr);
  return result;
}

const specOf = async (id: string): Promise<unknown> =>
  (JSON.parse((await succeeds('backend', 'show', id)).stdout) as Resource<'backends'>).spec;
const backends = async (): Promise<string[]> =>
  (JSON.parse((await succeeds('backend', 'ls', '--json')).stdout) as Resource<'backends'>[]).map(({ id }) => id);

test('an image in another format is attached by one command, as often as it is said', async () => {
  const first = await succeeds('attach', 'bus', '--disk', qcow2);
  assert.match(first.stderr, /backends\/bus\.disk: a qcow2 image, served by qemu-storage-daemon/);
  assert.match(first.stdout, /attachments\/bus\.disk created, device number 0/);
  assert.deepEqual(await specOf('bus.disk'), { type: 'qemu-storage-daemon', path: qcow2, format: 'qcow2' });
  assert.match((await succeeds('attach', 'bus', '--disk', qcow2)).stdout, /attachments\/bus\.disk unchanged/);
  assert.match((await succeeds('backend', 'ls')).stdout, /bus\.disk +qemu-storage-daemon +\S+disk\.qcow2 \(qcow2\)/);
});

test('a raw image is attached without a program, under a name of its own', async () => {
  await refused(1, /bus\.disk.*in-use.*--name/, 'attach', 'bus', '--disk', raw);
  const { stdout, stderr } = await succeeds('attach', 'bus', '--disk', raw, '--read-only', '--name', 'r', '--json');
  assert.match(stderr, /backends\/r: a raw image/);
  const made = JSON.parse(stdout) as Resource<'attachments'>;
  assert.deepEqual([made.id, made.status.state], ['bus.r', 'active']);
  assert.deepEqual(await specOf('r'), { type: 'blk', path: raw, readOnly: true });
  await succeeds('detach', 'bus.r');
});

test('a format is not guessed where name and content disagree', async () => {
  const misnamed = join(scratch, 'guest-wrote-this.img');
  writeFileSync(misnamed, emptyQcow2(1 << 20));
  await refused(
    64,
    /looks like qcow2 by its content and like raw by its name: say --format/,
    'attach',
    'bus',
    '--disk',
    misnamed,
  );
  const empty = join(scratch, 'x.vmdk');
  await refused(64, /cannot be read.*say --format/, 'attach', 'bus', '--disk', empty);
  writeFileSync(empty, '');
  await refused(64, /looks like raw by its content and like vmdk by its name/, 'attach', 'bus', '--disk', empty);
  await succeeds('attach', 'bus', '--disk', misnamed, '--format', 'raw', '--name', 'plain');
  assert.deepEqual(await specOf('plain'), { type: 'blk', path: misnamed });
});

test('one image is not written by two backends, whatever serves it', async () => {
  const taken = /cannot be used: .*disk\.(img|qcow2): in use by another disk or process/;
  await refused(1, taken, 'attach', 'bus', '--disk', qcow2, '--name', 'second');
  await succeeds('attach', 'bus', '--disk', raw, '--name', 'first');
  await succeeds('backend', 'add', 'other', '--type', 'qemu-storage-daemon', '--path', raw);
  await refused(1, taken, 'attach', 'bus', 'other');
  await succeeds('detach', 'bus.first');
  await succeeds('attach', 'bus', 'other');
  await refused(1, taken, 'attach', 'bus', 'first');
  await succeeds('detach', 'bus.other');
});

test('what cannot be attached leaves no backend behind', async () => {
  const before = await backends();
  const why = /ended with status 1 at its start: fake: no such luck/;
  await refused(1, why, 'attach', 'bus', '--directory', join(scratch, 'my files'));
  await refused(1, why, 'attach', 'bus', '--network', '--forward', '127.0.0.2:8080:80,udp:53');
  await refused(1, why, 'attach', 'bus', '--vsock', '9', '--host-socket', join(scratch, 'v.sock'));
  await refused(1, /missing-reference/, 'attach', 'nowhere', '--disk', qcow2, '--name', 'n');
  assert.deepEqual(await backends(), before);
});

test('the options of the programs reach their backends', async () => {
  const add = (id: string, ...args: string[]) => succeeds('backend', 'add', id, '--type', ...args);
  await add('fs', 'virtiofsd', '--directory', scratch, '--tag', 't', '--read-only', '--sandbox', 'none');
  assert.deepEqual(await specOf('fs'), {
    type: 'virtiofsd',
    directory: scratch,
    tag: 't',
    readOnly: true,
    sandbox: 'none',
  });
  await add('net', 'passt', '--mac', '02:00:00:00:00:01', '--dns', '10.0.0.1,10.0.0.2', '--forward', '8080:80,udp:53');
  assert.deepEqual(await specOf('net'), {
    type: 'passt',
    mac: '02:00:00:00:00:01',
    dns: ['10.0.0.1', '10.0.0.2'],
    ports: [
      { hostPort: 8080, guestPort: 80 },
      { protocol: 'udp', hostPort: 53 },
    ],
  });
  await add('vs', 'vhost-device-vsock', '--guest-cid', '4', '--host-socket', join(scratch, 'v'));
  assert.deepEqual(await specOf('vs'), { type: 'vhost-device-vsock', guestCid: 4, hostSocket: join(scratch, 'v') });
  await add('mine', 'program', '--program', 'mine');
  await refused(1, /names no program "mine"/, 'attach', 'bus', 'mine');
  await refused(
    1,
    /invalid-request/,
    'backend',
    'add',
    'x',
    '--type',
    'vhost-device-vsock',
    '--guest-cid',
    '1',
    '--host-socket',
    '/x',
  );
  await refused(1, /invalid-request/, 'backend', 'add', 'x', '--type', 'program', '--program', '/bin/sh');
});

test('a back-end of somebody else is attached by its socket, whoever of the two listens', async () => {
  const poller = new LoopPoller();
  const messenger = openMessenger();
  const listening = new VhostUserPeer(join(scratch, 'l.sock'), new RamDisk(poller), poller, messenger);
  const calling = new VhostUserPeer(join(scratch, 'c.sock'), new RamDisk(poller), poller, messenger);
  try {
    listening.listen();
    await succeeds('backend', 'add', 'l', '--type', 'vhost-user', '--serves', 'blk', '--socket', listening.path);
    assert.deepEqual(await specOf('l'), { type: 'vhost-user', device: 'blk', socket: listening.path });
    assert.match((await succeeds('attach', 'bus', 'l')).stdout, /attachments\/bus\.l created, device number/);
    assert.match((await succeeds('ls')).stdout, /bus\.l +bus +\d+ +blk +l +active/);

    const options = ['--serves', 'blk', '--mode', 'listen', '--socket', calling.path];
    await succeeds('backend', 'add', 'c', '--type', 'vhost-user', ...options);
    assert.match((await succeeds('attach', 'bus', 'c')).stdout, /created: .*no back-end has connected to it yet/);
    assert.ok(calling.call());
    await eventually(
      async () => ((await service.attachment('bus.c')).status.state === 'active' ? true : undefined),
      'it is attached when its back-end has come',
    );
  } finally {
    listening.leave();
    calling.leave();
    await succeeds('detach', 'bus.l');
    await succeeds('detach', 'bus.c');
    poller.close();
    messenger.close();
  }
});

test('wrong use is one sentence', async () => {
  const shape = /takes a bus, and a backend or one of/;
  await refused(64, shape, 'attach', 'bus');
  await refused(64, shape, 'attach', 'bus', 'r', '--disk', raw);
  await refused(64, shape, 'attach', 'bus', '--network', '--disk', raw);
  await refused(64, /--tag is not for --disk/, 'attach', 'bus', '--disk', raw, '--tag', 't');
  await refused(64, /--format is not for a backend that exists/, 'attach', 'bus', 'r', '--format', 'raw');
  await refused(64, /--host-socket is needed/, 'attach', 'bus', '--vsock', '4');
  await refused(64, /--forward takes/, 'attach', 'bus', '--network', '--forward', 'http');
});
