import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type { FastifyInstance, InjectOptions } from 'fastify';
import { type ErrorCode, errorRegistry, VmsgError } from '../../src/kit/errors.ts';
import { limits } from '../../src/kit/limits.ts';
import { blk, type Cleanup, loopback, makeServer, makeWorld, startWorld, type World } from './support.ts';

interface Case {
  readonly name: string;
  readonly call: InjectOptions;
  readonly code: ErrorCode;
  readonly detail: RegExp;
  readonly pointer?: string;
  readonly parameter?: string;
}

const json = { 'content-type': 'application/json' };
const put = (url: string, payload: unknown, headers: Record<string, string> = {}): InjectOptions => ({
  method: 'PUT',
  url: `/v1/${url}`,
  payload: typeof payload === 'string' ? payload : JSON.stringify(payload),
  headers: { ...json, ...headers },
});
const get = (url: string): InjectOptions => ({ method: 'GET', url });
const del = (url: string, headers: Record<string, string> = {}): InjectOptions => ({
  method: 'DELETE',
  url: `/v1/${url}`,
  headers,
});

/** What every test here starts from: config objects, and api objects that use each other. */
async function populated(t: Cleanup): Promise<{ world: World; app: FastifyInstance }> {
  const configured = { domains: { conf: {} }, backends: { ro: { ...blk, readOnly: true } } };
  const world = await startWorld(t, { configured });
  const { service, lane } = world;
  await service.put('domains', 'vm1', {});
  await service.put('buses', 'b', loopback);
  await service.put('buses', 'b2', loopback);
  await service.put('backends', 'disk', blk);
  await service.put('backends', 'gone', blk);
  await service.put('backends', 'rng', { type: 'rng' });
  await service.put('attachments', 'a', { bus: 'b', backend: 'disk', deviceNumber: 7 });
  lane.refusals.set('attach missing', new VmsgError('backend-unusable', '/srv/disk.img: ENOENT'));
  lane.refusals.set('openBus busy', new VmsgError('system-call', 'bind: EADDRINUSE'));
  lane.refusals.set('openBus thrown', new VmsgError('internal', 'secret detail at /home/me/file.js:12'));
  lane.refusals.set('openBus bug', new Error('secret detail at /home/me/file.js:12') as VmsgError);
  return { world, app: await makeServer(t, world) };
}

/** Checks the full shape of an error answer. */
function assertProblem(
  response: { statusCode: number; headers: object; body: string },
  wanted: Omit<Case, 'name' | 'call'>,
): void {
  const body = JSON.parse(response.body) as Record<string, unknown>;
  const { title, status } = errorRegistry[wanted.code];
  assert.equal(body.code, wanted.code, response.body);
  assert.match(String(body.detail), wanted.detail);
  const headers = response.headers as Record<string, string>;
  assert.deepEqual(body, {
    type: `urn:vmsg:error:${wanted.code}`,
    title,
    status,
    detail: body.detail,
    instance: `urn:vmsg:request:${headers['x-request-id']}`,
    code: wanted.code,
    ...(wanted.pointer === undefined ? {} : { pointer: wanted.pointer }),
    ...(wanted.parameter === undefined ? {} : { parameter: wanted.parameter }),
  });
  assert.equal(response.statusCode, status);
  assert.match(headers['content-type'] ?? '', /^application\/problem\+json/);
  assert.match(headers['x-request-id'] ?? '', /^run1-\d+$/);
  assert.doesNotMatch(response.body, /\.js|\.ts|node_modules/);
}

const plural = ['domains', 'buses', 'backends', 'attachments'] as const;
const good = { domains: {}, buses: loopback, backends: blk, attachments: { bus: 'b2', backend: 'gone' } };

