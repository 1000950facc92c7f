import assert from 'node:assert/strict';
import { after, before, describe, it, type TestContext } from 'node:test';
import type { FastifyInstance } from 'fastify';
import { channelSchema, findProblem, recordSchema, shareSchema } from '../../src/bridge/commands.ts';
import type { BusSnapshot } from '../../src/bridge/lane/protocol.ts';
import type { FlightRecord } from '../../src/device/flight-recorder.ts';
import { assertProblem, badParameter, type Case, get, populated, wrong } from './problem-cases.ts';
import { loopback, makeServer, makeWorld, startWorld, type World } from './support.ts';

const region = (area: number, more: Partial<BusSnapshot['shares'][number]> = {}): BusSnapshot['shares'][number] => ({
  area,
  bytes: 4096 * area,
  readOnly: false,
  pins: 0,
  state: 'active',
  ...more,
});

const guest: Partial<BusSnapshot> = {
  state: 'connected',
  epoch: 0x1_0000_0001n,
  peer: { pid: 11, uid: 12, gid: 13 },
  channel: { dialect: 'D5', maxMessageSizeBytes: 64, slotBytes: 64, backlogMessages: 2 },
  shares: [region(10), region(9, { readOnly: true, pins: 3 }), region(1, { state: 'draining', pins: 1 })],
};

const record = (sequence: number, more: Partial<FlightRecord> = {}): FlightRecord => ({
  sequence,
  ageMs: 1.23456,
  direction: 'in',
  type: 0,
  id: 2,
  deviceNumber: 7,
  token: 5,
  sizeBytes: 8,
  ...more,
});

/** Two buses: `b` has a guest, `c` has none. */
async function observed(t: TestContext): Promise<{ world: World; app: FastifyInstance }> {
  const world = await startWorld(t);
  await world.service.put('domains', 'vm1', {});
  await world.service.put('buses', 'c', loopback);
  await world.service.put('buses', 'b', loopback);
  Object.assign(world.lane.buses.get('b')!.snapshot, guest);
  world.lane.buses.get('b')!.snapshot.counters = { ...world.lane.buses.get('b')!.snapshot.counters, messagesIn: 9 };
  return { world, app: await makeServer(t, world) };
}

describe('api: channels', () => {
  it('tell the message path of each bus', async (t) => {
    const { app } = await observed(t);
    const { items, next } = (await app.inject('/v1/channels')).json();
    assert.deepEqual([items.map(({ id }: { id: string }) => id), next], [['b', 'c'], null]);
    for (const item of items) assert.equal(findProblem(channelSchema, item), null);
    const zeros = { messagesOut: 0, doorbellsIn: 0, doorbellsOut: 0, malformed: 0, dropped: 0, failures: 0 };
    assert.deepEqual(items[0], {
      id: 'b',
      domain: 'vm1',
      state: 'connected',
      reason: null,
      epoch: '0x100000001',
      peer: { pid: 11, uid: 12, gid: 13 },
      dialect: 'D5',
      maxMessageSizeBytes: 64,
      slotBytes: 64,
      backlogMessages: 2,
      counters: { messagesIn: 9, ...zeros },
    });
    const none = { dialect: null, maxMessageSizeBytes: null, slotBytes: null, backlogMessages: null };
    assert.deepEqual(items[1], {
      id: 'c',
      domain: 'vm1',
      state: 'listening',
      reason: null,
      epoch: '0x0',
      peer: null,
      ...none,
      counters: { messagesIn: 0, ...zeros },
    });
    assert.deepEqual((await app.inject('/v1/channels/b')).json(), items[0]);
  });

  it('come in pages', async (t) => {
    const { app } = await observed(t);
    const first = (await app.inject('/v1/channels?limit=1')).json();
    assert.deepEqual([first.items[0].id, first.next], ['b', 'b']);
    const second = (await app.inject(`/v1/channels?limit=1&cursor=${first.next}`)).json();
    assert.deepEqual([second.items[0].id, second.next], ['c', null]);
  });

  it('say why a bus is not open', async (t) => {
    const { app, world } = await observed(t);
    world.lane.emit({ type: 'lane-failed', reason: 'worker exited' });
    const { state, reason } = (await app.inject('/v1/channels/b')).json();
    assert.deepEqual([state, reason], ['failed', 'the lane failed: worker exited']);
    const records = await app.inject('/v1/channels/b/records');
    assertProblem(records, { code: 'unavailable', detail: /worker exited/ });
  });
});

