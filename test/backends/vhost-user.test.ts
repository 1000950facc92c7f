import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlkDriver, connect, type GuestBus, VmsgError } from '../../src/guest/index.ts';
import { BackendProcess } from '../support/backend-process.ts';
import { backendProgram, storageDaemonArguments } from '../support/backend-programs.ts';
import { SeededRandom } from '../support/random.ts';
import { eventually, ServiceHome, type ServiceProcess } from '../support/service-process.ts';
import { contentOf, imageProblem, VersionedLoad } from '../support/versioned-load.ts';

const blocks = 256;
const lanes = 8;
const kills = 100;

const home = new ServiceHome({
  domains: { guest: {} },
  buses: { bus: { domain: 'guest', transport: 'loopback', role: 'driver' } },
  backends: { disk: { type: 'vhost-user', device: 'blk', socket: 'disk.sock' } },
  attachments: { disk: { bus: 'bus', backend: 'disk', deviceNumber: 3 } },
});
const socket = join(home.directory, 'disk.sock');
const file = join(home.directory, 'disk.img');

let service: ServiceProcess;
let daemon: BackendProcess;
const buses: GuestBus[] = [];

const startDaemon = async (): Promise<void> => {
  const args = storageDaemonArguments({ socket, file, queues: 2, writable: true });
  daemon = await BackendProcess.start(backendProgram('qemu-storage-daemon'), args, socket);
};

const statusOf = async () => (await service.attachment('disk')).status;

before(async () => {
  writeFileSync(file, Buffer.alloc(blocks * contentOf(0, 1).length));
  service = await home.start();
});
afterEach(() => {
  for (const bus of buses.splice(0)) bus.close();
});
after(async () => {
  await daemon?.kill();
  await service.kill();
  home.remove();
});

async function openDisk(): Promise<{ bus: GuestBus; blk: BlkDriver }> {
  const bus = await connect({ path: home.busPath('bus'), reconnect: { totalMs: 60_000 } });
  buses.push(bus);
  return { bus, blk: await BlkDriver.open(bus, 3, { depth: 2 * lanes }) };
}

test('an attachment waits for a back-end that is not there yet, and says so', async () => {
  const { state, reason, deviceType, dataPath } = await statusOf();
  assert.deepEqual([state, deviceType, dataPath], ['failed', 'blk', 'shadow']);
  assert.match(reason ?? '', /disk\.sock: there is no such socket/);
  await startDaemon();
  const active = await eventually(async () => {
    const status = await statusOf();
    return status.state === 'active' ? status : undefined;
  }, 'the disk is there');
  assert.deepEqual([active.recovery, active.dataPath], ['resume', 'shadow']);
  assert.match(active.dataPathReason ?? '', /copies/);
});

test('a guest uses a disk of qemu-storage-daemon', async () => {
  const { blk } = await openDisk();
  const data = Uint8Array.from({ length: 300 * 1024 }, (_, i) => (i * 13 + (i >> 10)) & 0xff);
  await blk.write(8, data);
  await blk.flush();
  assert.deepEqual(new Uint8Array(readFileSync(file).subarray(4096, 4096 + data.length)), data);
  assert.deepEqual(await blk.read(8, data.length), data);
  await assert.rejects(blk.read(blocks * 8, 512), (error) => error instanceof VmsgError);
});

test(`the back-end is killed ${kills} times; nothing acknowledged is lost`, async (t) => {
  writeFileSync(file, Buffer.alloc(blocks * contentOf(0, 1).length), { flag: 'r+' });
  const { blk } = await openDisk();
  const load = new VersionedLoad(blk, blocks);
  const running = load.run(lanes);
  running.catch(() => {});
  const random = new SeededRandom(7);
  for (let n = 0; n < kills; n++) {
    await sleep(random.below(60));
    await daemon.kill();
    const away = await eventually(async () => {
      const status = await statusOf();
      return status.state === 'degraded' ? status : undefined;
    }, 'it is seen');
    assert.match(away.reason ?? '', /the back-end at .* is away: /);
    const { acknowledged } = load;
    await startDaemon();
    await Promise.race([
      running,
      eventually(async () => (load.acknowledged >= acknowledged + 20 ? true : undefined), 'I/O goes on'),
    ]);
    await eventually(async () => ((await statusOf()).state === 'active' ? true : undefined), 'it is back');
  }
  load.stop();
  await running;
  assert.equal(load.acknowledged, load.submitted);
  assert.equal(imageProblem(readFileSync(file), load.versions), undefined);
  t.diagnostic(`${load.acknowledged} requests, ${kills} kills of the back-end`);
});

test('the service is killed during I/O; the guest resumes with the back-end that stayed', async () => {
  writeFileSync(file, Buffer.alloc(blocks * contentOf(0, 1).length), { flag: 'r+' });
  const { bus, blk } = await openDisk();
  const resumed: boolean[] = [];
  bus.on('reconnected', (event) => resumed.push(event.resumed));
  const load = new VersionedLoad(blk, blocks);
  const running = load.run(lanes);
  running.catch(() => {});
  for (let n = 1; n <= 3; n++) {
    await sleep(50);
    await service.kill();
    const { acknowledged } = load;
    service = await home.start();
    await Promise.race([
      running,
      eventually(async () => (load.acknowledged >= acknowledged + 20 ? true : undefined), 'I/O goes on'),
    ]);
    assert.deepEqual(resumed, new Array(n).fill(true));
  }
  load.stop();
  await running;
  assert.equal(imageProblem(readFileSync(file), load.versions), undefined);
});