const forEveryKind = plural.flatMap((kind): Case[] => [
  {
    name: `get of an unknown id in ${kind}`,
    call: get(`/v1/${kind}/nobody`),
    code: 'not-found',
    detail: /"nobody" does not exist/,
  },
  {
    name: `delete of an unknown id in ${kind}`,
    call: del(`${kind}/nobody`),
    code: 'not-found',
    detail: /"nobody" does not exist/,
  },
  {
    name: `a wrong id in ${kind}`,
    call: get(`/v1/${kind}/Vm1`),
    code: 'invalid-request',
    detail: /parameter id must match/,
    parameter: 'id',
  },
  {
    name: `a long id in ${kind}`,
    call: put(`${kind}/${'x'.repeat(64)}`, good[kind]),
    code: 'invalid-request',
    detail: /parameter id/,
    parameter: 'id',
  },
  {
    name: `an encoded slash in the id in ${kind}`,
    call: del(`${kind}/a%2Fb`),
    code: 'invalid-request',
    detail: /parameter id/,
    parameter: 'id',
  },
  {
    name: `an array for a body in ${kind}`,
    call: put(`${kind}/n`, [good[kind]]),
    code: 'invalid-request',
    detail: /the body must be an object/,
    pointer: '',
  },
  {
    name: `null for a body in ${kind}`,
    call: put(`${kind}/n`, 'null'),
    code: 'invalid-request',
    detail: /the body must be an object/,
    pointer: '',
  },
  {
    name: `no body in ${kind}`,
    call: { method: 'PUT', url: `/v1/${kind}/n` },
    code: 'invalid-request',
    detail: /the body must be an object/,
    pointer: '',
  },
  {
    name: `an empty body in ${kind}`,
    call: put(`${kind}/n`, ''),
    code: 'invalid-request',
    detail: /body is empty/,
    pointer: '',
  },
  {
    name: `half a body in ${kind}`,
    call: put(`${kind}/n`, '{"x": '),
    code: 'invalid-request',
    detail: /not valid JSON/,
    pointer: '',
  },
  {
    name: `an unknown field in ${kind}`,
    call: put(`${kind}/n`, { ...good[kind], colour: 1 }),
    code: 'invalid-request',
    detail: /^colour is not a known field/,
    pointer: '/colour',
  },
  {
    name: `a field to poison prototypes in ${kind}`,
    call: put(`${kind}/n`, '{"__proto__": {"x": 1}}'),
    code: 'invalid-request',
    detail: /not valid JSON/,
    pointer: '',
  },
  {
    name: `a body too large in ${kind}`,
    call: put(`${kind}/n`, { x: 'x'.repeat(limits.apiBodyMaxBytes) }),
    code: 'payload-too-large',
    detail: /at most 65536 bytes/,
  },
  {
    name: `text for a body in ${kind}`,
    call: put(`${kind}/n`, 'hello', { 'content-type': 'text/plain' }),
    code: 'unsupported-media-type',
    detail: /application\/json/,
  },
  {
    name: `a body without a type in ${kind}`,
    call: { ...put(`${kind}/n`, '{}'), headers: { 'content-type': '' } },
    code: 'unsupported-media-type',
    detail: /application\/json/,
  },
  {
    name: `POST to ${kind}`,
    call: { method: 'POST', url: `/v1/${kind}`, payload: {} },
    code: 'method-not-allowed',
    detail: /does not take POST/,
  },
  {
    name: `PATCH of one of ${kind}`,
    call: { method: 'PATCH', url: `/v1/${kind}/n`, payload: {} },
    code: 'method-not-allowed',
    detail: /does not take PATCH/,
  },
  { name: `delete of all ${kind}`, call: del(kind), code: 'method-not-allowed', detail: /does not take DELETE/ },
  {
    name: `an If-Match that does not fit in ${kind}`,
    call: put(`${kind}/n`, good[kind], { 'if-match': '"1"' }),
    code: 'precondition-failed',
    detail: /does not exist/,
  },
  {
    name: `an If-Match for any in ${kind}`,
    call: put(`${kind}/n`, good[kind], { 'if-match': '*' }),
    code: 'precondition-failed',
    detail: /does not exist/,
  },
  {
    name: `a weak If-Match in ${kind}`,
    call: put(`${kind}/n`, good[kind], { 'if-match': 'W/"1"' }),
    code: 'invalid-request',
    detail: /if-match must be/,
    parameter: 'if-match',
  },
  {
    name: `a list for If-Match in ${kind}`,
    call: del(`${kind}/n`, { 'if-match': '"1", "2"' }),
    code: 'invalid-request',
    detail: /if-match must be/,
    parameter: 'if-match',
  },
  {
    name: `an If-None-Match with a tag in ${kind}`,
    call: put(`${kind}/n`, good[kind], { 'if-none-match': '"1"' }),
    code: 'invalid-request',
    detail: /if-none-match/,
    parameter: 'if-none-match',
  },
  {
    name: `If-None-Match with delete in ${kind}`,
    call: del(`${kind}/n`, { 'if-none-match': '*' }),
    code: 'invalid-request',
    detail: /for PUT only/,
    parameter: 'if-none-match',
  },
  {
    name: `a limit of 0 in ${kind}`,
    call: get(`/v1/${kind}?limit=0`),
    code: 'invalid-request',
    detail: /limit must be >= 1/,
    parameter: 'limit',
  },
  {
    name: `a limit too large in ${kind}`,
    call: get(`/v1/${kind}?limit=1001`),
    code: 'invalid-request',
    detail: /limit must be <= 1000/,
    parameter: 'limit',
  },
  {
    name: `a limit in words in ${kind}`,
    call: get(`/v1/${kind}?limit=ten`),
    code: 'invalid-request',
    detail: /limit must be integer/,
    parameter: 'limit',
  },
  {
    name: `a limit twice in ${kind}`,
    call: get(`/v1/${kind}?limit=1&limit=2`),
    code: 'invalid-request',
    detail: /limit must be integer/,
    parameter: 'limit',
  },
  {
    name: `a wrong cursor in ${kind}`,
    call: get(`/v1/${kind}?cursor=..`),
    code: 'invalid-request',
    detail: /cursor must match/,
    parameter: 'cursor',
  },
  {
    name: `an unknown parameter in ${kind}`,
    call: get(`/v1/${kind}?page=2`),
    code: 'invalid-request',
    detail: /page is not a known field/,
    parameter: 'page',
  },
  {
    name: `a parameter of one of ${kind}`,
    call: get(`/v1/${kind}/n?x=1`),
    code: 'invalid-request',
    detail: /x is not a known field/,
    parameter: 'x',
  },
]);