describe('api: records of a channel', () => {
  it('name the messages', async (t) => {
    const { app, world } = await observed(t);
    world.lane.buses.get('b')!.records = [
      record(3),
      record(4, { direction: 'out', type: 1 }),
      record(5, { id: 0x40, token: 0 }),
      record(6, { type: 2, id: 2, deviceNumber: 0 }),
      record(7, { id: 0x3f, ageMs: -0.001 }),
    ];
    const { items, next } = (await app.inject('/v1/channels/b/records')).json();
    for (const item of items) assert.equal(findProblem(recordSchema, item), null);
    assert.equal(next, null);
    assert.deepEqual(items[0], {
      sequence: 3,
      ageMs: 1.235,
      direction: 'in',
      kind: 'request',
      message: 'GET_DEVICE_INFO',
      messageId: 2,
      isBusMessage: false,
      deviceNumber: 7,
      token: 5,
      sizeBytes: 8,
    });
    const facts = items.map((item: Record<string, unknown>) => [
      item.kind,
      item.message,
      item.deviceNumber,
      item.ageMs,
    ]);
    assert.deepEqual(facts.slice(1), [
      ['response', 'GET_DEVICE_INFO', 7, 1.235],
      ['event', 'EVENT_CONFIG', 7, 1.235],
      ['request', 'GET_DEVICES', null, 1.235],
      ['request', null, 7, 0],
    ]);
  });

  it('are bounded, and go on after the one seen last', async (t) => {
    const { app, world } = await observed(t);
    world.lane.buses.get('b')!.records = Array.from({ length: 150 }, (_, i) => record(1000 + i));
    const first = (await app.inject('/v1/channels/b/records')).json();
    assert.deepEqual([first.items.length, first.next], [100, 1099]);
    const second = (await app.inject(`/v1/channels/b/records?cursor=${first.next}`)).json();
    assert.deepEqual([second.items.length, second.items[0].sequence, second.next], [50, 1100, null]);
    assert.deepEqual((await app.inject('/v1/channels/b/records?cursor=1149')).json(), { items: [], next: null });
  });

  it('are none while the bus is not open', async (t) => {
    const configured = { domains: { vm1: {} }, buses: { b: loopback } };
    const app = await makeServer(t, makeWorld(t, { configured }));
    const answer = await app.inject('/v1/channels/b/records');
    // Before the start there is not even an inventory.
    assertProblem(answer, { code: 'not-found', detail: /bus "b"/ });
    const world = makeWorld(t, { configured });
    world.lane.refusals.set('openBus b', new Error('no room') as never);
    await world.service.start();
    const closed = await makeServer(t, world);
    assert.deepEqual((await closed.inject('/v1/channels/b/records')).json(), { items: [], next: null });
    assert.equal(world.lane.count('records'), 0);
    await world.service.stop();
  });
});

