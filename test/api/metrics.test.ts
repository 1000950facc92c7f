import assert from 'node:assert/strict';
import { describe, it, type TestContext } from 'node:test';
import type { FastifyInstance } from 'fastify';
import { metricsText } from '../../api/metrics.ts';
import { VmsgError } from '../../src/kit/errors.ts';
import { limits } from '../../src/kit/limits.ts';
import { assertProblem } from './problem-cases.ts';
import { parseMetrics, sampleOf } from './prometheus.ts';
import { blk, loopback, makeServer, settle, startWorld, type World } from './support.ts';

interface Measured {
  readonly world: World;
  readonly app: FastifyInstance;
  readonly scrape: () => Promise<ReturnType<typeof parseMetrics>>;
}

async function measured(t: TestContext): Promise<Measured> {
  const world = await startWorld(t);
  const { service } = world;
  await service.put('domains', 'vm1', {});
  await service.put('buses', 'b', loopback);
  await service.put('backends', 'disk', blk);
  await service.put('attachments', 'a', { bus: 'b', backend: 'disk' });
  const app = await makeServer(t, world);
  const scrape = async () => {
    const answer = await app.inject('/metrics');
    assert.equal(answer.statusCode, 200, answer.body);
    assert.equal(answer.headers['content-type'], 'text/plain; version=0.0.4; charset=utf-8');
    assert.equal(answer.headers['cache-control'], 'no-store');
    return parseMetrics(answer.body);
  };
  return { world, app, scrape };
}

const onBus = { bus: 'b', domain: 'vm1' };
const onDevice = { bus: 'b', attachment: 'a', device_type: 'blk' };

