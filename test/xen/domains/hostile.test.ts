import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import type { HostileLine, HostileOrder } from '../guests/hostile.ts';
import { nobody } from '../guests/hostile-attacks.ts';
import type { LatencyLine, LatencyOrder } from '../guests/latency.ts';
import { XenBench } from '../support/bench.ts';
import { grantMappings, tool, xl } from '../support/dom0.ts';
import { Events } from '../support/events.ts';
import { eventually } from '../support/eventually.ts';
import { GuestProgram } from '../support/program.ts';
import { quantile } from '../support/statistics.ts';

const imageBytes = 256 * 4096;

const bench = new XenBench({ hostile: {}, neighbour: {} });
let events: Events;
let hostile: GuestProgram<HostileLine>;
let attacks = 0;

before(async () => {
  await bench.start();
  events = new Events(bench.service.api);
  for (const name of ['hostile', 'neighbour']) {
    await bench.put('backends', name, { type: 'blk', path: bench.image(`${name}.img`, imageBytes) });
    await bench.put('attachments', name, { bus: name, backend: name, deviceNumber: 0 });
  }
  await bench.create('hostile', 'neighbour');
  const order: HostileOrder = { disk: 0, neighbour: bench.domain('neighbour').domid };
  hostile = await GuestProgram.start(bench.domain('hostile'), 'hostile', order);
});
after(() => bench.close());

/** Has an attack carried out, or begun. */
async function attack(name: string): Promise<HostileLine> {
  const order = `${name}:${++attacks}`;
  const attacked = hostile.next('attacked', (line) => line.attack === order);
  await tool('xenstore-write', `/local/domain/${bench.domain('hostile').domid}/data/attack`, order);
  return await attacked;
}

const hostileBus = async () => (await bench.service.bus('hostile')).status;

/** An attack that ends by itself, with what the service counted meanwhile. */
async function attacked(name: string) {
  const before = (await hostileBus()).counters;
  const line = await attack(name);
  const { counters, ...status } = await hostileBus();
  const received = counters.messagesIn - before.messagesIn;
  assert.ok(bench.service.alive);
  assert.equal((await bench.service.attachment('neighbour')).status.state, 'active');
  return { ...line, status, received, malformed: counters.malformed - before.malformed };
}

/** What the service said of the hostile bus, a number of times since the last look. */
async function said(type: 'bus-disconnected' | 'bus-refused', times: number): Promise<string[]> {
  const from = seen.get(type) ?? 0;
  const texts = await eventually(async () => {
    const all = events.texts(type, 'hostile', 'reason').slice(from);
    return all.length >= times ? all : undefined;
  }, `${times} events ${type}`);
  seen.set(type, from + texts.length);
  return texts;
}
const seen = new Map<string, number>();

test('behind a ring index that cannot be, no slot is looked at', async () => {
  const { received } = await attacked('ringIndex');
  assert.equal(received, 0, 'every slot held a good message');
  const reasons = await said('bus-disconnected', 4);
  assert.deepEqual(new Set(reasons), new Set(['the guest wrote an impossible ring index']));
});

test('the index of what was read is checked as well', async () => {
  const { received, messages } = await attacked('readIndex');
  assert.equal(received, messages);
  assert.match((await said('bus-disconnected', 2)).at(-1)!, /impossible ring index/);
});

test('oversized messages are dropped one by one', async () => {
  const { received, messages, malformed } = await attacked('oversized');
  assert.deepEqual([received, malformed], [messages, 5]);
});

test('malformed messages are dropped, and the connection goes on', async () => {
  const { received, messages, malformed, status } = await attacked('malformed');
  assert.equal(received, messages);
  assert.ok(malformed >= 8 && malformed < messages, String(malformed));
  assert.equal(status.state, 'connected');
});

