import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { BlkDriver, type BlkOptions, connect } from '../../src/guest/index.ts';
import { feature } from '../../src/virtio/features.ts';
import { SeededRandom } from '../support/random.ts';
import { ServiceHome, type ServiceProcess } from '../support/service-process.ts';
import { contentOf, imageProblem, VersionedLoad } from '../support/versioned-load.ts';

const kills = 50;
const blocks = 256;
/** One bus for each way to notify and each ring layout. */
const drivers = {
  messages: { notify: 'messages' },
  descriptors: { notify: 'descriptors' },
  // No power of two: only packed rings can have so many entries.
  packed: { notify: 'messages', packed: true, size: 97 },
} as const satisfies Record<string, BlkOptions>;
const buses = ['messages', 'descriptors', 'packed'] as const;

const home = new ServiceHome({
  domains: { guests: {} },
  buses: Object.fromEntries(buses.map((bus) => [bus, { domain: 'guests', transport: 'loopback', role: 'driver' }])),
  backends: Object.fromEntries(buses.map((bus) => [bus, { type: 'blk', path: `${bus}.img` }])),
  // No device numbers: they have to be found again by what is left of the last run.
  attachments: Object.fromEntries(buses.map((bus) => [bus, { bus, backend: bus }])),
});
const imageOf = (bus: string): string => join(home.directory, `${bus}.img`);

let service: ServiceProcess;
before(async () => {
  for (const bus of buses) writeFileSync(imageOf(bus), Buffer.alloc(blocks * contentOf(0, 1).length));
  service = await home.start();
});
after(async () => {
  await service.kill();
  home.remove();
});

test(`the service is killed ${kills} times; guests resume, nothing acknowledged is lost or done twice`, async (t) => {
  const guests = await Promise.all(
    buses.map(async (name) => {
      const bus = await connect({ path: home.busPath(name), reconnect: { totalMs: 60_000 } });
      let resumed = 0;
      bus.on('reconnected', (event) => {
        assert.ok(event.resumed, 'the devices kept their state');
        resumed += 1;
      });
      const [number = 0] = await bus.devices();
      const blk = await BlkDriver.open(bus, number, { ...drivers[name], depth: 16 });
      assert.equal(blk.device.features.has(feature.RING_PACKED), name === 'packed');
      const load = new VersionedLoad(blk, blocks);
      const running = load.run(8);
      return { bus, load, running, resumes: () => resumed };
    }),
  );
  const random = new SeededRandom(2026);
  for (let n = 0; n < kills; n++) {
    await sleep(20 + random.below(60));
    const before = guests.map(({ load }) => load.acknowledged);
    await service.kill();
    // Each way to the images goes on with what the other one left.
    home.configure({ disks: { io: n % 2 === 0 ? 'threads' : 'auto' } });
    service = await home.start();
    for (const [i, { load }] of guests.entries()) {
      while (load.acknowledged < before[i]! + 20) await sleep(2);
    }
  }
  for (const { load } of guests) load.stop();
  await Promise.all(guests.map(({ running }) => running));
  for (const [i, { bus, load, resumes }] of guests.entries()) {
    assert.equal(load.acknowledged, load.submitted, 'every request completed once');
    assert.equal(resumes(), kills);
    assert.equal(imageProblem(readFileSync(imageOf(buses[i]!)), load.versions), undefined);
    t.diagnostic(`${buses[i]}: ${load.acknowledged} requests, ${resumes()} resumes`);
    bus.close();
  }
});

test('an orderly restart lets guests resume as well', async () => {
  const bus = await connect({ path: home.busPath('messages'), reconnect: { totalMs: 60_000 } });
  const [number = 0] = await bus.devices();
  const blk = await BlkDriver.open(bus, number);
  const resumed = new Promise<boolean>((resolve) => bus.on('reconnected', (event) => resolve(event.resumed)));
  const data = contentOf(1, 1);
  await blk.write(0, data);
  assert.equal(await service.stop(), 0);
  service = await home.start();
  assert.equal(await resumed, true);
  assert.deepEqual(await blk.read(0, data.length), data);
  bus.close();
});
