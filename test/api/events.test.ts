import assert from 'node:assert/strict';
import http from 'node:http';
import path from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { TokenAccess } from '../../api/access.ts';
import { listen, listenTcp } from '../../api/listen.ts';
import { ApiState } from '../../api/server.ts';
import type { ServiceEvent } from '../../src/bridge/events.ts';
import { limits } from '../../src/kit/limits.ts';
import { makeServer, partsOf, request, settle, startWorld, temporaryDirectory, type World } from './support.ts';

type Where = Pick<http.RequestOptions, 'socketPath' | 'host' | 'port' | 'headers'>;

interface Watched {
  readonly world: World;
  readonly socket: string;
  readonly state: ApiState;
  readonly close: () => Promise<void>;
}

async function watched(t: TestContext): Promise<Watched> {
  const world = await startWorld(t);
  const state = new ApiState(partsOf(world));
  const app = await makeServer(t, world, state);
  const socket = path.join(temporaryDirectory(t), 'api.sock');
  await listen(app, { path: socket, mode: 0o600 });
  return { world, socket, state, close: () => app.close() };
}

/** The same service on a Unix socket and on TCP. */
async function watchedTwice(t: TestContext): Promise<Watched & { readonly tcp: Where }> {
  const unix = await watched(t);
  const token = 'a-token-that-is-long-enough';
  const app = await makeServer(t, unix.world, unix.state, new TokenAccess(token));
  const port = await listenTcp(app, { host: '127.0.0.1', port: 0 });
  return { ...unix, tcp: { host: '127.0.0.1', port, headers: { authorization: `Bearer ${token}` } } };
}

/** A client of the event stream. */
class Client {
  text = '';
  ended = false;
  /** Of the events that have arrived as a whole. */
  readonly ids: string[] = [];
  readonly events: ServiceEvent[] = [];
  #rest = '';
  readonly response: http.IncomingMessage;
  readonly #call: http.ClientRequest;

  private constructor(call: http.ClientRequest, response: http.IncomingMessage) {
    this.#call = call;
    this.response = response;
    response.setEncoding('utf8');
    const end = () => {
      this.ended = true;
    };
    response.on('close', end);
    response.on('error', end);
  }

  static async connect(t: TestContext, where: string | Where, headers: Record<string, string> = {}): Promise<Client> {
    const target = typeof where === 'string' ? { socketPath: where } : where;
    const all = { ...(target.headers as Record<string, string>), ...headers };
    const client = await new Promise<Client>((resolve, reject) => {
      const call = http.get({ ...target, path: '/v1/events', headers: all, agent: false }, (response) => {
        resolve(new Client(call, response));
      });
      call.on('error', reject);
    });
    t.after(() => client.close());
    return client;
  }

