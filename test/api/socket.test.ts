import assert from 'node:assert/strict';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import type { FastifyInstance } from 'fastify';
import { listen } from '../../api/listen.ts';
import { type ErrorCode, VmsgError } from '../../src/kit/errors.ts';
import { blk, loopback, makeServer, request, settle, startWorld, temporaryDirectory, type World } from './support.ts';

interface Listening {
  readonly world: World;
  readonly app: FastifyInstance;
  readonly socket: string;
}

async function listening(t: TestContext, mode = 0o660): Promise<Listening> {
  const world = await startWorld(t);
  const app = await makeServer(t, world);
  const socket = path.join(temporaryDirectory(t), 'api.sock');
  await listen(app, { path: socket, mode });
  return { world, app, socket };
}

/** Sends bytes as they are and gives back all that comes until the end. */
function raw(socket: string, text: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const connection = net.connect(socket, () => connection.write(text));
    let answer = '';
    connection.setEncoding('utf8');
    connection.on('data', (chunk: string) => {
      answer += chunk;
    });
    connection.on('error', reject);
    connection.on('close', () => resolve(answer));
  });
}

const problem = (body: string): { code: ErrorCode; status: number; detail: string } => JSON.parse(body);

describe('api: over a Unix socket', () => {
  it('the whole life of an attachment', async (t) => {
    const { socket, world } = await listening(t);
    const put = (url: string, body: object) => request(socket, 'PUT', `/v1/${url}`, body);
    assert.equal((await put('domains/vm1', {})).status, 201);
    assert.equal((await put('buses/b', loopback)).status, 201);
    assert.equal((await put('backends/disk', blk)).status, 201);
    const created = await put('attachments/a', { bus: 'b', backend: 'disk' });
    assert.deepEqual([created.status, created.headers.location], [201, '/v1/attachments/a']);
    assert.equal((await put('attachments/a', { bus: 'b', backend: 'disk' })).status, 200);
    const refused = await request(socket, 'DELETE', '/v1/buses/b');
    assert.deepEqual([refused.status, problem(refused.body).code], [409, 'in-use']);
    assert.equal((await request(socket, 'DELETE', '/v1/attachments/a')).status, 204);
    assert.equal((await request(socket, 'DELETE', '/v1/buses/b')).status, 204);
    assert.equal(world.lane.buses.size, 0);
  });

  it('many clients at once agree on one outcome', async (t) => {
    const { socket, world } = await listening(t);
    await request(socket, 'PUT', '/v1/domains/vm1', {});
    await request(socket, 'PUT', '/v1/buses/b', loopback);
    await request(socket, 'PUT', '/v1/backends/disk', blk);
    const same = Array.from({ length: 20 }, () =>
      request(socket, 'PUT', '/v1/attachments/a', { bus: 'b', backend: 'disk' }),
    );
    const statuses = (await Promise.all(same)).map(({ status }) => status).sort((a, b) => a - b);
    assert.deepEqual(statuses, [...Array.from({ length: 19 }, () => 200), 201]);
    const mixed = await Promise.all(
      Array.from({ length: 40 }, (_, i) =>
        i % 2 === 0
          ? request(socket, 'DELETE', '/v1/attachments/a')
          : request(socket, 'PUT', '/v1/attachments/a', { bus: 'b', backend: 'disk' }),
      ),
    );
    for (const { status } of mixed) assert.ok([200, 201, 204, 404].includes(status), `${status}`);
    const { status } = await request(socket, 'GET', '/v1/attachments/a');
    assert.equal(world.lane.device('b', 'a') !== undefined, status === 200);
    assert.deepEqual(world.lane.violations, []);
  });

  it('answers what is not HTTP with a problem too', async (t) => {
    const { socket } = await listening(t);
    for (const [sent, detail] of [
      ['rubbish\r\n\r\n', /not HTTP/],
      [`GET /healthz HTTP/1.1\r\nHost: x\r\nX: ${'x'.repeat(20_000)}\r\n\r\n`, /too long/],
      ['GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n', /not HTTP/],
    ] as const) {
      const answer = await raw(socket, sent);
      const [head = '', body = ''] = answer.split('\r\n\r\n');
      assert.match(head, /^HTTP\/1\.1 400 Bad Request\r\n/);
      assert.match(head, /Content-Type: application\/problem\+json/);
      assert.equal(problem(body).code, 'invalid-request');
      assert.match(problem(body).detail, detail);
    }
    assert.equal((await request(socket, 'GET', '/healthz')).status, 200);
  });

  it('refuses a body larger than allowed whatever its length is said to be', async (t) => {
    const { socket } = await listening(t);
    const chunk = `10000\r\n${'x'.repeat(0x10000)}\r\n`;
    const head = 'PUT /v1/domains/x HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n';
    const chunked = await raw(
      socket,
      `${head}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n${chunk}${chunk}0\r\n\r\n`,
    );
    assert.match(chunked, /^HTTP\/1\.1 413 /);
    assert.match(chunked, /"code":"payload-too-large"/);
  });
});

