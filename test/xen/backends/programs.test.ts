import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { membersOf } from '../../../src/bridge/backend/vhost-user/spawn/processes.ts';
import { type BackendName, backendProgram } from '../../support/backend-programs.ts';
import type { DevicesLine, DevicesOrder } from '../guests/devices.ts';
import { XenBench } from '../support/bench.ts';
import { activeGrants, grantMappings, listedDomains } from '../support/dom0.ts';
import type { CommandPlace } from '../support/domains.ts';
import { eventually } from '../support/eventually.ts';
import { here } from '../support/here.ts';
import { Hosts, type Kind, kinds } from '../support/hosts.ts';
import { GuestProgram } from '../support/program.ts';
import { fileHash, leaderOf } from '../support/running.ts';

const names: Readonly<Record<Kind, BackendName>> = {
  blk: 'qemu-storage-daemon',
  fs: 'virtiofsd',
  net: 'passt',
  vsock: 'vhost-device-vsock',
};
const programs = new Map(kinds.map((kind) => [kind, backendProgram(names[kind])]));
/** The loader's last argument is the program. */
const fileOf = (kind: Kind): string => programs.get(kind)!.command.at(-1)!;
/** Small, so that Xen's report about grants fits into its buffer. */
const memory = { memory: 'pool', memoryBytes: 2 * 1024 * 1024 } as const;
const goneWithinMs = 10_000;

const bench = new XenBench(
  { here: { transport: 'loopback' }, vm: {} },
  {
    programs: Object.fromEntries(kinds.map((kind) => [names[kind], { command: programs.get(kind)!.command }])),
  },
);
const hosts = new Hosts(bench.home.directory);
const { programsPath } = bench.home;

before(async () => {
  await hosts.open();
  await bench.start();
  for (const [kind, spec] of Object.entries(hosts.specs())) await bench.put('backends', kind, spec);
  await bench.create('vm');
});
after(async () => {
  hosts.close();
  await bench.close();
});

interface Place {
  readonly bus: 'here' | 'vm';
  guest(): CommandPlace;
  readonly order: Omit<DevicesOrder, 'work'>;
}
const places: Readonly<Record<Place['bus'], Place>> = {
  here: { bus: 'here', guest: () => here, order: { ...memory, path: bench.home.busPath('here') } },
  vm: { bus: 'vm', guest: () => bench.domain('vm'), order: memory },
};

type Guest = GuestProgram<DevicesLine>;

async function start({ order, guest }: Place, devices: ReadonlyMap<Kind, number>, again: boolean): Promise<Guest> {
  const work = [...devices].map(([kind, device]) => hosts.work(kind, device));
  return await GuestProgram.start(guest(), 'devices', { ...order, work, again } satisfies DevicesOrder);
}

interface Use {
  readonly hash: string;
  readonly dataPath: string;
  readonly seconds: string;
}

/** A guest uses one device, once. */
async function useOnce(kind: Kind, place: Place): Promise<Use> {
  const { id, status } = await bench.attach(place.bus, kind);
  const began = performance.now();
  const guest = await start(place, new Map([[kind, status.deviceNumber!]]), false);
  try {
    const { result } = await guest.count('done', 1);
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    // In whatever order a directory is read.
    assert.deepEqual(new Set(result), new Set(hosts.expected(kind, 1)));
    if (kind === 'blk') assert.deepEqual(result, [hosts.written], 'dom0 has it in the image');
    const hash = fileHash(leaderOf(programsPath, kind), fileOf(kind));
    const { dataPath, dataPathReason } = (await bench.service.attachment(id)).status;
    return { hash, dataPath: dataPathReason == null ? `${dataPath}` : `${dataPath}: ${dataPathReason}`, seconds };
  } finally {
    await guest.stop();
    await bench.detach(id);
  }
}

/** A kind of device uses the same program file on loopback and for a domU. */
const rows: string[] = [];
for (const kind of kinds) {
  test(`${names[kind]}: the same file serves a process of dom0, and a domU from its pool`, async (t) => {
    const loopback = await useOnce(kind, places.here);
    const pool = await useOnce(kind, places.vm);
    assert.equal(pool.hash, loopback.hash);
    const { version } = programs.get(kind)!;
    const cells = [names[kind], version, pool.hash.slice(0, 16), hosts.words(kind), loopback.dataPath, pool.dataPath];
    rows.push(`| ${cells.join(' | ')} |`);
    t.diagnostic(`${kind}: ${loopback.seconds} s in dom0, ${pool.seconds} s in the domU, start of the guest included`);
    assert.deepEqual([loopback.dataPath, pool.dataPath], ['direct', 'direct']);
  });
}