test('references that name nothing, or grants of others, map nothing', async () => {
  const mappings = grantMappings(bench.service.pid).length;
  const { errnos, status } = await attacked('foreignReferences');
  assert.equal(errnos!.length, 8);
  assert.ok(errnos!.every((errno) => errno > 0));
  const { domid } = bench.domain('hostile');
  assert.match(status.diagnosis!, new RegExp(`grant reference \\d+ of domain ${domid} .*cannot be mapped.*check`));
  assert.equal(grantMappings(bench.service.pid).length, mappings);
});

test('grants that have ended are not mapped; those that end while they are mapped do no harm', async () => {
  const stale = await attacked('staleReferences');
  assert.equal(stale.errnos!.length, 2);
  assert.ok(stale.errnos!.every((errno) => errno > 0));
  assert.match(stale.status.diagnosis!, /has not ended it/);
  const ended = await attacked('endedReferences');
  assert.deepEqual(ended.errnos, [0, 0]);
  assert.equal(ended.received, ended.messages);
});

for (const name of ['queueAddresses', 'descriptors']) {
  test(`a device whose ${name} name nothing needs a reset, and says which reference it was`, async () => {
    await attacked(name);
    const { domid } = bench.domain('hostile');
    const { status } = await eventually(async () => {
      const attachment = await bench.service.attachment('hostile');
      return attachment.status.state === 'degraded' ? attachment : undefined;
    }, 'the device needs a reset');
    assert.match(status.reason!, new RegExp(`grant reference ${nobody} of domain ${domid}`));
  });
}

test('buffers whose grants end right after their request do no harm', async () => {
  const { received, messages } = await attacked('endedBuffers');
  assert.equal(received, messages);
});

test('an answer to an offer that names nothing is refused with a sentence', async () => {
  const { notes } = await attacked('handshake');
  assert.deepEqual(await said('bus-refused', notes!.length), notes);
  const about = [/to-service-refs.*mapped/, /to-guest-refs.*mapped/, /to-guest-refs/, /channel/, /size/, /version/];
  for (const [i, pattern] of about.entries()) assert.match(notes![i]!, pattern);
});

test('a guest that says that it is dead is taken at its word', async () => {
  await attacked('aliveByte');
  assert.match((await said('bus-disconnected', 1)).at(-1)!, /the guest ended without closing the bus/);
});

const rounds = 2;
const windowsPerRound = 4;
const storms = ['events', 'messages', 'nodes'] as const;
const weights = { 'Domain-0': 4096, neighbour: 2048, hostile: 256 };

test('storms of one domU leave the p99 of another below three times its quiet value', async (t) => {
  const order: LatencyOrder = { memory: 'pool', memoryBytes: 1024 * 1024, disk: 0 };
  const neighbour = await GuestProgram.start<LatencyLine>(bench.domain('neighbour'), 'latency', order);
  // All domains share one emulated processor, so that the hostile domU takes time from others in any case. It gets less
  // than they do, all the time; and quiet is that it computes, and leaves the service alone.
  for (const [domain, weight] of Object.entries(weights)) await xl('sched-credit2', '-d', domain, '-w', String(weight));
  // In turns, so that what else goes on in the machine that emulates all of this befalls each of them.
  const p99s = new Map<string, number[]>(['nothing', ...storms].map((name) => [name, []]));
  for (let round = 0; round < rounds; round++) {
    for (const [name, values] of p99s) {
      await attack(name);
      // The window of now began before.
      await neighbour.next('window');
      for (let i = 0; i < windowsPerRound; i++) values.push(quantile((await neighbour.next('window')).latencies, 0.99));
    }
  }
  assert.ok(bench.service.alive);
  const middle = (name: string): number => quantile(p99s.get(name)!, 0.5);
  const quietUs = middle('nothing');
  for (const name of storms) t.diagnostic(`${name}: p99 ${middle(name)} us, quiet ${quietUs} us`);
  for (const name of storms) assert.ok(middle(name) < 3 * quietUs, `${name}: ${p99s.get(name)}, quiet ${quietUs} us`);
  await neighbour.stop();
  const { received, messages } = await attacked('oversized');
  assert.equal(received, messages, 'the hostile domU itself may come back');
});