describe('api: the socket', () => {
  const refusal = (text: RegExp) => (error: unknown) => {
    assert.ok(error instanceof VmsgError && error.code === 'system-call', String(error));
    assert.match(error.message, text);
    return true;
  };

  it('has the wanted permissions and goes away with the server', async (t) => {
    const mask = process.umask();
    const { app, socket } = await listening(t, 0o606);
    assert.equal(fs.statSync(socket).mode & 0o777, 0o606);
    assert.equal(process.umask(), mask);
    await app.close();
    assert.equal(fs.existsSync(socket), false);
  });

  it('replaces one that nobody listens on', async (t) => {
    const directory = temporaryDirectory(t);
    const socket = path.join(directory, 'api.sock');
    const dead = net.createServer();
    await new Promise<void>((resolve) => dead.listen(path.join(directory, 'first'), resolve));
    fs.renameSync(path.join(directory, 'first'), socket);
    await new Promise((resolve) => dead.close(resolve));
    assert.ok(fs.lstatSync(socket).isSocket());
    const app = await makeServer(t, await startWorld(t));
    await listen(app, { path: socket, mode: 0o600 });
    assert.equal((await request(socket, 'GET', '/healthz')).status, 200);
  });

  it('leaves one that answers, and what is no socket', async (t) => {
    const { socket } = await listening(t);
    const second = await makeServer(t, await startWorld(t));
    await assert.rejects(listen(second, { path: socket, mode: 0o600 }), refusal(/EADDRINUSE, another service answers/));
    assert.equal((await request(socket, 'GET', '/healthz')).status, 200);
    const file = path.join(path.dirname(socket), 'file');
    fs.writeFileSync(file, 'kept');
    await assert.rejects(listen(second, { path: file, mode: 0o600 }), refusal(/EEXIST/));
    assert.equal(fs.readFileSync(file, 'utf8'), 'kept');
    await assert.rejects(
      listen(second, { path: '/nowhere/at/all.sock', mode: 0o600 }),
      refusal(/\/nowhere\/at\/all\.sock: .*ENOENT|EACCES/),
    );
    await assert.rejects(listen(second, { path: `/${'x'.repeat(107)}`, mode: 0o600 }), refusal(/ENAMETOOLONG/));
  });

  it('lets a call under way finish when the server closes', async (t) => {
    const { app, socket, world } = await listening(t);
    await request(socket, 'PUT', '/v1/domains/vm1', {});
    const release = world.lane.hold('openBus');
    const put = request(socket, 'PUT', '/v1/buses/b', loopback);
    while (world.lane.count('openBus') === 0) await settle();
    const closed = app.close();
    await settle();
    release();
    assert.equal((await put).status, 201);
    await closed;
  });
});
