import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { membersOf } from '../../src/bridge/backend/vhost-user/spawn/processes.ts';
import { BlkDriver, connect, type GuestBus } from '../../src/guest/index.ts';
import { backendCommands } from '../support/backend-programs.ts';
import { leadersIn } from '../support/programs.ts';
import { emptyQcow2 } from '../support/qcow2.ts';
import { runVmsg } from '../support/run-command.ts';
import { eventually, ServiceHome, type ServiceProcess } from '../support/service-process.ts';

const home = new ServiceHome(
  {
    domains: { guest: {} },
    buses: { bus: { domain: 'guest', transport: 'loopback', role: 'driver' } },
    backends: {
      // With copies the driver does not see that its program was killed.
      disk: { type: 'qemu-storage-daemon', path: 'disk,1.img', queues: 2, dataPath: 'shadow' },
      share: { type: 'virtiofsd', directory: 'shared', tag: 'shared' },
      net: {
        type: 'passt',
        address: '10.219.0.2',
        prefixLength: 24,
        gateway: '10.219.0.1',
        dns: [],
        ipv4Only: true,
      },
      vsock: { type: 'vhost-device-vsock', guestCid: 3, hostSocket: 'host.sock' },
    },
    attachments: {
      disk: { bus: 'bus', backend: 'disk', deviceNumber: 1 },
      share: { bus: 'bus', backend: 'share', deviceNumber: 2 },
      net: { bus: 'bus', backend: 'net', deviceNumber: 3 },
      vsock: { bus: 'bus', backend: 'vsock', deviceNumber: 4 },
    },
  },
  { programs: backendCommands() },
);
const file = join(home.directory, 'disk,1.img');
const attachments = ['disk', 'share', 'net', 'vsock'] as const;

let service: ServiceProcess;
const buses: GuestBus[] = [];

before(async () => {
  writeFileSync(file, Buffer.alloc(1 << 20));
  mkdirSync(join(home.directory, 'shared'));
  service = await home.start();
});
afterEach(() => {
  for (const bus of buses.splice(0)) bus.close();
});
after(async () => {
  if (service.alive) await service.kill();
  home.remove();
});

const isActive = (id: string) =>
  eventually(
    async () => {
      const { status } = await service.attachment(id);
      return status.state === 'active' ? status : undefined;
    },
    `${id} is active`,
    1500,
  );

/** The first process of the program of a backend. */
const leaderOf = (backend: string): number => leadersIn(home.programsPath).find((one) => one.backend === backend)!.pid;

async function openDisk(): Promise<BlkDriver> {
  const bus = await connect({ path: home.busPath('bus'), reconnect: { totalMs: 60_000 } });
  buses.push(bus);
  return await BlkDriver.open(bus, 1, {});
}

const pattern = (seed: number): Uint8Array => Uint8Array.from({ length: 64 * 1024 }, (_, i) => (i * seed) & 0xff);

test('each of the four is started and serves its device', async () => {
  const types = await Promise.all(attachments.map(async (id) => (await isActive(id)).deviceType));
  assert.deepEqual(types, ['blk', 'fs', 'net', 'vsock']);
});

test('a disk holds what a guest writes, also when its program is killed in between', async () => {
  const blk = await openDisk();
  await blk.write(8, pattern(3));
  await blk.flush();
  assert.deepEqual(new Uint8Array(readFileSync(file).subarray(4096, 4096 + 65536)), pattern(3));
  const killed = leaderOf('disk');
  process.kill(killed, 'SIGKILL');
  await blk.write(256, pattern(5));
  assert.deepEqual(await blk.read(8, 65536), pattern(3));
  assert.deepEqual(await blk.read(256, 65536), pattern(5));
  assert.notEqual(leaderOf('disk'), killed);
});

test('each of the four comes back when it is killed', async () => {
  for (const id of attachments) {
    await isActive(id);
    const killed = leaderOf(id);
    process.kill(killed, 'SIGKILL');
    await eventually(async () => (membersOf(killed).length === 0 ? true : undefined), `${id} is gone`);
    await eventually(async () => {
      const { state } = (await service.attachment(id)).status;
      return state === 'active' &&
        leadersIn(home.programsPath).some(({ backend, pid }) => backend === id && pid !== killed)
        ? true
        : undefined;
    }, `${id} is back`);
    assert.notEqual(leaderOf(id), killed);
  }
});

test('one command attaches each of the four, and what was made goes again', async () => {
  const vmsg = async (...args: string[]): Promise<string> => {
    const { code, stdout, stderr } = await runVmsg(args, { VMSG_API: home.apiSocket });
    assert.equal(code, 0, stderr);
    return stdout;
  };
  await vmsg('domain', 'add', 'other');
  await vmsg('bus', 'add', 'other', '--domain', 'other');
  const image = join(home.directory, 'image.qcow2');
  writeFileSync(image, emptyQcow2(1 << 20));
  const commands = [
    ['--disk', image],
    ['--directory', join(home.directory, 'shared')],
    ['--network'],
    ['--vsock', '5', '--host-socket', join(home.directory, 'other.sock')],
  ];
  for (const [n, options] of commands.entries()) {
    const said = await vmsg('attach', 'other', ...options);
    assert.match(said, new RegExp(`^attachments/other\\.\\w+ created, device number ${n}\n$`));
  }
  const listing = await vmsg('attachment', 'ls');
  for (const [kind, type] of Object.entries({ disk: 'blk', directory: 'fs', network: 'net', vsock: 'vsock' })) {
    assert.match(listing, new RegExp(`other\\.${kind} +other +\\d +${type} +other\\.${kind} +active`));
    await vmsg('detach', `other.${kind}`);
    await vmsg('backend', 'rm', `other.${kind}`);
  }
  await eventually(
    async () => (leadersIn(home.programsPath).length === attachments.length ? true : undefined),
    'their programs have ended',
  );
});

test('nothing is left when the service is killed, and everything is there again after its next start', async () => {
  const before = leadersIn(home.programsPath).map(({ pid }) => pid);
  assert.equal(before.length, attachments.length);
  await service.kill();
  const left = () => before.flatMap(membersOf);
  await eventually(async () => (left().length === 0 ? true : undefined), 'all have ended');
  service = await home.start();
  for (const id of attachments) await isActive(id);
});

test('nothing is left when the service ends', async () => {
  const before = leadersIn(home.programsPath).map(({ pid }) => pid);
  assert.equal(before.length, attachments.length);
  assert.equal(await service.stop(), 0);
  assert.deepEqual(before.flatMap(membersOf), []);
  assert.deepEqual(readdirSync(home.programsPath), []);
});
