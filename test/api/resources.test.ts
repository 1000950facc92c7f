import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import type { FastifyInstance } from 'fastify';
import { openApiText } from '../../api/openapi.ts';
import { findProblem, type Kind, kindSchemas, kinds } from '../../src/bridge/commands.ts';
import { blk, loopback, makeServer, startWorld, type World } from './support.ts';

/** Root of the package: tests run in dist/test/api. */
const root = path.resolve(import.meta.dirname, '../../..');

async function ready(t: TestContext): Promise<{ world: World; app: FastifyInstance }> {
  const world = await startWorld(t);
  return { world, app: await makeServer(t, world) };
}

const specs: readonly [Kind, string, object][] = [
  ['domains', 'vm1', { description: 'first' }],
  ['buses', 'b', loopback],
  ['backends', 'disk', blk],
  ['attachments', 'a', { bus: 'b', backend: 'disk', deviceNumber: 65535 }],
];

describe('api: objects', () => {
  it('are created, read, put again and deleted', async (t) => {
    const { app, world } = await ready(t);
    for (const [kind, id, spec] of specs) {
      const url = `/v1/${kind}/${id}`;
      const created = await app.inject({ method: 'PUT', url, payload: spec });
      assert.equal(created.statusCode, 201, created.body);
      assert.equal(created.headers.location, url);
      assert.equal(created.headers['cache-control'], 'no-store');
      assert.match(String(created.headers['content-type']), /^application\/json/);
      const resource = created.json();
      assert.equal(created.headers.etag, `"${resource.revision}"`);
      assert.deepEqual(resource.spec, spec);
      assert.deepEqual([resource.id, resource.kind, resource.origin], [id, kind, 'api']);
      assert.equal(findProblem(kindSchemas[kind].status, resource.status), null);
      const again = await app.inject({ method: 'PUT', url, payload: spec });
      assert.equal(again.statusCode, 200);
      assert.equal(again.headers.location, undefined);
      assert.equal(again.headers.etag, created.headers.etag);
      const got = await app.inject({ method: 'GET', url });
      assert.equal(got.statusCode, 200);
      assert.equal(got.headers.etag, created.headers.etag);
      assert.deepEqual(got.json(), again.json());
      const head = await app.inject({ method: 'HEAD', url });
      assert.deepEqual([head.statusCode, head.body, head.headers.etag], [200, '', created.headers.etag]);
    }
    const a = (await app.inject('/v1/attachments/a')).json();
    assert.deepEqual([a.status.state, a.status.deviceNumber, a.status.deviceType], ['active', 65535, 'blk']);
    for (const [kind, id] of [...specs].reverse()) {
      const url = `/v1/${kind}/${id}`;
      const gone = await app.inject({ method: 'DELETE', url });
      assert.deepEqual([gone.statusCode, gone.body], [204, '']);
      assert.equal((await app.inject(url)).statusCode, 404);
    }
    assert.equal(world.lane.buses.size, 0);
    assert.deepEqual(world.lane.violations, []);
  });

  it('may change where the rules say so', async (t) => {
    const { app } = await ready(t);
    const put = (url: string, payload: object, headers = {}) => app.inject({ method: 'PUT', url, payload, headers });
    const first = await put('/v1/domains/vm1', {});
    const second = await put('/v1/domains/vm1', { description: 'new' }, { 'if-match': String(first.headers.etag) });
    assert.equal(second.statusCode, 200);
    assert.notEqual(second.headers.etag, first.headers.etag);
    assert.equal((await app.inject('/v1/domains/vm1')).json().spec.description, 'new');
    await put('/v1/backends/x', blk);
    const replaced = await put('/v1/backends/x', { type: 'rng' });
    assert.deepEqual([replaced.statusCode, replaced.json().status.deviceType], [200, 'rng']);
  });

  it('count an absent field as its default', async (t) => {
    const { app } = await ready(t);
    const put = (url: string, payload: object) => app.inject({ method: 'PUT', url, payload });
    await put('/v1/domains/vm1', {});
    const bus = await put('/v1/buses/b', loopback);
    const same = await put('/v1/buses/b', { ...loopback, maxMessageSizeBytes: 64 });
    assert.deepEqual([same.statusCode, same.headers.etag], [200, bus.headers.etag]);
    assert.deepEqual(same.json().spec, loopback);
  });

  it('get a new ETag when they are made anew', async (t) => {
    const { app } = await ready(t);
    const put = () =>
      app.inject({ method: 'PUT', url: '/v1/domains/vm1', payload: {}, headers: { 'if-none-match': '*' } });
    const { etag } = (await put()).headers;
    const removed = await app.inject({
      method: 'DELETE',
      url: '/v1/domains/vm1',
      headers: { 'if-match': String(etag) },
    });
    assert.equal(removed.statusCode, 204);
    assert.notEqual((await put()).headers.etag, etag);
  });

  it('may share what can be shared', async (t) => {
    const { app } = await ready(t);
    const put = (url: string, payload: object) => app.inject({ method: 'PUT', url: `/v1/${url}`, payload });
    await put('domains/vm1', {});
    await put('buses/b', loopback);
    await put('backends/ro', { ...blk, readOnly: true });
    await put('backends/rng', { type: 'rng' });
    for (const [id, backend] of [
      ['a', 'ro'],
      ['b', 'ro'],
      ['c', 'rng'],
      ['d', 'rng'],
    ] as const) {
      assert.equal((await put(`attachments/${id}`, { bus: 'b', backend })).statusCode, 201);
    }
    assert.deepEqual((await app.inject('/v1/backends/ro')).json().status.attachments, ['a', 'b']);
    assert.deepEqual((await app.inject('/v1/domains/vm1')).json().status.buses, ['b']);
  });

  it('are listed in pages, sorted, without gaps while objects come and go', async (t) => {
    const { app } = await ready(t);
    for (const id of ['c', 'a', 'e', 'b', 'd', 'constructor']) {
      await app.inject({ method: 'PUT', url: `/v1/domains/${id}`, payload: {} });
    }
    const ids: string[] = [];
    let cursor: string | null = null;
    let pages = 0;
    do {
      const query: string = cursor === null ? '' : `&cursor=${cursor}`;
      const page = (await app.inject(`/v1/domains?limit=2${query}`)).json();
      ids.push(...page.items.map(({ id }: { id: string }) => id));
      cursor = page.next;
      pages += 1;
      if (pages === 1) await app.inject({ method: 'DELETE', url: '/v1/domains/b' });
    } while (cursor !== null);
    assert.deepEqual(ids, ['a', 'b', 'c', 'constructor', 'd', 'e']);
    assert.equal(pages, 3);
    const all = (await app.inject('/v1/domains')).json();
    assert.deepEqual([all.items.length, all.next], [5, null]);
  });
});

