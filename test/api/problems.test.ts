import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type { FastifyInstance, InjectOptions } from 'fastify';
import { limits } from '../../src/kit/limits.ts';
import { assertProblem, badBody, badParameter, type Case, del, get, populated, put, wrong } from './problem-cases.ts';
import { blk, loopback, makeServer, makeWorld, startWorld } from './support.ts';

const plural = ['domains', 'buses', 'backends', 'attachments'] as const;
const good = { domains: {}, buses: loopback, backends: blk, attachments: { bus: 'b2', backend: 'gone' } };

const casesOf = (kind: (typeof plural)[number]): Case[] => [
  wrong('get of an unknown id', get(`/v1/${kind}/nobody`), 'not-found', /"nobody" does not exist/),
  wrong('delete of an unknown id', del(`${kind}/nobody`), 'not-found', /"nobody" does not exist/),
  badParameter('a wrong id', get(`/v1/${kind}/Vm1`), 'id', /parameter id must match/),
  badParameter('a long id', put(`${kind}/${'x'.repeat(64)}`, good[kind]), 'id', /parameter id/),
  badParameter('an encoded slash in the id', del(`${kind}/a%2Fb`), 'id', /parameter id/),
  badBody('an array for a body', put(`${kind}/n`, [good[kind]]), '', /the body must be an object/),
  badBody('null for a body', put(`${kind}/n`, 'null'), '', /the body must be an object/),
  badBody('no body', { method: 'PUT', url: `/v1/${kind}/n` }, '', /the body must be an object/),
  badBody('an empty body', put(`${kind}/n`, ''), '', /body is empty/),
  badBody('half a body', put(`${kind}/n`, '{"x": '), '', /not valid JSON/),
  badBody(
    'an unknown field',
    put(`${kind}/n`, { ...good[kind], colour: 1 }),
    '/colour',
    /^colour is not a known field/,
  ),
  badBody('a field to poison prototypes', put(`${kind}/n`, '{"__proto__": {"x": 1}}'), '', /not valid JSON/),
  wrong(
    'a body too large',
    put(`${kind}/n`, { x: 'x'.repeat(limits.apiBodyMaxBytes) }),
    'payload-too-large',
    /at most 65536 bytes/,
  ),
  wrong(
    'text for a body',
    put(`${kind}/n`, 'hello', { 'content-type': 'text/plain' }),
    'unsupported-media-type',
    /application\/json/,
  ),
  wrong(
    'a body without a type',
    { ...put(`${kind}/n`, '{}'), headers: { 'content-type': '' } },
    'unsupported-media-type',
    /application\/json/,
  ),
  wrong('POST', { method: 'POST', url: `/v1/${kind}`, payload: {} }, 'method-not-allowed', /does not take POST/),
  wrong(
    'PATCH of one',
    { method: 'PATCH', url: `/v1/${kind}/n`, payload: {} },
    'method-not-allowed',
    /does not take PATCH/,
  ),
  wrong('delete of all', del(kind), 'method-not-allowed', /does not take DELETE/),
  wrong(
    'an If-Match that does not fit',
    put(`${kind}/n`, good[kind], { 'if-match': '"1"' }),
    'precondition-failed',
    /does not exist/,
  ),
  wrong(
    'an If-Match for any',
    put(`${kind}/n`, good[kind], { 'if-match': '*' }),
    'precondition-failed',
    /does not exist/,
  ),
  badParameter(
    'a weak If-Match',
    put(`${kind}/n`, good[kind], { 'if-match': 'W/"1"' }),
    'if-match',
    /if-match must be/,
  ),
  badParameter('a list for If-Match', del(`${kind}/n`, { 'if-match': '"1", "2"' }), 'if-match', /if-match must be/),
  badParameter(
    'an If-None-Match with a tag',
    put(`${kind}/n`, good[kind], { 'if-none-match': '"1"' }),
    'if-none-match',
    /if-none-match/,
  ),
  badParameter(
    'If-None-Match with delete',
    del(`${kind}/n`, { 'if-none-match': '*' }),
    'if-none-match',
    /for PUT only/,
  ),
  badParameter('a limit of 0', get(`/v1/${kind}?limit=0`), 'limit', /limit must be >= 1/),
  badParameter('a limit too large', get(`/v1/${kind}?limit=1001`), 'limit', /limit must be <= 1000/),
  badParameter('a limit in words', get(`/v1/${kind}?limit=ten`), 'limit', /limit must be integer/),
  badParameter('a limit twice', get(`/v1/${kind}?limit=1&limit=2`), 'limit', /limit must be integer/),
  badParameter('a wrong cursor', get(`/v1/${kind}?cursor=..`), 'cursor', /cursor must match/),
  badParameter('an unknown parameter', get(`/v1/${kind}?page=2`), 'page', /page is not a known field/),
  badParameter('a parameter of one', get(`/v1/${kind}/n?x=1`), 'x', /x is not a known field/),
];
const forEveryKind = plural.flatMap((kind) => casesOf(kind).map((one) => ({ ...one, name: `${kind}: ${one.name}` })));

