import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { BlkDriver, connect, type GuestBus } from '../../src/guest/index.ts';
import { eventually, mainProgram, ServiceHome, type ServiceProcess } from '../support/service-process.ts';

const imageBytes = 2 * 1024 * 1024;
const home = new ServiceHome({
  domains: { user: {}, server: {} },
  buses: {
    drv: { domain: 'user', transport: 'loopback', role: 'driver' },
    dev: { domain: 'server', transport: 'loopback', role: 'device' },
  },
  backends: { served: { type: 'guest', bus: 'dev', deviceNumber: 0 } },
  attachments: { disk: { bus: 'drv', backend: 'served' } },
});
const image = join(home.directory, 'served.img');

let service: ServiceProcess;
let server: ChildProcess;

async function startServer(): Promise<void> {
  const args = ['guest', 'serve', '--bus', home.busPath('dev'), '--disk-image', image, '--reconnect', '60'];
  server = spawn(process.execPath, [mainProgram, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [line] = await once(server.stdout!, 'data');
  assert.equal(String(line), 'serving device 0\n');
}

const state = (wanted: string): Promise<string> =>
  eventually(async () => {
    const { status } = await service.attachment('disk');
    return status.state === wanted ? status.state : undefined;
  }, `the attachment is ${wanted}`);

async function firstDevice(bus: GuestBus): Promise<number> {
  return await eventually(async () => (await bus.devices().catch(() => []))[0], 'the guest has a device');
}

before(async () => {
  writeFileSync(image, randomBytes(imageBytes));
  service = await home.start();
});
after(async () => {
  server.kill('SIGKILL');
  await service.kill();
  home.remove();
});

test('a device of the config file waits for its serving guest, works, and survives crashes of everyone', async () => {
  // Nobody serves it yet.
  await state('failed');
  await startServer();
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
  await startServer();
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
