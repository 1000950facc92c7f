import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { BlkDriver, connect, type GuestBus } from '../../src/guest/index.ts';
import { SeededRandom } from '../support/random.ts';
import { eventually, ServiceHome, type ServiceProcess } from '../support/service-process.ts';

const killsPerBus = 100;
const victims = ['victim-a', 'victim-b'] as const;
const loadProgram = fileURLToPath(new URL('../support/load-guest.js', import.meta.url));

const disk = (name: string) => ({ type: 'blk', path: `${name}.img` });
const home = new ServiceHome({
  domains: { guests: {} },
  buses: Object.fromEntries(
    [...victims, 'steady'].map((bus) => [bus, { domain: 'guests', transport: 'loopback', role: 'driver' }]),
  ),
  backends: {
    ...Object.fromEntries([...victims, 'steady'].map((bus) => [bus, disk(bus)])),
    rng: { type: 'rng' },
  },
  attachments: {
    ...Object.fromEntries([...victims, 'steady'].map((bus) => [`${bus}.disk`, { bus, backend: bus, deviceNumber: 0 }])),
    ...Object.fromEntries(victims.map((bus) => [`${bus}.rng`, { bus, backend: 'rng', deviceNumber: 1 }])),
  },
});

let service: ServiceProcess;
before(async () => {
  for (const name of [...victims, 'steady']) {
    writeFileSync(join(home.directory, `${name}.img`), Buffer.alloc(8 * 1024 * 1024));
  }
  service = await home.start();
});
after(async () => {
  await service.kill();
  home.remove();
});

/** Starts a guest, waits until it does I/O, kills it after a random moment. */
async function killOne(bus: string, random: SeededRandom): Promise<void> {
  const child = spawn(process.execPath, [loadProgram, home.busPath(bus), String(random.u32())], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const exited = once(child, 'exit');
  const [first] = await Promise.race([once(child.stdout, 'data'), exited.then(() => ['exited early'])]);
  assert.equal(String(first), 'begun\n');
  await sleep(random.below(20));
  child.kill('SIGKILL');
  await exited;
}

/** A guest of its own bus that writes and checks for as long as it is told to. */
async function steadyGuest(bus: GuestBus, going: () => boolean): Promise<number> {
  const blk = await BlkDriver.open(bus, 0);
  let rounds = 0;
  for (; going(); rounds++) {
    const data = new Uint8Array(4096).fill(rounds);
    await blk.write((rounds % 1000) * 8, data);
    assert.deepEqual(await blk.read((rounds % 1000) * 8, 4096), data);
    await bus.ping();
  }
  return rounds;
}

test(`${killsPerBus * victims.length} guests killed during I/O leave nothing behind and disturb nobody`, async (t) => {
  const steadyBus = await connect({ path: home.busPath('steady') });
  let going = true;
  const steady = steadyGuest(steadyBus, () => going);
  // The first guest makes the service load what it loads once.
  for (const bus of victims) await killOne(bus, new SeededRandom(99));
  const settled = (bus: string) =>
    eventually(async () => {
      const { status } = await service.bus(bus);
      const quiet = status.state === 'listening' && status.regions === 0 && status.regionsDraining === 0;
      return quiet ? status : undefined;
    }, `${bus} is empty again`);
  for (const bus of victims) await settled(bus);
  const baseline = service.holdings();
  await Promise.all(
    victims.map(async (bus, i) => {
      const random = new SeededRandom(4711 + i);
      for (let n = 0; n < killsPerBus; n++) await killOne(bus, random);
    }),
  );
  for (const bus of victims) {
    const status = await settled(bus);
    assert.equal(status.epoch, `0x${(killsPerBus + 1).toString(16)}`, 'every guest was really connected');
    assert.equal(status.regionBytes, 0);
  }
  going = false;
  const rounds = await steady;
  assert.ok(rounds > 100, `the steady guest went on: ${rounds} rounds`);
  const left = await eventually(
    async () => {
      const now = service.holdings();
      return now.fds <= baseline.fds && now.memfdMappings <= baseline.memfdMappings ? now : undefined;
    },
    `descriptors and mappings return to ${JSON.stringify(baseline)}`,
    500,
  );
  t.diagnostic(`before ${JSON.stringify(baseline)}, after ${JSON.stringify(left)}, steady rounds ${rounds}`);
  assert.ok(service.alive);
  steadyBus.close();
  for (const bus of [...victims, 'steady']) assert.equal((await settled(bus)).peer, null);
  const empty = await eventually(
    async () => {
      const now = service.holdings();
      return now.memfdMappings === 0 ? now : undefined;
    },
    'no mapping of a guest is left',
    500,
  );
  assert.equal(empty.memfdMappings, 0);
});