test('one backend binary', (t) => {
  t.diagnostic('| program | package | SHA-256 of the file | what the guest did | process of dom0 | domU, pool |');
  t.diagnostic('| --- | --- | --- | --- | --- | --- |');
  for (const row of rows) t.diagnostic(row);
  assert.equal(rows.length, kinds.length);
});

test('a guest that grants every buffer by itself gets copies, with the reason', async () => {
  const { id } = await bench.attach('vm', 'blk', { deviceNumber: 1 });
  const place: Place = { ...places.vm, order: { memory: 'grants' } };
  const guest = await start(place, new Map([['blk', 1]]), true);
  const { run, result } = await guest.count('done', 1);
  assert.deepEqual(result, hosts.expected('blk', run));
  const { dataPath, dataPathReason } = (await bench.service.attachment(id)).status;
  assert.deepEqual(
    [dataPath, dataPathReason],
    ['shadow', 'the guest grants its buffers one by one; a program needs a pool'],
  );
  await guest.stop();
  await bench.detach(id);
});

/** All four devices of the domU. */
async function attachAll(): Promise<Map<Kind, number>> {
  const devices = new Map<Kind, number>();
  for (const [i, kind] of kinds.entries()) {
    // One that comes back without a number of its own gets another one.
    await bench.attach('vm', kind, { deviceNumber: i + 1 });
    devices.set(kind, i + 1);
  }
  return devices;
}

const doneBy = (guest: Guest, kind: Kind) => guest.next('done', (line) => line.kind === kind);
let devices: ReadonlyMap<Kind, number>;
let busy: Guest;

test('each program is killed while the domU uses all four devices: its device comes back, the others go on', async () => {
  devices = await attachAll();
  busy = await start(places.vm, devices, true);
  await Promise.all(kinds.map((kind) => doneBy(busy, kind)));
  for (const kind of kinds) {
    const killed = leaderOf(programsPath, kind);
    const left = busy.next('left', (line) => line.kind === kind);
    process.kill(killed, 'SIGKILL');
    assert.equal((await left).code, 'not-found');
    const done = await doneBy(busy, kind);
    assert.deepEqual(new Set(done.result), new Set(hosts.expected(kind, done.run)));
    assert.notEqual(leaderOf(programsPath, kind), killed);
    assert.deepEqual(membersOf(killed), []);
    await Promise.all(kinds.filter((other) => other !== kind).map((other) => doneBy(busy, other)));
  }
  assert.deepEqual(
    busy.all('left').map(({ kind }) => kind),
    kinds,
    'no other device has left',
  );
});

test('the domU is destroyed while programs have its memory: nothing of it is left, and the service goes on', async (t) => {
  const { domid } = bench.domain('vm');
  const leaders = kinds.map((kind) => leaderOf(programsPath, kind));
  const mapped = (leader: number): number =>
    membersOf(leader).reduce((count, { pid }) => count + grantMappings(pid).length, 0);
  for (const [i, leader] of leaders.entries()) assert.notEqual(mapped(leader), 0, `${kinds[i]} has the domU's memory`);
  assert.notEqual((await activeGrants()).get(domid)?.length ?? 0, 0);

  const began = performance.now();
  await bench.destroy('vm');
  await eventually(async () => ((await listedDomains()).includes(domid) ? undefined : true), 'the domU is gone');
  const tookMs = performance.now() - began;
  t.diagnostic(`gone from xl list after ${(tookMs / 1000).toFixed(1)} s`);
  assert.ok(tookMs <= goneWithinMs, `${tookMs} ms`);
  assert.equal((await activeGrants()).get(domid), undefined);
  assert.deepEqual(leaders.flatMap(membersOf), [], 'the programs that had its memory have ended');
  assert.deepEqual(grantMappings(bench.service.pid), []);
  for (const kind of kinds) await bench.detach(`vm-${kind}`);
  await useOnce('blk', places.here);
});
