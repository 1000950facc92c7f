import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { Resource } from '../../../src/bridge/commands.ts';
import { probeGuests } from '../../support/xen-guest-pair.ts';
import type { FollowerLine } from '../guests/follower.ts';
import { XenBench } from '../support/bench.ts';
import { activeGrants, grantMappings, listedDomains } from '../support/dom0.ts';
import type { DomainCommand } from '../support/domains.ts';
import { eventually } from '../support/eventually.ts';
import { GuestProgram } from '../support/program.ts';
import {
  attachServed,
  clearImage,
  goesOn,
  inUse,
  leaves,
  moveData,
  serve,
  serveEmpty,
  serveRandom,
} from '../support/serving.ts';

const goneWithinMs = 5000;
/** Nothing for dom0; a pool of the default size for each domain that serves. */
const memory = { memory: 'pool', memoryBytes: 0 } as const;
const poolPages = 4096;
/** What the service maps of a bus: two rings of four pages, and the first of them once more. */
const busPages = 9;

const bench = new XenBench({ user: {}, server: { role: 'device' } });
let server: DomainCommand;
let follower: GuestProgram<FollowerLine>;

const follow = (): Promise<GuestProgram<FollowerLine>> => GuestProgram.start(bench.domain('user'), 'follower', memory);

/** Granted pages that the service has mapped. */
function mappedPages(): number {
  return grantMappings(bench.service.pid).reduce((sum, line) => {
    const [start = '', end = ''] = line.split(' ')[0]!.split('-');
    return sum + (Number.parseInt(end, 16) - Number.parseInt(start, 16)) / 4096;
  }, 0);
}

/** Pages of the user that a domU has mapped, as Xen counts. */
async function pagesOfUser(mapper: string): Promise<number> {
  const mapped = (await activeGrants()).get(bench.domain('user').domid) ?? [];
  return mapped.filter((grant) => grant.mapper === bench.domain(mapper).domid).length;
}

async function domainStatus(name: string): Promise<Resource<'domains'>['status']> {
  return ((await bench.service.api.call('GET', `/v1/domains/${name}`)).body as Resource<'domains'>).status;
}

const gone = (domid: number): Promise<true> =>
  eventually(async () => !(await listedDomains()).includes(domid) || undefined, `domain ${domid} is gone`);

before(async () => {
  await bench.start();
  await attachServed(bench, 'user', 'server');
  await bench.create('user', 'server');
});
after(() => bench.close());

test('a domU maps pages of another, and binds to its ports', async () => {
  const { shared, mapped } = await probeGuests(bench.domain('user'), bench.domain('server'));
  assert.equal(typeof shared.port, 'number');
  assert.deepEqual(mapped, { page: 42, port: 'bound' });
});

test('a domU reads and writes the disk of another one, which maps its memory', async (t) => {
  server = await serveRandom(bench.domain('server'));
  const { status } = await inUse(bench, 'server');
  assert.deepEqual([status.dataPath, status.dataPathReason, status.recovery], ['relayed', null, 'reset']);
  t.diagnostic(await moveData(bench, status.deviceNumber!, memory));
});

test('dom0 maps nothing but the rings; the serving process is killed during I/O and comes back', async () => {
  await clearImage(bench.domain('server'));
  follower = await follow();
  await goesOn(follower);
  assert.equal(mappedPages(), 2 * busPages);
  assert.equal(await pagesOfUser('server'), poolPages);

  const codes = await leaves(follower, () => server.kill('KILL'));
  assert.deepEqual(codes, ['not-found', 'not-found']);
  server = await serveEmpty(bench.domain('server'));
  await follower.count('taken', 4);
  await goesOn(follower);
});

test('a domU that is destroyed during I/O is let go by the one that maps its memory', async (t) => {
  const { domid } = bench.domain('user');
  assert.equal(await pagesOfUser('server'), poolPages);
  const began = performance.now();
  await bench.destroy('user');
  await gone(domid);
  const tookMs = performance.now() - began;
  t.diagnostic(`gone from xl list after ${(tookMs / 1000).toFixed(1)} s`);
  assert.ok(tookMs <= goneWithinMs, `${tookMs} ms`);
  assert.equal((await activeGrants()).get(domid), undefined);
  assert.deepEqual((await domainStatus('server')).stuckShares, []);
});

test('a paused domU keeps the memory of one that was destroyed: that is told, until it has let go', async () => {
  await clearImage(bench.domain('server'));
  await bench.create('user');
  const { domid } = bench.domain('user');
  await inUse(bench, 'server');
  follower = await follow();
  await goesOn(follower);
  await bench.domain('server').pause();
  await bench.destroy('user');
  const [share, ...others] = await eventually(async () => {
    const { stuckShares } = await domainStatus('server');
    return stuckShares.length === 0 ? undefined : stuckShares;
  }, 'the share is stuck');
  assert.deepEqual(others, []);
  assert.deepEqual({ ...share, ageMs: 0 }, { bus: 'server', domid, pages: poolPages, ageMs: 0 });
  assert.ok(share!.ageMs > 0);
  assert.ok((await listedDomains()).includes(domid), 'Xen cannot end it');

  await bench.domain('server').unpause();
  await gone(domid);
  await eventually(
    async () => (await domainStatus('server')).stuckShares.length === 0 || undefined,
    'nothing is stuck any more',
  );
});

test('a domU whose serving process is stopped is destroyed where its bus wants that', async () => {
  await clearImage(bench.domain('server'));
  const { domid } = bench.domain('server');
  const bus = { domain: 'server', transport: 'xen', role: 'device', index: 1, onStuck: 'destroy-mapper' };
  await bench.service.api.call('PUT', '/v1/buses/strict', bus);
  await bench.put('backends', 'strict', { type: 'guest', bus: 'strict', deviceNumber: 0 });
  const second = await serve(bench.domain('server'), '--bus xen:1 --entropy', 0);
  // It serves the next user, too.
  await bench.create('user');
  await inUse(bench, 'server');
  await bench.attach('user', 'strict', { id: 'strict' });
  follower = await follow();
  await follower.count('taken', 3);
  await goesOn(follower);
  await second.kill('STOP');
  const left = follower.next('left');
  const detached = bench.detach('strict');
  assert.deepEqual([(await left).kind, (await left).code], ['rng', 'not-found']);
  await gone(domid);
  await detached;
  const { state, stuckShares } = await domainStatus('server');
  assert.deepEqual([state, stuckShares], ['absent', []]);
  assert.equal(await pagesOfUser('server'), 0);
  await follower.count('left', 3);
  await follower.end('end');
});