const fields: Case[] = [
  badBody('a description that is a number', put('domains/n', { description: 1 }), '/description', /must be string/),
  badBody('a long description', put('domains/n', { description: 'x'.repeat(201) }), '/description', /more than 200/),
  badBody(
    'a bus without a domain',
    put('buses/n', { transport: 'loopback', role: 'driver' }),
    '/domain',
    /^domain is missing/,
  ),
  badBody(
    'a bus with an unknown transport',
    put('buses/n', { ...loopback, transport: 'pci' }),
    '/transport',
    /must be one of "loopback", "xen"/,
  ),
  badBody(
    'a bus with an unknown role',
    put('buses/n', { ...loopback, role: 'both' }),
    '/role',
    /must be one of "driver", "device"/,
  ),
  badBody(
    'a small message size',
    put('buses/n', { ...loopback, maxMessageSizeBytes: 51 }),
    '/maxMessageSizeBytes',
    />= 52/,
  ),
  badBody(
    'a large message size',
    put('buses/n', { ...loopback, maxMessageSizeBytes: 265 }),
    '/maxMessageSizeBytes',
    /<= 264/,
  ),
  badBody(
    'half a message size',
    put('buses/n', { ...loopback, maxMessageSizeBytes: 64.5 }),
    '/maxMessageSizeBytes',
    /integer/,
  ),
  badBody('uids that are no list', put('buses/n', { ...loopback, admittedUids: 0 }), '/admittedUids', /array/),
  badBody('a negative uid', put('buses/n', { ...loopback, admittedUids: [0, -1] }), '/admittedUids/1', />= 0/),
  badBody(
    'the uid that means nobody',
    put('buses/n', { ...loopback, admittedUids: [0xffff_ffff] }),
    '/admittedUids/0',
    /<=/,
  ),
  badBody('a backend without a type', put('backends/n', { path: '/x' }), '/type', /^type is missing/),
  badBody('a backend of an unknown type', put('backends/n', { type: 'net' }), '/type', /must be one of .*"blk", "rng"/),
  badBody('a disk without a path', put('backends/n', { type: 'blk' }), '/path', /^path is missing/),
  badBody('a relative path', put('backends/n', { type: 'blk', path: 'disk.img' }), '/path', /must match/),
  badBody('a path with a zero byte', put('backends/n', { type: 'blk', path: '/a\u0000b' }), '/path', /must match/),
  badBody('a long path', put('backends/n', { type: 'blk', path: `/${'x'.repeat(4095)}` }), '/path', /more than 4095/),
  badBody('readOnly in words', put('backends/n', { ...blk, readOnly: 'yes' }), '/readOnly', /boolean/),
  badBody('no queues', put('backends/n', { ...blk, queues: 0 }), '/queues', />= 1/),
  badBody('too many queues', put('backends/n', { ...blk, queues: 17 }), '/queues', /<= 16/),
  badBody('half a page', put('backends/n', { type: 'shm', bytes: 6144 }), '/bytes', /multiple of 4096/),
  badBody('a long greeting', put('backends/n', { type: 'template', greeting: 'x'.repeat(101) }), '/greeting', /100/),
  badBody('a long serial', put('backends/n', { ...blk, serial: 'x'.repeat(21) }), '/serial', /must match/),
  badBody('a path for rng', put('backends/n', { type: 'rng', path: '/x' }), '/path', /not a known field/),
  badBody('an attachment without a bus', put('attachments/n', { backend: 'disk' }), '/bus', /^bus is missing/),
  badBody('an attachment without a backend', put('attachments/n', { bus: 'b' }), '/backend', /^backend is missing/),
  badBody(
    'a negative device number',
    put('attachments/n', { bus: 'b', backend: 'rng', deviceNumber: -1 }),
    '/deviceNumber',
    />= 0/,
  ),
  badBody(
    'a large device number',
    put('attachments/n', { bus: 'b', backend: 'rng', deviceNumber: 65536 }),
    '/deviceNumber',
    /<= 65535/,
  ),
  badBody(
    'a device number as text',
    put('attachments/n', { bus: 'b', backend: 'rng', deviceNumber: '1' }),
    '/deviceNumber',
    /integer/,
  ),
];