const invalid = (name: string, call: InjectOptions, pointer: string, detail: RegExp): Case => ({
  name,
  call,
  code: 'invalid-request',
  pointer,
  detail,
});

const fields: Case[] = [
  invalid('a description that is a number', put('domains/n', { description: 1 }), '/description', /must be string/),
  invalid('a long description', put('domains/n', { description: 'x'.repeat(201) }), '/description', /more than 200/),
  invalid(
    'a bus without a domain',
    put('buses/n', { transport: 'loopback', role: 'driver' }),
    '/domain',
    /^domain is missing/,
  ),
  invalid(
    'a bus with an unknown transport',
    put('buses/n', { ...loopback, transport: 'pci' }),
    '/transport',
    /must be one of "loopback"/,
  ),
  invalid(
    'a bus with an unknown role',
    put('buses/n', { ...loopback, role: 'device' }),
    '/role',
    /must be one of "driver"/,
  ),
  invalid(
    'a small message size',
    put('buses/n', { ...loopback, maxMessageSizeBytes: 51 }),
    '/maxMessageSizeBytes',
    />= 52/,
  ),
  invalid(
    'a large message size',
    put('buses/n', { ...loopback, maxMessageSizeBytes: 265 }),
    '/maxMessageSizeBytes',
    /<= 264/,
  ),
  invalid(
    'half a message size',
    put('buses/n', { ...loopback, maxMessageSizeBytes: 64.5 }),
    '/maxMessageSizeBytes',
    /integer/,
  ),
  invalid('uids that are no list', put('buses/n', { ...loopback, admittedUids: 0 }), '/admittedUids', /array/),
  invalid('a negative uid', put('buses/n', { ...loopback, admittedUids: [0, -1] }), '/admittedUids/1', />= 0/),
  invalid(
    'the uid that means nobody',
    put('buses/n', { ...loopback, admittedUids: [0xffff_ffff] }),
    '/admittedUids/0',
    /<=/,
  ),
  invalid('a backend without a type', put('backends/n', { path: '/x' }), '/type', /^type is missing/),
  invalid('a backend of an unknown type', put('backends/n', { type: 'net' }), '/type', /must be one of "blk", "rng"/),
  invalid('a disk without a path', put('backends/n', { type: 'blk' }), '/path', /^path is missing/),
  invalid('a relative path', put('backends/n', { type: 'blk', path: 'disk.img' }), '/path', /must match/),
  invalid('a path with a zero byte', put('backends/n', { type: 'blk', path: '/a\u0000b' }), '/path', /must match/),
  invalid('a long path', put('backends/n', { type: 'blk', path: `/${'x'.repeat(4095)}` }), '/path', /more than 4095/),
  invalid('readOnly in words', put('backends/n', { ...blk, readOnly: 'yes' }), '/readOnly', /boolean/),
  invalid('a long serial', put('backends/n', { ...blk, serial: 'x'.repeat(21) }), '/serial', /must match/),
  invalid('a path for rng', put('backends/n', { type: 'rng', path: '/x' }), '/path', /not a known field/),
  invalid('an attachment without a bus', put('attachments/n', { backend: 'disk' }), '/bus', /^bus is missing/),
  invalid('an attachment without a backend', put('attachments/n', { bus: 'b' }), '/backend', /^backend is missing/),
  invalid(
    'a negative device number',
    put('attachments/n', { bus: 'b', backend: 'rng', deviceNumber: -1 }),
    '/deviceNumber',
    />= 0/,
  ),
  invalid(
    'a large device number',
    put('attachments/n', { bus: 'b', backend: 'rng', deviceNumber: 65536 }),
    '/deviceNumber',
    /<= 65535/,
  ),
  invalid(
    'a device number as text',
    put('attachments/n', { bus: 'b', backend: 'rng', deviceNumber: '1' }),
    '/deviceNumber',
    /integer/,
  ),
];

