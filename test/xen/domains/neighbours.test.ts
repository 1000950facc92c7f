import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { imageProblem } from '../../support/versioned-load.ts';
import type { LoadLine, LoadOrder } from '../guests/load.ts';
import type { VisitorLine, VisitorOrder } from '../guests/visitor.ts';
import { XenBench } from '../support/bench.ts';
import { activeGrants, grantMappings, listedDomains, storeNodes } from '../support/dom0.ts';
import { eventually } from '../support/eventually.ts';
import { GuestProgram } from '../support/program.ts';

const blocks = 64;
const imageBytes = blocks * 4096;
/** Disks that come and go. */
const rounds = 2;
/** Requests are in flight nearly all the time, and the other domUs get their share of the processor. */
const restMs = 5;
const goneWithinMs = 5000;
const pauseMs = 60_000;
/** Small, so that Xen's report about grants fits into its buffer. */
const memoryBytes = 1024 * 1024;
/** What domUs that stay have mapped does not change while they work: their memory is granted once. */
const memories = { paused: 'pool', other: 'pool', pool: 'pool', grants: 'grants' } as const;
type Name = keyof typeof memories;
const names = Object.keys(memories) as Name[];
const three = ['other', 'pool', 'grants'] as const;

const bench = new XenBench({ paused: {}, other: {}, pool: {}, grants: {} });
const images = new Map(names.map((name) => [name, bench.image(`${name}.img`, imageBytes)]));
const loads = new Map<Name, GuestProgram<LoadLine>>();
let pausedAtMs = 0;
/** What was known and mapped of it then. */
let whenPaused: { known: object; mappings: string[] };

/** Requests of a domU complete. */
async function goesOn(name: Name): Promise<void> {
  const load = loads.get(name)!;
  const { acknowledged } = await load.next('progress');
  await load.next('progress', (line) => line.acknowledged >= acknowledged + 20);
}

async function startLoad(name: Name): Promise<void> {
  const order: LoadOrder = {
    memory: memories[name],
    memoryBytes,
    persistent: true,
    blocks,
    lanes: 8,
    pauseMs: restMs,
    disk: 0,
  };
  loads.set(name, await GuestProgram.start(bench.domain(name), 'load', order));
  await goesOn(name);
}

/** What the service and xenstore know of a domU. */
async function knownOf(name: Name): Promise<object> {
  const { state, epoch, regions, regionBytes } = (await bench.service.bus(name)).status;
  return { state, epoch, regions, regionBytes, nodes: await storeNodes(bench.domain(name).domid) };
}

before(async () => {
  await bench.start();
  await bench.put('backends', 'rng', { type: 'rng' });
  for (const name of names) {
    await bench.put('backends', name, { type: 'blk', path: images.get(name) });
    await bench.put('backends', `${name}-extra`, { type: 'blk', path: bench.image(`${name}-extra.img`, imageBytes) });
    // Before the domain is there: it finds its devices from its first moment.
    await bench.put('attachments', `${name}-disk`, { bus: name, backend: name, deviceNumber: 0 });
    await bench.put('attachments', `${name}-rng`, { bus: name, backend: 'rng', deviceNumber: 1 });
  }
  await bench.create('paused');
  await startLoad('paused');
  // The other tests take place while it rests.
  await bench.domain('paused').pause();
  pausedAtMs = performance.now();
  whenPaused = { known: await knownOf('paused'), mappings: grantMappings(bench.service.pid) };
  assert.ok(whenPaused.mappings.length > 0, 'it is the only one that has shared anything');
  await bench.create(...three);
});
after(() => bench.close());

type Visitor = GuestProgram<VisitorLine>;

/** The disk that comes is used, and the disk and the rng device that stay are used on and on. */
async function comeAndGo(name: Name, visitor: Visitor): Promise<string> {
  const used = visitor.next('used');
  const attachment = await bench.attach(name, `${name}-extra`);
  const { device } = await used;
  assert.equal(device, attachment.status.deviceNumber);
  const gone = visitor.next('gone');
  await bench.detach(attachment.id);
  const { code, devices, ...left } = await gone;
  assert.deepEqual([left.device, devices], [device, [0, 1]]);
  const before = await visitor.next('progress');
  await visitor.next('progress', ({ requests, random }) => requests >= before.requests + 20 && random > before.random);
  return code;
}

test('three domUs use a disk and an rng device each while other disks come and go', async (t) => {
  const visitors = new Map<Name, Visitor>();
  for (const name of three) {
    const order: VisitorOrder = { memory: memories[name], memoryBytes: 4 * 1024 * 1024, disk: 0, rng: 1 };
    visitors.set(name, await GuestProgram.start(bench.domain(name), 'visitor', order));
  }
  await Promise.all([...visitors.values()].map((visitor) => visitor.count('begun', 1)));
  for (let round = 0; round < rounds; round++) {
    const codes = await Promise.all([...visitors].map(([name, visitor]) => comeAndGo(name, visitor)));
    assert.deepEqual(codes, ['not-found', 'not-found', 'not-found']);
  }
  for (const [name, visitor] of visitors) {
    const end = await visitor.end('end');
    assert.equal(end.acknowledged, end.submitted);
    assert.equal(imageProblem(readFileSync(images.get(name)!), end.versions), undefined);
    t.diagnostic(`${name}: ${end.acknowledged} requests`);
    // The next program begins with an empty disk.
    writeFileSync(images.get(name)!, Buffer.alloc(imageBytes), { flag: 'r+' });
  }
  await startLoad('other');
});

for (const name of ['pool', 'grants'] as const) {
  test(`a domU that is destroyed during I/O leaves nothing behind: ${memories[name]}`, async (t) => {
    const { domid } = bench.domain(name);
    const mappings = grantMappings(bench.service.pid);
    await startLoad(name);
    assert.ok(grantMappings(bench.service.pid).length > mappings.length, 'the service has mapped something of it');
    assert.notEqual((await activeGrants()).get(domid)?.length ?? 0, 0);
    assert.notEqual((await storeNodes(domid)).length, 0);

    const began = performance.now();
    await bench.destroy(name);
    await eventually(async () => ((await listedDomains()).includes(domid) ? undefined : true), `${name} is gone`);
    const tookMs = performance.now() - began;
    t.diagnostic(`gone from xl list after ${(tookMs / 1000).toFixed(1)} s`);
    assert.ok(tookMs <= goneWithinMs, `${tookMs} ms`);
    assert.equal((await activeGrants()).get(domid), undefined);
    assert.deepEqual(grantMappings(bench.service.pid), mappings);
    const nodes = async () => ((await storeNodes(domid)).length === 0 ? true : undefined);
    await eventually(nodes, `nothing of ${name} is in xenstore`);
    const { status } = await bench.service.bus(name);
    assert.deepEqual([status.state, status.regions], ['pending', 0]);
    await goesOn('other');
  });
}

test('a domU that is paused for 60 s loses nothing and goes on', async () => {
  await sleep(Math.max(0, pausedAtMs + pauseMs - performance.now()));
  assert.deepEqual(await knownOf('paused'), whenPaused.known);
  const mappings = grantMappings(bench.service.pid);
  assert.deepEqual(
    whenPaused.mappings.filter((line) => !mappings.includes(line)),
    [],
  );
  await bench.domain('paused').unpause();
  await goesOn('paused');
  for (const name of ['paused', 'other'] as const) {
    const end = await loads.get(name)!.end('end');
    assert.equal(end.acknowledged, end.submitted);
  }
});
