import assert from 'node:assert/strict';
import http from 'node:http';
import net from 'node:net';
import path from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { TokenAccess } from '../../api/access.ts';
import { listen, listenTcp } from '../../api/listen.ts';
import { ApiState } from '../../api/server.ts';
import { type ErrorCode, VmsgError } from '../../src/kit/errors.ts';
import { limits } from '../../src/kit/limits.ts';
import { assertProblem } from './problem-cases.ts';
import { parseMetrics } from './prometheus.ts';
import type { World } from './support.ts';
import { type Answer, makeServer, partsOf, request, settle, startWorld, temporaryDirectory } from './support.ts';

const token = 'a-token-that-is-long-enough';
const bearer = { authorization: `Bearer ${token}` };

interface Both {
  readonly world: World;
  readonly socket: string;
  readonly port: number;
  readonly call: (url: string, headers?: Headers, method?: string) => Promise<Answer>;
  readonly close: () => Promise<void>;
}

type Headers = Record<string, string>;

async function both(t: TestContext, host = '127.0.0.1'): Promise<Both> {
  const world = await startWorld(t);
  const state = new ApiState(partsOf(world));
  const local = await makeServer(t, world, state);
  const guarded = await makeServer(t, world, state, new TokenAccess(token));
  const socket = path.join(temporaryDirectory(t), 'api.sock');
  await listen(local, { path: socket, mode: 0o600 });
  const port = await listenTcp(guarded, { host, port: 0 });
  const call = (url: string, headers: Headers = bearer, method = 'GET') => overTcp(host, port, method, url, headers);
  return { world, socket, port, call, close: () => guarded.close() };
}

function overTcp(host: string, port: number, method: string, url: string, headers: Headers): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const outgoing = http.request({ host, port, method, path: url, headers, agent: false }, (response) => {
      let body = '';
      response.setEncoding('utf8');
      response.on('data', (chunk: string) => {
        body += chunk;
      });
      response.on('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers, body }));
    });
    outgoing.on('error', reject);
    outgoing.end();
  });
}

const asResponse = ({ status, ...rest }: Answer) => ({ statusCode: status, ...rest });

const everyPath = [
  ['GET', '/healthz'],
  ['HEAD', '/healthz'],
  ['GET', '/readyz'],
  ['GET', '/metrics'],
  ['GET', '/v1/openapi.json'],
  ['GET', '/v1/events'],
  ['GET', '/v1/channels'],
  ['GET', '/v1/channels/b/records'],
  ['GET', '/v1/shares'],
  ['GET', '/v1/domains'],
  ['PUT', '/v1/domains/vm1'],
  ['DELETE', '/v1/domains/vm1'],
  ['OPTIONS', '/v1/domains'],
  ['POST', '/v1/domains'],
  ['GET', '/nothing'],
  ['GET', '/v1/domains/%zz'],
] as const;