  read(): this {
    this.response.on('data', (chunk: string) => {
      this.text += chunk;
      const blocks = (this.#rest + chunk).split('\n\n');
      this.#rest = blocks.pop() ?? '';
      for (const block of blocks) {
        const [, id, data] = /^id: (.*)\n.*\ndata: (.*)$/.exec(block) ?? [];
        if (id === undefined || data === undefined) continue;
        this.ids.push(id);
        this.events.push(JSON.parse(data));
      }
    });
    return this;
  }

  /** Waits until the text has what is wanted. */
  async until(pattern: RegExp): Promise<void> {
    while (!pattern.test(this.text)) {
      assert.ok(!this.ended, `the stream ended with ${this.text}`);
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  /** Waits for the event with this number. */
  async untilEvent(id: number): Promise<void> {
    while (this.events.at(-1)?.id !== id) {
      assert.ok(!this.ended, 'the stream ended');
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  async untilEnd(): Promise<void> {
    while (!this.ended) await new Promise((resolve) => setTimeout(resolve, 1));
  }

  close(): void {
    this.#call.destroy();
  }
}

const touch = (world: World, description: string) => world.service.put('domains', 'vm1', { description });

describe('api: events', () => {
  it('arrive with id, type and data', async (t) => {
    const { world, socket } = await watched(t);
    const client = (await Client.connect(t, socket)).read();
    assert.equal(client.response.statusCode, 200);
    assert.equal(client.response.headers['content-type'], 'text/event-stream');
    assert.equal(client.response.headers['cache-control'], 'no-store');
    await client.until(/^retry: 2000\n\n/);
    await request(socket, 'PUT', '/v1/domains/vm1', {});
    world.lane.emit({ type: 'bus-refused', bus: 'b', peer: { pid: 1, uid: 2, gid: 3 }, reason: 'EACCES' });
    await client.until(/bus-refused","kind.*\n\n/);
    assert.equal(
      client.text,
      `retry: 2000\n\nid: run1-1\nevent: object-created\ndata: ${JSON.stringify({
        id: 1,
        time: '2026-01-02T00:00:00.000Z',
        type: 'object-created',
        kind: 'domains',
        object: 'vm1',
        data: { revision: 1 },
      })}\n\nid: run1-2\nevent: bus-refused\ndata: ${JSON.stringify({
        id: 2,
        time: '2026-01-02T00:00:00.000Z',
        type: 'bus-refused',
        kind: 'buses',
        object: 'b',
        data: { peer: { pid: 1, uid: 2, gid: 3 }, reason: 'EACCES' },
      })}\n\n`,
    );
  });

  it('go on after the one seen last', async (t) => {
    const { world, socket } = await watched(t);
    for (const text of ['1', '2', '3']) await touch(world, text);
    const client = (await Client.connect(t, socket, { 'last-event-id': 'run1-1' })).read();
    await client.until(/run1-3/);
    await touch(world, '4');
    await client.until(/run1-4\n.*\n.*\n\n/);
    assert.deepEqual(client.ids, ['run1-2', 'run1-3', 'run1-4']);
    assert.doesNotMatch(client.text, /gap/);
  });

  for (const [what, id] of [
    ['an earlier run', 'run0-1'],
    ['the future', 'run1-99'],
    ['nowhere', 'rubbish'],
  ] as const) {
    it(`tell of the gap after an id from ${what}`, async (t) => {
      const { world, socket } = await watched(t);
      await touch(world, '1');
      const client = (await Client.connect(t, socket, { 'last-event-id': id })).read();
      await client.until(/event: gap\ndata: \{\}\n\n/);
      await touch(world, '2');
      await client.until(/run1-2/);
    });
  }

  it('keep a quiet connection alive and stop when the client goes', async (t) => {
    const { world, socket } = await watched(t);
    const client = (await Client.connect(t, socket)).read();
    await client.until(/retry/);
    for (const beats of [1, 2]) {
      await world.clock.advance(limits.eventStreamHeartbeatMs);
      await client.until(new RegExp(`(^: \\n\\n[^]*){${beats}}`, 'm'));
    }
    client.close();
    while (world.clock.pending > 0) await settle();
  });

  for (const transport of ['a Unix socket', 'TCP'] as const) {
    it(`drop a client over ${transport} that does not read, and no other one`, async (t) => {
      const { world, socket, state, tcp } = await watchedTwice(t);
      const where = transport === 'TCP' ? tcp : socket;
      const slow = await Client.connect(t, where);
      const quick = (await Client.connect(t, where)).read();
      await quick.until(/retry/);
      assert.equal(state.streams.count, 2);
      const reason = 'x'.repeat(16 * 1024);
      let sent = 0;
      const send = () => {
        sent += 1;
        world.lane.emit({ type: 'bus-refused', bus: `b${sent}`, peer: null, reason });
      };
      // The kernel takes what fits into its buffers, the stream keeps the backlog, and then the client has to go.
      while (state.streams.count === 2) {
        assert.ok(sent < 10 * limits.eventStreamBacklogEvents, 'nothing bounds what is kept for a slow client');
        send();
        await quick.untilEvent(sent);
      }
      assert.deepEqual([state.streams.count, state.streams.dropped], [1, 1]);
      const lost = state.streams.droppedEvents;
      assert.equal(lost, limits.eventStreamBacklogEvents + 1);

      slow.read();
      await slow.untilEnd();
      const seen = slow.events.map(({ id }) => id);
      assert.ok(seen.length > 0 && seen.length <= sent - lost, `${seen.length} of ${sent}, ${lost} lost`);
      assert.deepEqual(
        seen,
        seen.map((_, i) => i + 1),
        'no event is missing between those that arrived',
      );
      send();
      await quick.untilEvent(sent);
      assert.equal(quick.events.length, sent, 'the other client has everything');

      const again = (await Client.connect(t, where, { 'last-event-id': slow.ids.at(-1)! })).read();
      await again.untilEvent(sent);
      assert.match(again.text, /event: gap/, 'more was lost than is kept');
      const kept = Array.from(
        { length: limits.eventHistoryEvents },
        (_, i) => sent - limits.eventHistoryEvents + 1 + i,
      );
      assert.deepEqual(
        again.events.map(({ id }) => id),
        kept,
      );
    });
  }

  it('of a client that does not read do not keep the server from closing', async (t) => {
    const { world, socket, state, close } = await watched(t);
    await Client.connect(t, socket);
    const reason = 'x'.repeat(64 * 1024);
    for (let i = 0; i < 100; i += 1) world.lane.emit({ type: 'bus-refused', bus: 'b', peer: null, reason });
    assert.equal(state.streams.count, 1);
    await close();
    await settle();
    assert.equal(state.streams.count, 0);
    assert.equal(world.clock.pending, 0);
  });

  it('go to one number of clients, whatever they use', async (t) => {
    const { socket, tcp, state } = await watchedTwice(t);
    const ways = Array.from({ length: limits.eventStreamsMax }, (_, i) => (i % 2 === 0 ? socket : tcp));
    await Promise.all(ways.map((where) => Client.connect(t, where)));
    assert.equal(state.streams.count, limits.eventStreamsMax);
    for (const where of [socket, tcp]) assert.equal((await Client.connect(t, where)).response.statusCode, 409);
  });

  it('deliver in order to a client that reads late', async (t) => {
    const { world, socket } = await watched(t);
    const late = await Client.connect(t, socket);
    const reason = 'x'.repeat(1000);
    for (let i = 0; i < limits.eventStreamBacklogEvents; i += 1) {
      world.lane.emit({ type: 'bus-refused', bus: `b${i}`, peer: null, reason });
    }
    late.read();
    await late.until(new RegExp(`"object":"b${limits.eventStreamBacklogEvents - 1}"`));
    assert.deepEqual(
      late.events.map(({ id }) => id),
      Array.from({ length: limits.eventStreamBacklogEvents }, (_, i) => i + 1),
    );
  });

  it('go to a bounded number of clients', async (t) => {
    const { socket } = await watched(t);
    const clients = await Promise.all(Array.from({ length: limits.eventStreamsMax }, () => Client.connect(t, socket)));
    const refused = await request(socket, 'GET', '/v1/events');
    assert.equal(refused.status, 409);
    assert.equal(JSON.parse(refused.body).code, 'limit-reached');
    clients[0]?.close();
    for (;;) {
      const next = await Client.connect(t, socket);
      if (next.response.statusCode === 200) break;
    }
    const head = await request(socket, 'HEAD', '/v1/events');
    assert.deepEqual([head.status, head.headers['content-type']], [200, 'text/event-stream']);
  });

  it('end when the server closes', async (t) => {
    const { socket, close, world } = await watched(t);
    const client = (await Client.connect(t, socket)).read();
    await client.until(/retry/);
    await close();
    await client.untilEnd();
    assert.equal(world.clock.pending, 0);
  });
});