describe('api: metrics', () => {
  it('are what the lane counted', async (t) => {
    const { world, scrape } = await measured(t);
    const bus = world.lane.buses.get('b')!.snapshot;
    Object.assign(bus, {
      state: 'connected',
      channel: { dialect: 'D5', maxMessageSizeBytes: 64, slotBytes: 64, backlogMessages: 8 },
      counters: {
        messagesIn: 1,
        messagesOut: 2,
        doorbellsIn: 3,
        doorbellsOut: 4,
        malformed: 5,
        dropped: 6,
        failures: 2 ** 53 - 1,
      },
      regions: 9,
      regionBytes: 10,
      regionsDraining: 11,
      grants: { persistent: true, hits: 14, misses: 15, evictions: 16, faults: 17, mappedPages: 18 },
    });
    const queues = [
      { index: 0, size: 8, inFlight: 3 },
      { index: 1, size: 8, inFlight: 4 },
    ];
    Object.assign(world.lane.device('b', 'a')!, { requests: 12, bytes: 13, queues });
    const counts = { events: 21, signals: 22, rounds: 23, sleeps: 24, spinsPaid: 25, spinsUnpaid: 26 };
    Object.assign(world.lane.dataPlane, { joins: 20, ...counts });
    const families = await scrape();
    const wanted: [string, Record<string, string>, number][] = [
      ['vmsg_info', { version: '1.2.3' }, 1],
      ['vmsg_ready', {}, 1],
      ['vmsg_guests_connected', {}, 1],
      ['vmsg_domain_running', { domain: 'vm1' }, 1],
      ['vmsg_domain_stuck_pages', { domain: 'vm1' }, 0],
      ['vmsg_data_plane_joins', {}, 20],
      ['vmsg_data_plane_events_total', {}, 21],
      ['vmsg_data_plane_signals_total', {}, 22],
      ['vmsg_data_plane_rounds_total', {}, 23],
      ['vmsg_data_plane_sleeps_total', {}, 24],
      ['vmsg_data_plane_spins_paid_total', {}, 25],
      ['vmsg_data_plane_spins_unpaid_total', {}, 26],
      ['vmsg_bus_state', { ...onBus, state: 'connected' }, 1],
      ['vmsg_bus_messages_received_total', onBus, 1],
      ['vmsg_bus_messages_sent_total', onBus, 2],
      ['vmsg_bus_doorbells_received_total', onBus, 3],
      ['vmsg_bus_doorbells_sent_total', onBus, 4],
      ['vmsg_bus_malformed_total', onBus, 5],
      ['vmsg_bus_dropped_total', onBus, 6],
      ['vmsg_bus_failures_total', onBus, 2 ** 53 - 1],
      ['vmsg_bus_backlog_messages', onBus, 8],
      ['vmsg_bus_regions', onBus, 9],
      ['vmsg_bus_region_bytes', onBus, 10],
      ['vmsg_bus_regions_draining', onBus, 11],
      ['vmsg_bus_grant_hits_total', onBus, 14],
      ['vmsg_bus_grant_misses_total', onBus, 15],
      ['vmsg_bus_grant_evictions_total', onBus, 16],
      ['vmsg_bus_grant_faults_total', onBus, 17],
      ['vmsg_bus_grant_mapped_pages', onBus, 18],
      ['vmsg_attachment_state', { ...onDevice, state: 'active' }, 1],
      ['vmsg_attachment_requests_total', onDevice, 12],
      ['vmsg_attachment_bytes_total', onDevice, 13],
      ['vmsg_attachment_requests_in_flight', onDevice, 7],
      ['vmsg_api_event_streams', {}, 0],
      ['vmsg_api_event_streams_dropped_total', {}, 0],
      ['vmsg_api_events_dropped_total', {}, 0],
      ['process_uptime_seconds', {}, 3],
      ['process_resident_memory_bytes', {}, 4096],
      ['process_open_fds', {}, 5],
    ];
    for (const [name, labels, value] of wanted) assert.equal(sampleOf(families, name, labels), value, name);
    const tested = new Set([...wanted.map(([name]) => name), 'vmsg_api_requests_total']);
    assert.deepEqual(
      [...families.keys()].filter((name) => !tested.has(name)),
      [],
      'every family is tested',
    );
  });

  it('have a type that fits the name, and help', async (t) => {
    const { app, scrape } = await measured(t);
    await app.inject('/healthz');
    for (const [name, { help, type, samples }] of await scrape()) {
      assert.equal(type, name.endsWith('_total') ? 'counter' : 'gauge', name);
      assert.match(help, /^[A-Z].{5,}\.$/, name);
      const needsMore = name === 'vmsg_bus_backlog_messages' || name.startsWith('vmsg_bus_grant_');
      assert.ok(samples.length > 0 || needsMore, name);
    }
  });

  it('leave out what a bus that is not open has not counted', async (t) => {
    const { world, scrape } = await measured(t);
    world.lane.emit({ type: 'lane-failed', reason: 'worker exited' });
    const families = await scrape();
    assert.equal(sampleOf(families, 'vmsg_ready'), 0);
    assert.equal(sampleOf(families, 'vmsg_bus_state', { ...onBus, state: 'failed' }), 1);
    assert.deepEqual(families.get('vmsg_bus_messages_received_total')?.samples, []);
    assert.equal(sampleOf(families, 'vmsg_attachment_state', { ...onDevice, state: 'failed' }), 1);
    assert.deepEqual(families.get('vmsg_attachment_requests_total')?.samples, []);
  });

  it('tell which domains run, and what they keep of others', async (t) => {
    const { world, scrape } = await measured(t);
    await world.service.put('domains', 'server', { xen: { name: 'server' } });
    await world.service.put('buses', 's', { domain: 'server', transport: 'xen', role: 'device' });
    assert.equal(sampleOf(await scrape(), 'vmsg_domain_running', { domain: 'server' }), 0);
    world.xen.run({ domid: 3, name: 'server', uuid: 'u' });
    await settle();
    const stuck = [4, 8].map((pages) => ({ domid: 9, pages, ageMs: 1 }));
    Object.assign(world.lane.buses.get('s')!.snapshot, { stuck });
    const families = await scrape();
    assert.equal(sampleOf(families, 'vmsg_domain_running', { domain: 'server' }), 1);
    assert.equal(sampleOf(families, 'vmsg_domain_stuck_pages', { domain: 'server' }), 12);
  });

  it('leave out what an attachment does not count because its data passes elsewhere', async (t) => {
    const { world, scrape } = await measured(t);
    Object.assign(world.lane.device('b', 'a')!, { requests: null, bytes: null });
    const families = await scrape();
    assert.equal(sampleOf(families, 'vmsg_attachment_state', { ...onDevice, state: 'active' }), 1);
    assert.deepEqual(families.get('vmsg_attachment_requests_total')?.samples, []);
    assert.deepEqual(families.get('vmsg_attachment_bytes_total')?.samples, []);
  });

  it('count calls by route, not by path', async (t) => {
    const { app, scrape } = await measured(t);
    for (const id of ['b', 'x', 'y']) await app.inject(`/v1/buses/${id}`);
    await app.inject({ method: 'PUT', url: '/v1/domains/n', payload: {} });
    await app.inject({ method: 'PUT', url: '/v1/domains/n', payload: 'x' });
    for (const url of ['/a', '/b', '/v1/buses/b/c']) await app.inject(url);
    await app.inject({ method: 'DELETE', url: '/v1/buses' });
    await app.inject('/v1/buses/%zz');
    await scrape();
    const { samples = [] } = (await scrape()).get('vmsg_api_requests_total') ?? {};
    assert.deepEqual(
      samples.map(({ labels, value }) => `${labels.method} ${labels.route} ${labels.status} ${value}`).sort(),
      [
        'GET /metrics 2xx 1',
        'GET /v1/buses/:id 2xx 1',
        'GET /v1/buses/:id 4xx 2',
        'PUT /v1/domains/:id 2xx 1',
        'PUT /v1/domains/:id 4xx 1',
        'any none 4xx 5',
      ],
    );
  });

  it('cover more attachments than one page has', async (t) => {
    const count = limits.apiPageMaxItems + 1;
    const buses = Object.fromEntries(Array.from({ length: 5 }, (_, i) => [`b${i}`, loopback]));
    const attachments = Object.fromEntries(
      Array.from({ length: count }, (_, i) => [`a${i}`, { bus: `b${i % 5}`, backend: 'rng' }]),
    );
    const configured = { domains: { vm1: {} }, buses, backends: { rng: { type: 'rng' as const } }, attachments };
    const app = await makeServer(t, await startWorld(t, { configured }));
    const families = parseMetrics((await app.inject('/metrics')).body);
    assert.equal(families.get('vmsg_attachment_state')?.samples.length, count);
  });

  it('of one answer are of that answer only', async (t) => {
    const { world, app, scrape } = await measured(t);
    const answers = await Promise.all(Array.from({ length: 8 }, () => app.inject('/metrics')));
    for (const { body } of answers) parseMetrics(body);
    await world.service.delete('attachments', 'a');
    assert.deepEqual((await scrape()).get('vmsg_attachment_state')?.samples, []);
  });

  it('fail as a whole when the lane does not answer', async (t) => {
    const { world, app } = await measured(t);
    const call = world.lane.call.bind(world.lane);
    world.lane.call = (name, argument) =>
      name === 'inspect' ? Promise.reject(new VmsgError('timeout', 'no answer to inspect')) : call(name, argument);
    assertProblem(await app.inject('/metrics'), { code: 'timeout', detail: /no answer to inspect/ });
  });

  it('escape the values of labels', async () => {
    const value = 'a\\n"b"\n{},=\\';
    const samples = [[{ one: value, two: '' }, 1]] as const;
    const text = await metricsText([{ name: 'x', help: 'Y\\z.', type: 'gauge', labels: ['one', 'two'], samples }]);
    assert.equal(sampleOf(parseMetrics(text), 'x', { one: value, two: '' }), 1);
  });
});