const states: Case[] = [
  wrong(
    'a change of the domain of a bus',
    put('buses/b', { ...loopback, domain: 'conf' }),
    'immutable',
    /domain of bus "b"/,
    { pointer: '/domain' },
  ),
  wrong(
    'a change of the message size',
    put('buses/b', { ...loopback, maxMessageSizeBytes: 100 }),
    'immutable',
    /maxMessageSizeBytes of bus "b"/,
    { pointer: '/maxMessageSizeBytes' },
  ),
  wrong(
    'a change of the backend of an attachment',
    put('attachments/a', { bus: 'b', backend: 'rng', deviceNumber: 7 }),
    'immutable',
    /backend of attachment "a"/,
    { pointer: '/backend' },
  ),
  wrong(
    'a device number taken away',
    put('attachments/a', { bus: 'b', backend: 'disk' }),
    'immutable',
    /deviceNumber/,
    { pointer: '/deviceNumber' },
  ),
  wrong(
    'a change of an attached backend',
    put('backends/disk', { ...blk, path: '/other' }),
    'in-use',
    /attachment "a"/,
  ),
  wrong('put of a config object', put('domains/conf', {}), 'config-owned', /domain "conf" comes from the config file/),
  wrong('delete of a config object', del('domains/conf'), 'config-owned', /domain "conf"/),
  wrong('delete of a domain with buses', del('domains/vm1'), 'in-use', /bus "b", bus "b2"/),
  wrong('delete of a bus with attachments', del('buses/b'), 'in-use', /attachment "a"/),
  wrong('delete of an attached backend', del('backends/disk'), 'in-use', /attachment "a"/),
  wrong(
    'a bus of an unknown domain',
    put('buses/n', { ...loopback, domain: 'nobody' }),
    'missing-reference',
    /domain "nobody"/,
    { pointer: '/domain' },
  ),
  wrong(
    'an attachment to an unknown bus',
    put('attachments/n', { bus: 'nobody', backend: 'rng' }),
    'missing-reference',
    /bus "nobody"/,
    { pointer: '/bus' },
  ),
  wrong(
    'an attachment of an unknown backend',
    put('attachments/n', { bus: 'b', backend: 'nobody' }),
    'missing-reference',
    /backend "nobody"/,
    { pointer: '/backend' },
  ),
  wrong(
    'a device number that is taken',
    put('attachments/n', { bus: 'b', backend: 'rng', deviceNumber: 7 }),
    'device-number-taken',
    /7 of bus "b" belongs to attachment "a"/,
    { pointer: '/deviceNumber' },
  ),
  wrong(
    'a writable disk for the second time',
    put('attachments/n', { bus: 'b2', backend: 'disk' }),
    'backend-busy',
    /belongs to attachment "a"/,
    { pointer: '/backend' },
  ),
  wrong(
    'a disk that the lane cannot open',
    put('attachments/missing', { bus: 'b', backend: 'gone' }),
    'backend-unusable',
    /ENOENT/,
  ),
  wrong('a bus that the lane cannot open', put('buses/busy', loopback), 'system-call', /EADDRINUSE/),
  wrong(
    'an internal error of the lane',
    put('buses/thrown', loopback),
    'internal',
    /^the request failed inside the service$/,
  ),
  wrong('a bug of ours', put('buses/bug', loopback), 'internal', /^the request failed inside the service$/),
  wrong(
    'an old revision with put',
    put('domains/vm1', { description: 'x' }, { 'if-match': '"99"' }),
    'precondition-failed',
    /revision 1, not 99/,
  ),
  wrong('an old revision with delete', del('attachments/a', { 'if-match': '"99"' }), 'precondition-failed', /not 99/),
  wrong(
    'If-None-Match on what exists',
    put('domains/vm1', {}, { 'if-none-match': '*' }),
    'precondition-failed',
    /domain "vm1" exists/,
  ),
];