describe('api: shares', () => {
  it('tell every region of every guest', async (t) => {
    const { app, world } = await observed(t);
    Object.assign(world.lane.buses.get('c')!.snapshot, { shares: [region(2)] });
    const { items, next } = (await app.inject('/v1/shares')).json();
    for (const item of items) assert.equal(findProblem(shareSchema, item), null);
    assert.equal(next, null);
    assert.deepEqual(items, [
      { id: 'b.1', bus: 'b', domain: 'vm1', ...region(1, { state: 'draining', pins: 1 }) },
      { id: 'b.10', bus: 'b', domain: 'vm1', ...region(10) },
      { id: 'b.9', bus: 'b', domain: 'vm1', ...region(9, { readOnly: true, pins: 3 }) },
      { id: 'c.2', bus: 'c', domain: 'vm1', ...region(2) },
    ]);
    assert.deepEqual((await app.inject('/v1/shares/b.9')).json(), items[2]);
  });

  it('come in pages without gaps while regions come and go', async (t) => {
    const { app, world } = await observed(t);
    const first = (await app.inject('/v1/shares?limit=2')).json();
    assert.equal(first.next, 'b.10');
    Object.assign(world.lane.buses.get('b')!.snapshot, { shares: [region(9)] });
    const second = (await app.inject(`/v1/shares?limit=2&cursor=${first.next}`)).json();
    assert.deepEqual([second.items.map(({ id }: { id: string }) => id), second.next], [['b.9'], null]);
  });

  it('are gone with the lane', async (t) => {
    const { app, world } = await observed(t);
    world.lane.emit({ type: 'lane-failed', reason: 'worker exited' });
    assert.deepEqual((await app.inject('/v1/shares')).json(), { items: [], next: null });
  });
});

const readOnly = ['/v1/channels', '/v1/shares', '/v1/channels/b/records', '/v1/channels/b', '/metrics'];
const collections = ['/v1/channels', '/v1/shares', '/v1/channels/b/records'];

const cases: Case[] = [
  ...readOnly.flatMap((url) =>
    (['POST', 'PUT', 'PATCH', 'DELETE'] as const).map((method) =>
      wrong(
        `${method} ${url}`,
        { method, url, ...(method === 'DELETE' ? {} : { payload: {} }) },
        'method-not-allowed',
        new RegExp(`does not take ${method}`),
      ),
    ),
  ),
  ...readOnly.map((url) => badParameter(`an unknown parameter of ${url}`, get(`${url}?x=1`), 'x', /not a known field/)),
  ...collections.flatMap((url) => [
    badParameter(`a limit of 0 of ${url}`, get(`${url}?limit=0`), 'limit', /limit must be >= 1/),
    badParameter(`a large limit of ${url}`, get(`${url}?limit=1001`), 'limit', /limit must be <= 1000/),
    badParameter(`a limit in words of ${url}`, get(`${url}?limit=ten`), 'limit', /limit must be integer/),
    badParameter(`a wrong cursor of ${url}`, get(`${url}?cursor=..`), 'cursor', /cursor must/),
  ]),
  badParameter('a cursor of shares without its area', get('/v1/shares?cursor=b'), 'cursor', /must match/),
  badParameter('a cursor of records below 0', get('/v1/channels/b/records?cursor=-1'), 'cursor', />= 0/),
  badParameter('a cursor of records in halves', get('/v1/channels/b/records?cursor=1.5'), 'cursor', /integer/),
  badParameter('a wrong id of a channel', get('/v1/channels/B'), 'id', /parameter id must match/),
  badParameter('a wrong id for records', get('/v1/channels/B/records'), 'id', /parameter id must match/),
  badParameter('a wrong id of a share', get('/v1/shares/b'), 'id', /parameter id must match/),
  badParameter('an area too long', get('/v1/shares/b.123456'), 'id', /parameter id must match/),
  wrong('an unknown channel', get('/v1/channels/nobody'), 'not-found', /bus "nobody" does not exist/),
  wrong('records of an unknown bus', get('/v1/channels/nobody/records'), 'not-found', /bus "nobody"/),
  wrong('an unknown share', get('/v1/shares/b.1'), 'not-found', /share "b\.1" does not exist/),
  wrong('a path below records', get('/v1/channels/b/records/1'), 'not-found', /nothing at/),
];

describe('api: wrong calls of what is read-only', () => {
  let app: FastifyInstance;
  const releases: (() => unknown)[] = [];
  before(async () => {
    app = await populated({ after: (release) => void releases.push(release) });
  });
  after(async () => {
    for (const release of releases.reverse()) await release();
  });
  for (const { name, call, ...wanted } of cases) {
    it(name, async () => {
      assertProblem(await app.inject(call), wanted);
    });
  }
});
