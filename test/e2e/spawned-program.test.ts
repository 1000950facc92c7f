import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, afterEach, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { membersOf, processRow } from '../../src/bridge/backend/vhost-user/spawn/processes.ts';
import { directoryVariable, writeRecord } from '../../src/bridge/backend/vhost-user/spawn/record.ts';
import { leadersIn } from '../support/programs.ts';
import { eventually, ServiceHome, type ServiceProcess } from '../support/service-process.ts';

const disk = fileURLToPath(new URL('../support/spawned-disk.js', import.meta.url));

const home = new ServiceHome(
  {
    domains: { guest: {} },
    buses: { bus: { domain: 'guest', transport: 'loopback', role: 'driver' } },
    backends: {
      ram: { type: 'program', program: 'ram' },
      once: { type: 'program', program: 'once' },
      broken: { type: 'program', program: 'broken' },
      unknown: { type: 'program', program: 'unknown' },
      image: { type: 'qemu-storage-daemon', path: '/dev/zero', format: 'qcow2' },
    },
    attachments: Object.fromEntries(
      ['ram', 'once', 'broken', 'unknown', 'image'].map((backend) => [backend, { bus: 'bus', backend }]),
    ),
  },
  {
    log: { level: 'error' },
    programs: {
      ram: { command: [process.execPath, disk, '{socket}'], device: 'blk' },
      once: { command: [process.execPath, disk, '{socket}'], device: 'blk', restart: 'never' },
      broken: { command: ['/bin/sh', '-c', 'echo no such luck >&2; exit 4', '{socket}'], device: 'blk' },
      'qemu-storage-daemon': { command: [process.execPath, disk] },
    },
  },
);
let service: ServiceProcess;

afterEach(async () => {
  if (service.alive) await service.kill();
});
after(() => home.remove());

const statusOf = async (id: string) => (await service.attachment(id)).status;
const isActive = (id: string) =>
  eventually(async () => ((await statusOf(id)).state === 'active' ? true : undefined), `${id} is active`);
const leaderOf = (id: string): number | undefined =>
  leadersIn(home.programsPath).find(({ backend }) => backend === id)?.pid;

test('programs of the config file serve devices, and those that cannot say why', async () => {
  service = await home.start();
  for (const id of ['ram', 'once', 'image']) {
    await isActive(id);
    assert.equal((await statusOf(id)).deviceType, 'blk');
  }
  const broken = await statusOf('broken');
  assert.equal(broken.state, 'failed');
  assert.match(broken.reason ?? '', /broken ended with status 4 at its start: no such luck/);
  const unknown = await statusOf('unknown');
  assert.deepEqual([unknown.state, unknown.deviceType], ['failed', 'unknown']);
  assert.match(unknown.reason ?? '', /the config file names no program "unknown"/);
});

test('a program that is killed comes back, unless it is not to be started again', async () => {
  service = await home.start();
  for (const id of ['ram', 'once']) {
    await isActive(id);
    process.kill(leaderOf(id)!, 'SIGKILL');
  }
  const stays = await eventually(async () => {
    const { state, reason } = await statusOf('once');
    return state === 'failed' && reason?.includes('restart: never') ? true : undefined;
  }, 'it stays away');
  assert.ok(stays);
  await isActive('ram');
  assert.equal(leaderOf('once'), undefined);
});

test('no process is left of a service that is killed, also none that was a child', async () => {
  service = await home.start();
  for (const id of ['ram', 'image']) await isActive(id);
  const leaders = [leaderOf('ram')!, leaderOf('image')!];
  // The program, its child and its guard.
  await eventually(
    async () => (leaders.every((leader) => membersOf(leader).length >= 4) ? true : undefined),
    'the children run',
  );
  await service.kill();
  await eventually(async () => (leaders.flatMap(membersOf).length === 0 ? true : undefined), 'all are gone');
});

test('no process is left of a service that ends', async () => {
  service = await home.start();
  for (const id of ['ram', 'image']) await isActive(id);
  const leaders = [leaderOf('ram')!, leaderOf('image')!];
  assert.equal(await service.stop(), 0);
  assert.deepEqual(leaders.flatMap(membersOf), []);
  assert.deepEqual(readdirSync(home.programsPath), []);
});

test('what an earlier service left is gone before a bus listens', async () => {
  const start = join(home.programsPath, 'ram-before');
  mkdirSync(start, { recursive: true });
  const env = { PATH: process.env.PATH ?? '', [directoryVariable]: start };
  const script = 'sleep 1000 & trap "" TERM; sleep 1000';
  const left = spawn('/bin/sh', ['-c', script], { detached: true, stdio: 'ignore', env });
  const pid = left.pid!;
  const exited = once(left, 'exit');
  await eventually(async () => (membersOf(pid).length === 3 ? true : undefined), 'it runs');
  writeRecord(start, { backend: 'ram', program: 'ram', pid, startTime: processRow(pid)!.startTime });
  // What a service that is killed leaves; a new one makes it again.
  writeFileSync(join(start, 's'), '');
  const starting = home.start();
  await eventually(async () => {
    if (!existsSync(home.busPath('bus'))) return undefined;
    assert.deepEqual(membersOf(pid), []);
    return true;
  }, 'the bus listens');
  service = await starting;
  await exited;
  assert.ok(!existsSync(start));
});
