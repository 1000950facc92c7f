import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlkDriver, connect, type GuestBus } from '../../src/guest/index.ts';
import { eventually, mainProgram, ServiceHome, type ServiceProcess } from '../support/service-process.ts';
import { contentOf, imageProblem, VersionedLoad } from '../support/versioned-load.ts';

const imageBytes = 2 * 1024 * 1024;
const blocks = 128;
const kills = 8;
const buses = { drv: 'driver', dev: 'device', drv2: 'driver', dev2: 'device' } as const;
const home = new ServiceHome({
  domains: { guests: {} },
  buses: Object.fromEntries(
    Object.entries(buses).map(([bus, role]) => [bus, { domain: 'guests', transport: 'loopback', role }]),
  ),
  backends: {
    served: { type: 'guest', bus: 'dev', deviceNumber: 0 },
    copied: { type: 'guest', bus: 'dev2', deviceNumber: 0, dataPath: 'shadow' },
  },
  attachments: { disk: { bus: 'drv', backend: 'served' }, shadow: { bus: 'drv2', backend: 'copied' } },
});
const image = join(home.directory, 'served.img');
const shadowImage = join(home.directory, 'shadow.img');

let service: ServiceProcess;
let server: ChildProcess;
let shadowServer: ChildProcess;

async function startServer(bus = 'dev', file = image): Promise<ChildProcess> {
  const args = ['guest', 'serve', '--bus', home.busPath(bus), '--disk-image', file, '--reconnect', '60'];
  const child = spawn(process.execPath, [mainProgram, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [line] = await once(child.stdout, 'data');
  assert.equal(String(line), 'serving device 0\n');
  return child;
}

const state = (wanted: string, attachment = 'disk'): Promise<string> =>
  eventually(async () => {
    const { status } = await service.attachment(attachment);
    return status.state === wanted ? status.state : undefined;
  }, `the attachment is ${wanted}`);

async function firstDevice(bus: GuestBus): Promise<number> {
  return await eventually(async () => (await bus.devices().catch(() => []))[0], 'the guest has a device');
}

before(async () => {
  writeFileSync(image, randomBytes(imageBytes));
  writeFileSync(shadowImage, Buffer.alloc(blocks * contentOf(0, 1).length));
  service = await home.start();
});
after(async () => {
  server?.kill('SIGKILL');
  shadowServer?.kill('SIGKILL');
  await service.kill();
  home.remove();
});

test('a device of the config file waits for its serving guest, works, and survives crashes of everyone', async () => {
  // Nobody serves it yet.
  await state('failed');
  server = await startServer();
  await state('active');
  const bus = await connect({ path: home.busPath('drv'), reconnect: { totalMs: 60_000 } });
  const use = async (): Promise<void> => {
    const blk = await BlkDriver.open(bus, await firstDevice(bus));
    assert.deepEqual(Buffer.from(await blk.read(0, imageBytes)), readFileSync(image));
    const data = randomBytes(64 * 1024);
    await blk.write(16, data);
    await blk.flush();
    assert.deepEqual(readFileSync(image).subarray(8192, 8192 + data.length), data);
    await blk.close();
  };
  await use();

  // The serving guest dies in the middle of its work: the device goes, and comes back with the guest.
  const gone = new Promise<void>((resolve) => bus.on('removed', () => resolve()));
  server.kill('SIGKILL');
  await gone;
  await state('failed');
  server = await startServer();
  await state('active');
  await use();

  // The service dies: both guests connect again, and the device is there again.
  await service.kill();
  service = await home.start();
  await state('active');
  await eventually(async () => (bus.state === 'connected' ? true : undefined), 'the driver is back');
  await use();
  const status = (await service.attachment('disk')).status;
  assert.equal(status.recovery, 'reset');
  assert.equal(status.dataPath, 'relayed');
  assert.equal(status.requests, null, 'the bridge does not see them');
  bus.close();
});

test(`a device on the shadow path goes on after ${kills} kills of the service: nothing is lost or done twice`, async (t) => {
  shadowServer = await startServer('dev2', shadowImage);
  await state('active', 'shadow');
  const bus = await connect({ path: home.busPath('drv2'), reconnect: { totalMs: 60_000 } });
  let resumed = 0;
  bus.on('reconnected', (event) => {
    assert.ok(event.resumed, 'the device kept its state');
    resumed += 1;
  });
  const blk = await BlkDriver.open(bus, await firstDevice(bus), { depth: 16 });
  const load = new VersionedLoad(blk, blocks);
  const running = load.run(8);
  const enough = async (before: number): Promise<void> => {
    while (load.acknowledged < before + 20) await sleep(2);
  };
  await enough(0);
  for (let n = 0; n < kills; n++) {
    await sleep(10 + ((n * 37) % 50));
    if (n % 4 === 3) assert.equal(await service.stop(), 0);
    else await service.kill();
    const before = load.acknowledged;
    service = await home.start();
    await enough(before);
  }
  const { status } = await service.attachment('shadow');
  assert.deepEqual([status.recovery, status.dataPath], ['resume', 'shadow']);
  assert.ok((status.requests ?? 0) > 0, 'the bridge counts them');
  load.stop();
  await running;
  assert.equal(load.acknowledged, load.submitted, 'every request completed once');
  assert.equal(resumed, kills);
  assert.equal(imageProblem(readFileSync(shadowImage), load.versions), undefined);
  t.diagnostic(`${load.acknowledged} requests, ${resumed} resumes`);

  // The serving guest dies in the middle of its work: as on any path, the device goes, and comes back with the guest.
  const removed = new Promise<void>((resolve) => bus.on('removed', () => resolve()));
  const lost = blk.read(0, 512).then(
    () => undefined,
    (error: Error) => error,
  );
  shadowServer.kill('SIGKILL');
  await removed;
  await lost;
  await state('failed', 'shadow');
  shadowServer = await startServer('dev2', shadowImage);
  await state('active', 'shadow');
  const again = await BlkDriver.open(bus, await firstDevice(bus));
  assert.deepEqual(Buffer.from(await again.read(0, 4096)), readFileSync(shadowImage).subarray(0, 4096));
  await again.close();
  bus.close();
});
