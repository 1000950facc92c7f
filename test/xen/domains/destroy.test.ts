import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { LoadLine, LoadOrder } from '../guests/load.ts';
import { XenBench } from '../support/bench.ts';
import { activeGrants, grantMappings, listedDomains, storeNodes } from '../support/dom0.ts';
import { eventually } from '../support/eventually.ts';
import { GuestProgram } from '../support/program.ts';

const blocks = 64;
/** Requests are in flight nearly all the time, and the other domUs get their share of the processor. */
const restMs = 5;
const goneWithinMs = 5000;
const pauseMs = 60_000;
/** Small, so that Xen's report about grants fits into its buffer. */
const memoryBytes = 1024 * 1024;
/** What domUs that stay have mapped does not change while they work: their memory is granted once. */
const memories = { paused: 'pool', other: 'pool', pool: 'pool', grants: 'grants' } as const;
type Name = keyof typeof memories;

const bench = new XenBench({ paused: {}, other: {}, pool: {}, grants: {} });
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
  for (const name of ['paused', 'other', 'pool', 'grants']) {
    await bench.put('backends', name, { type: 'blk', path: bench.image(`${name}.img`, blocks * 4096) });
    await bench.put('attachments', name, { bus: name, backend: name, deviceNumber: 0 });
  }
  await bench.create('paused');
  await startLoad('paused');
  // The other tests take place while it rests.
  await bench.domain('paused').pause();
  pausedAtMs = performance.now();
  whenPaused = { known: await knownOf('paused'), mappings: grantMappings(bench.service.pid) };
  assert.ok(whenPaused.mappings.length > 0, 'it is the only one that has shared anything');
  await bench.create('other', 'pool', 'grants');
  await startLoad('other');
});
after(() => bench.close());

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