describe('api: OpenAPI', () => {
  it('is served as it is checked in', async (t) => {
    const { app } = await ready(t);
    const checkedIn = readFileSync(path.join(root, 'api/openapi.json'), 'utf8');
    const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'));
    assert.equal(await openApiText(version), checkedIn, 'run `npm run generate` and look at what changed');
    const served = await app.inject('/v1/openapi.json');
    assert.equal(served.headers['content-type'], 'application/json; charset=utf-8');
    assert.equal(served.body, checkedIn);
    assert.deepEqual([served.json().openapi, served.json().info.version], ['3.1.0', version]);
  });

  it('resolves all its references and tells the errors of every call', async (t) => {
    const { app } = await ready(t);
    const document = (await app.inject('/v1/openapi.json')).json();
    for (const [, name] of JSON.stringify(document).matchAll(/"#\/components\/schemas\/([^"]+)"/g)) {
      assert.ok(document.components.schemas[name!], name);
    }
    for (const kind of kinds) {
      const { put, get, delete: remove } = document.paths[`/v1/${kind}/{id}`];
      assert.deepEqual(Object.keys(get.responses), ['200', '400', '401', '403', '404', '500', '503', '504']);
      for (const status of ['200', '201', '400', '409', '412', '413', '415', '500', '503', '504'])
        assert.ok(put.responses[status], status);
      for (const status of ['204', '404', '409', '412']) assert.ok(remove.responses[status], status);
      assert.match(put.responses['409'].description, /`config-owned`/);
    }
    for (const [url, operations] of Object.entries<Record<string, { responses: object }>>(document.paths)) {
      for (const { responses } of Object.values(operations)) {
        assert.ok('401' in responses && '403' in responses, `${url} says what happens without a token`);
      }
    }
    assert.deepEqual(document.security, [{}, { token: [] }]);
  });
});
