import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { membersOf } from '../../src/bridge/backend/vhost-user/spawn/processes.ts';
import { BlkDriver, connect, type GuestBus, VmsgError } from '../../src/guest/index.ts';
import { backendCommands } from '../support/backend-programs.ts';
import { leadersIn } from '../support/programs.ts';
import { SeededRandom } from '../support/random.ts';
import { eventually, ServiceHome, type ServiceProcess } from '../support/service-process.ts';
import { SettlingLoad } from '../support/settling-load.ts';
import { contentOf, imageProblem } from '../support/versioned-load.ts';

const blocks = 64;
const lanes = 4;
/** A device comes back after a second: several are killed at a time. */
const disks = [1, 2, 3, 4, 5];
const killsOfEach = 20;
const bounded = { timeout: 180_000 };
const nameOf = (disk: number): string => `disk-${disk}`;

const home = new ServiceHome(
  {
    domains: { guest: {} },
    buses: { bus: { domain: 'guest', transport: 'loopback', role: 'driver' } },
    backends: Object.fromEntries(
      disks.map((disk) => [nameOf(disk), { type: 'qemu-storage-daemon', path: `${nameOf(disk)}.img` }]),
    ),
    attachments: Object.fromEntries(
      disks.map((disk) => [nameOf(disk), { bus: 'bus', backend: nameOf(disk), deviceNumber: disk }]),
    ),
  },
  { programs: backendCommands() },
);
const fileOf = (disk: number): string => join(home.directory, `${nameOf(disk)}.img`);

let service: ServiceProcess;
const buses: GuestBus[] = [];

before(async () => {
  for (const disk of disks) writeFileSync(fileOf(disk), Buffer.alloc(blocks * contentOf(0, 1).length));
  service = await home.start();
});
afterEach(() => {
  for (const bus of buses.splice(0)) bus.close();
});
after(async () => {
  if (service.alive) await service.kill();
  home.remove();
});

async function openBus(): Promise<GuestBus> {
  const bus = await connect({ path: home.busPath('bus'), reconnect: { totalMs: 60_000 } });
  buses.push(bus);
  return bus;
}

/** A program that was killed may not be seen to be: opens and settles again and again. */
const reopen = (bus: GuestBus, disk: number, load: SettlingLoad): Promise<BlkDriver> =>
  eventually(async () => {
    let blk: BlkDriver | undefined;
    try {
      blk = await BlkDriver.open(bus, disk, { depth: 2 * lanes });
      await load.settle(blk);
      return blk;
    } catch (error) {
      await blk?.close();
      if (!(error instanceof VmsgError)) throw error;
      return undefined;
    }
  }, `disk ${disk} can be used`);

const progress = (load: SettlingLoad, count: number): Promise<true> => {
  const { acknowledged } = load;
  return eventually(async () => (load.acknowledged >= acknowledged + count ? true : undefined), 'I/O goes on');
};

/** Keeps a disk busy through every failure. */
async function keepBusy(bus: GuestBus, disk: number, load: SettlingLoad): Promise<void> {
  for (;;) {
    const blk = await reopen(bus, disk, load);
    const hasFailed = await load.run(blk);
    if (!hasFailed) await blk.flush();
    await blk.close();
    if (!hasFailed) return;
  }
}

function leaderOf(disk: number): number | undefined {
  return leadersIn(home.programsPath).find(({ backend }) => backend === nameOf(disk))?.pid;
}

/** @returns writes that were carried out without being acknowledged */
async function killAgainAndAgain(bus: GuestBus, disk: number): Promise<number> {
  writeFileSync(fileOf(disk), Buffer.alloc(blocks * contentOf(0, 1).length), { flag: 'r+' });
  const load = new SettlingLoad(blocks, lanes, disk);
  const busy = keepBusy(bus, disk, load);
  busy.catch(() => {});
  const random = new SeededRandom(100 + disk);
  for (let n = 0; n < killsOfEach; n++) {
    await Promise.race([busy, progress(load, 20)]);
    await sleep(random.below(40));
    const leader = leaderOf(disk);
    assert.ok(leader !== undefined, 'its program runs');
    process.kill(leader, 'SIGKILL');
    await eventually(async () => (membersOf(leader).length === 0 ? true : undefined), 'it is gone');
  }
  await Promise.race([busy, progress(load, 20)]);
  load.stop();
  await busy;
  assert.equal(imageProblem(readFileSync(fileOf(disk)), load.versions), undefined);
  const { dataPath, recovery } = (await service.attachment(nameOf(disk))).status;
  assert.deepEqual([dataPath, recovery], ['direct', 'reset']);
  return load.late;
}

test(
  `programs that have the guest's memory are killed ${disks.length * killsOfEach} times; nothing is lost`,
  bounded,
  async (t) => {
    const bus = await openBus();
    const late = await Promise.all(disks.map((disk) => killAgainAndAgain(bus, disk)));
    t.diagnostic(`${late.reduce((sum, one) => sum + one, 0)} writes were carried out and not acknowledged`);
  },
);

test('the service is killed during I/O; its programs are gone before the guest is back', bounded, async () => {
  const bus = await openBus();
  const used = disks.slice(0, 2);
  const loads = used.map((disk) => {
    writeFileSync(fileOf(disk), Buffer.alloc(blocks * contentOf(0, 1).length), { flag: 'r+' });
    return new SettlingLoad(blocks, lanes, disk);
  });
  const busy = Promise.all(used.map((disk, i) => keepBusy(bus, disk, loads[i]!)));
  busy.catch(() => {});
  const all = (count: number) => Promise.race([busy, Promise.all(loads.map((load) => progress(load, count)))]);
  for (let n = 0; n < 4; n++) {
    await all(30);
    const leaders = leadersIn(home.programsPath).map(({ pid }) => pid);
    assert.equal(leaders.length, disks.length);
    const back = new Promise<number>((resolve) => {
      bus.on('reconnected', () => resolve(leaders.flatMap(membersOf).length));
    });
    await service.kill();
    service = await home.start();
    assert.equal(await back, 0);
    await all(30);
  }
  for (const load of loads) load.stop();
  await busy;
  for (const [i, disk] of used.entries()) {
    assert.equal(imageProblem(readFileSync(fileOf(disk)), loads[i]!.versions), undefined);
  }
});