const paths: Case[] = [
  wrong('the root', get('/'), 'not-found', /nothing at \//),
  wrong('an unknown path', get('/v2/domains'), 'not-found', /nothing at \/v2\/domains/),
  badParameter('a trailing slash', get('/v1/domains/'), 'id', /parameter id/),
  wrong('a path below an object', get('/v1/domains/vm1/x'), 'not-found', /nothing at/),
  wrong('a broken escape', get('/v1/domains/%zz'), 'invalid-request', /%zz/),
  wrong('put to the health check', { method: 'PUT', url: '/healthz', payload: {} }, 'method-not-allowed', /PUT/),
  badParameter('a parameter of the event stream', get('/v1/events?since=1'), 'since', /since/),
];

describe('api: every wrong call gets its problem document', () => {
  let app: FastifyInstance;
  const releases: (() => unknown)[] = [];
  before(async () => {
    app = await populated({ after: (release) => void releases.push(release) });
  });
  after(async () => {
    for (const release of releases.reverse()) await release();
  });
  for (const { name, call, ...wanted } of [...forEveryKind, ...fields, ...states, ...paths]) {
    it(name, async () => {
      assertProblem(await app.inject(call), wanted);
    });
  }

  it('and changes nothing', async () => {
    const ids = async (kind: string) =>
      (await app.inject(get(`/v1/${kind}`))).json().items.map(({ id }: { id: string }) => id);
    assert.deepEqual(await Promise.all(plural.map(ids)), [
      ['conf', 'vm1'],
      ['b', 'b2'],
      ['disk', 'gone', 'rng', 'ro'],
      ['a'],
    ]);
  });

  it('names the methods that exist', async () => {
    const wrong = await app.inject({ method: 'POST', url: '/v1/buses/b', payload: {} });
    assert.equal(wrong.headers.allow, 'DELETE, GET, HEAD, OPTIONS, PUT');
    const options = await app.inject({ method: 'OPTIONS', url: '/v1/buses?x=1' });
    assert.deepEqual([options.statusCode, options.headers.allow, options.body], [204, 'GET, HEAD, OPTIONS', '']);
    const nothing = await app.inject({ method: 'OPTIONS', url: '/nothing' });
    assertProblem(nothing, { code: 'not-found', detail: /nothing at/ });
  });
});

describe('api: limits', () => {
  it('are told as problems', async (t) => {
    const domains = Object.fromEntries(Array.from({ length: limits.domainsMax }, (_, i) => [`vm${i}`, {}]));
    const backends = Object.fromEntries(
      Array.from({ length: limits.backendsMax }, (_, i) => [`rng${i}`, { type: 'rng' as const }]),
    );
    const buses = Object.fromEntries(
      Array.from({ length: limits.busesMax }, (_, i) => [`b${i}`, { ...loopback, domain: 'vm1' }]),
    );
    const attachments = Object.fromEntries(
      Array.from({ length: limits.devicesPerBus }, (_, i) => [`a${i}`, { bus: 'b0', backend: 'rng0' }]),
    );
    const app = await makeServer(t, await startWorld(t, { configured: { domains, backends, buses, attachments } }));
    const refused = async (call: InjectOptions, detail: RegExp) => {
      assertProblem(await app.inject(call), { code: 'limit-reached', detail });
    };
    await refused(put('domains/more', {}), /256 domains/);
    await refused(put('backends/more', blk), /1024 backends/);
    await refused(put('buses/more', loopback), /256 buses/);
    await refused(put('attachments/more', { bus: 'b0', backend: 'rng1' }), /bus "b0" has 256 devices/);
    const created = await app.inject(put('attachments/more', { bus: 'b1', backend: 'rng1' }));
    assert.equal(created.statusCode, 201);
  });
});

describe('api: a service that is not ready', () => {
  it('says why and refuses changes', async (t) => {
    const world = makeWorld(t);
    const app = await makeServer(t, world);
    const starting = { code: 'unavailable', detail: /the service is starting/ } as const;
    assertProblem(await app.inject(get('/readyz')), starting);
    assertProblem(await app.inject(put('domains/vm1', {})), starting);
    assertProblem(await app.inject(del('domains/vm1')), starting);
    assert.equal((await app.inject(get('/healthz'))).statusCode, 200);
    await world.service.start();
    assert.deepEqual((await app.inject(get('/readyz'))).json(), { status: 'ready' });
    world.lane.emit({ type: 'lane-failed', reason: 'worker exited' });
    assertProblem(await app.inject(get('/readyz')), { code: 'unavailable', detail: /worker exited/ });
  });
});