describe('api: over TCP', () => {
  it('nothing at all answers without the token', async (t) => {
    const { call, world } = await both(t);
    for (const [method, url] of everyPath) {
      const answer = await call(url, {}, method);
      assert.equal(answer.status, 401, `${method} ${url}`);
      if (method === 'HEAD') continue;
      assertProblem(asResponse(answer), { code: 'unauthorized', detail: /header Authorization is missing/ });
    }
    assert.equal(world.lane.calls.filter(({ name }) => name !== 'inspect').length, 0);
    assert.equal(world.lane.count('inspect'), 0);
  });

  it('with the token the same answers as over the Unix socket', async (t) => {
    const { call, socket } = await both(t);
    const created = await call('/v1/domains/vm1', { ...bearer, 'content-type': 'application/json' }, 'PUT');
    assert.equal(created.status, 400, 'there is no body');
    assert.equal((await request(socket, 'PUT', '/v1/domains/vm1', {})).status, 201);
    for (const [method, url] of everyPath) {
      if (url === '/v1/events') continue;
      const [tcp, unix] = [await call(url, bearer, method), await request(socket, method, url)];
      if (method !== 'DELETE') assert.equal(tcp.status, unix.status, `${method} ${url}`);
      assert.notEqual(tcp.status, 401);
    }
    assert.equal((await call('/v1/domains/vm1')).status, 404, 'it was deleted over TCP');
  });

  const refusals: [what: string, headers: Headers, code: ErrorCode, detail: RegExp][] = [
    ['no token', {}, 'unauthorized', /is missing/],
    ['an empty header', { authorization: '' }, 'unauthorized', /must be Bearer/],
    ['another scheme', { authorization: `Basic ${token}` }, 'unauthorized', /must be Bearer/],
    ['only the scheme', { authorization: 'Bearer ' }, 'unauthorized', /must be Bearer/],
    ['a wrong token', { authorization: 'Bearer wrong' }, 'unauthorized', /the token is wrong/],
    ['a longer token', { authorization: `Bearer ${token}x` }, 'unauthorized', /the token is wrong/],
    ['a shorter token', { authorization: `Bearer ${token.slice(1)}` }, 'unauthorized', /the token is wrong/],
    ['a token in capitals', { authorization: `Bearer ${token.toUpperCase()}` }, 'unauthorized', /is wrong/],
    ['two tokens', { authorization: `Bearer ${token}, Bearer ${token}` }, 'unauthorized', /must be Bearer/],
    ['the name of a web page', { ...bearer, host: 'attacker.example' }, 'forbidden', /header Host/],
    ['a name that begins well', { ...bearer, host: 'localhost.attacker.example' }, 'forbidden', /header Host/],
    ['a name that ends well', { ...bearer, host: 'attacker.example:80@localhost' }, 'forbidden', /header Host/],
    ['another address', { ...bearer, host: '192.0.2.1:8080' }, 'forbidden', /header Host/],
    ['an address of another form', { ...bearer, host: '127.1' }, 'forbidden', /header Host/],
    ['a port that is none', { ...bearer, host: 'localhost:http' }, 'forbidden', /header Host/],
    ['a wrong Host before a missing token', { host: 'attacker.example' }, 'forbidden', /header Host/],
    ['the origin of a web page', { ...bearer, origin: 'http://attacker.example' }, 'forbidden', /header Origin/],
    ['no origin', { ...bearer, origin: 'null' }, 'forbidden', /header Origin/],
    ['another port', { ...bearer, origin: 'http://localhost:81', host: 'localhost:80' }, 'forbidden', /Origin/],
    [
      'another scheme of origin',
      { ...bearer, origin: 'https://localhost:80', host: 'localhost:80' },
      'forbidden',
      /Or/,
    ],
  ];

  it('refuses', async (t) => {
    const { call } = await both(t);
    for (const [what, headers, code, detail] of refusals) {
      await t.test(what, async () => {
        assertProblem(asResponse(await call('/healthz', headers)), { code, detail });
      });
    }
  });

  it('takes every name of this machine', async (t) => {
    const { call, port } = await both(t);
    for (const host of [
      'localhost',
      `localhost:${port}`,
      'LOCALHOST:1',
      `127.0.0.1:${port}`,
      '[::1]',
      `[::1]:${port}`,
    ]) {
      assert.equal((await call('/healthz', { ...bearer, host })).status, 200, host);
      assert.equal((await call('/healthz', { ...bearer, host, origin: `http://${host.toLowerCase()}` })).status, 200);
    }
    assert.equal((await call('/healthz', { authorization: `bearer   ${token}` })).status, 200);
  });

  it('refuses a request without a host, and one that names another host in its first line', async (t) => {
    const { port } = await both(t);
    const raw = (text: string): Promise<string> =>
      new Promise((resolve, reject) => {
        const connection = net.connect(port, '127.0.0.1', () => connection.write(text));
        let answer = '';
        connection.on('data', (chunk) => {
          answer += String(chunk);
        });
        connection.on('error', reject);
        connection.on('close', () => resolve(answer));
      });
    const auth = `Authorization: Bearer ${token}\r\nConnection: close\r\n`;
    assert.match(await raw(`GET /healthz HTTP/1.0\r\n${auth}\r\n`), /^HTTP\/1\.1 403 .*"code":"forbidden"/s);
    assert.match(await raw(`GET /healthz HTTP/1.1\r\nHost:\r\n${auth}\r\n`), /^HTTP\/1\.1 403 /);
    const absolute = `GET http://attacker.example/healthz HTTP/1.1\r\nHost: attacker.example\r\n${auth}\r\n`;
    assert.match(await raw(absolute), /^HTTP\/1\.1 403 /);
  });

  it('works on ::1', async (t) => {
    const { call } = await both(t, '::1');
    assert.equal((await call('/healthz')).status, 200);
    assertProblem(asResponse(await call('/healthz', {})), { code: 'unauthorized', detail: /missing/ });
  });

  it('counts calls together with those over the socket', async (t) => {
    const { call, socket } = await both(t);
    await call('/healthz');
    await call('/healthz', {});
    await request(socket, 'GET', '/healthz');
    const { samples = [] } = parseMetrics((await call('/metrics')).body).get('vmsg_api_requests_total') ?? {};
    const counts = Object.fromEntries(samples.map(({ labels, value }) => [`${labels.route} ${labels.status}`, value]));
    assert.deepEqual(counts, { '/healthz 2xx': 2, '/healthz 4xx': 1 });
    const ids = [(await call('/healthz')).headers, (await request(socket, 'GET', '/healthz')).headers];
    assert.notEqual(ids[0]?.['x-request-id'], ids[1]?.['x-request-id']);
  });

  it('says which address is taken', async (t) => {
    const { port, world } = await both(t);
    const second = await makeServer(t, world);
    await assert.rejects(listenTcp(second, { host: '127.0.0.1', port }), (error) => {
      assert.ok(error instanceof VmsgError && error.code === 'system-call');
      assert.match(error.message, new RegExp(`bind 127\\.0\\.0\\.1 port ${port}: .*EADDRINUSE`));
      return true;
    });
  });

  it('a client that does not finish its request cannot keep the server from closing', async (t) => {
    const { world, port, close } = await both(t);
    const connection = net.connect(port, '127.0.0.1');
    const released = new Promise((resolve) => connection.on('close', resolve));
    connection.on('error', () => {});
    // Only the head of a request: the server waits for the rest.
    connection.write(`PUT /v1/domains/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${token}\r\n`);
    connection.write('Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{');
    await settle();
    const closed = close();
    while (world.clock.pending === 0) await settle();
    await world.clock.advance(limits.apiCloseTimeoutMs);
    await closed;
    connection.resume();
    await released;
    assert.equal(world.clock.pending, 0);
  });
});