const states: Case[] = [
  {
    name: 'a change of the domain of a bus',
    call: put('buses/b', { ...loopback, domain: 'conf' }),
    code: 'immutable',
    detail: /domain of bus "b"/,
    pointer: '/domain',
  },
  {
    name: 'a change of the message size',
    call: put('buses/b', { ...loopback, maxMessageSizeBytes: 100 }),
    code: 'immutable',
    detail: /maxMessageSizeBytes of bus "b"/,
    pointer: '/maxMessageSizeBytes',
  },
  {
    name: 'a change of the backend of an attachment',
    call: put('attachments/a', { bus: 'b', backend: 'rng', deviceNumber: 7 }),
    code: 'immutable',
    detail: /backend of attachment "a"/,
    pointer: '/backend',
  },
  {
    name: 'a device number taken away',
    call: put('attachments/a', { bus: 'b', backend: 'disk' }),
    code: 'immutable',
    detail: /deviceNumber/,
    pointer: '/deviceNumber',
  },
  {
    name: 'a change of an attached backend',
    call: put('backends/disk', { ...blk, path: '/other' }),
    code: 'in-use',
    detail: /attachment "a"/,
  },
  {
    name: 'put of a config object',
    call: put('domains/conf', {}),
    code: 'config-owned',
    detail: /domain "conf" comes from the config file/,
  },
  { name: 'delete of a config object', call: del('domains/conf'), code: 'config-owned', detail: /domain "conf"/ },
  { name: 'delete of a domain with buses', call: del('domains/vm1'), code: 'in-use', detail: /bus "b", bus "b2"/ },
  { name: 'delete of a bus with attachments', call: del('buses/b'), code: 'in-use', detail: /attachment "a"/ },
  { name: 'delete of an attached backend', call: del('backends/disk'), code: 'in-use', detail: /attachment "a"/ },
  {
    name: 'a bus of an unknown domain',
    call: put('buses/n', { ...loopback, domain: 'nobody' }),
    code: 'missing-reference',
    detail: /domain "nobody"/,
    pointer: '/domain',
  },
  {
    name: 'an attachment to an unknown bus',
    call: put('attachments/n', { bus: 'nobody', backend: 'rng' }),
    code: 'missing-reference',
    detail: /bus "nobody"/,
    pointer: '/bus',
  },
  {
    name: 'an attachment of an unknown backend',
    call: put('attachments/n', { bus: 'b', backend: 'nobody' }),
    code: 'missing-reference',
    detail: /backend "nobody"/,
    pointer: '/backend',
  },
  {
    name: 'a device number that is taken',
    call: put('attachments/n', { bus: 'b', backend: 'rng', deviceNumber: 7 }),
    code: 'device-number-taken',
    detail: /7 of bus "b" belongs to attachment "a"/,
    pointer: '/deviceNumber',
  },
  {
    name: 'a writable disk for the second time',
    call: put('attachments/n', { bus: 'b2', backend: 'disk' }),
    code: 'backend-busy',
    detail: /belongs to attachment "a"/,
    pointer: '/backend',
  },
  {
    name: 'a disk that the lane cannot open',
    call: put('attachments/missing', { bus: 'b', backend: 'gone' }),
    code: 'backend-unusable',
    detail: /ENOENT/,
  },
  {
    name: 'a bus that the lane cannot open',
    call: put('buses/busy', loopback),
    code: 'system-call',
    detail: /EADDRINUSE/,
  },
  {
    name: 'an internal error of the lane',
    call: put('buses/thrown', loopback),
    code: 'internal',
    detail: /^the request failed inside the service$/,
  },
  {
    name: 'a bug of ours',
    call: put('buses/bug', loopback),
    code: 'internal',
    detail: /^the request failed inside the service$/,
  },
  {
    name: 'an old revision with put',
    call: put('domains/vm1', { description: 'x' }, { 'if-match': '"99"' }),
    code: 'precondition-failed',
    detail: /revision 1, not 99/,
  },
  {
    name: 'an old revision with delete',
    call: del('attachments/a', { 'if-match': '"99"' }),
    code: 'precondition-failed',
    detail: /not 99/,
  },
  {
    name: 'If-None-Match on what exists',
    call: put('domains/vm1', {}, { 'if-none-match': '*' }),
    code: 'precondition-failed',
    detail: /domain "vm1" exists/,
  },
];

const paths: Case[] = [
  { name: 'the root', call: get('/'), code: 'not-found', detail: /nothing at \// },
  { name: 'an unknown path', call: get('/v2/domains'), code: 'not-found', detail: /nothing at \/v2\/domains/ },
  {
    name: 'a trailing slash',
    call: get('/v1/domains/'),
    code: 'invalid-request',
    detail: /parameter id/,
    parameter: 'id',
  },
  { name: 'a path below an object', call: get('/v1/domains/vm1/x'), code: 'not-found', detail: /nothing at/ },
  { name: 'a broken escape', call: get('/v1/domains/%zz'), code: 'invalid-request', detail: /%zz/ },
  {
    name: 'put to the health check',
    call: { method: 'PUT', url: '/healthz', payload: {} },
    code: 'method-not-allowed',
    detail: /PUT/,
  },
  {
    name: 'a parameter of the event stream',
    call: get('/v1/events?since=1'),
    code: 'invalid-request',
    detail: /since/,
    parameter: 'since',
  },
];

describe('api: every wrong call gets its problem document', () => {
  let app: FastifyInstance;
  const releases: (() => unknown)[] = [];
  before(async () => {
    ({ app } = await populated({ after: (release) => void releases.push(release) }));
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
