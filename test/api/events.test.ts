import assert from 'node:assert/strict';
import http from 'node:http';
import path from 'node:path';
import { describe, it, type TestContext } from 'node:test';
import { listen } from '../../api/listen.ts';
import type { ServiceEvent } from '../../src/bridge/events.ts';
import { limits } from '../../src/kit/limits.ts';
import { makeServer, request, settle, startWorld, temporaryDirectory, type World } from './support.ts';

interface Watched {
  readonly world: World;
  readonly socket: string;
  readonly close: () => Promise<void>;
}

async function watched(t: TestContext): Promise<Watched> {
  const world = await startWorld(t);
  const app = await makeServer(t, world);
  const socket = path.join(temporaryDirectory(t), 'api.sock');
  await listen(app, { path: socket, mode: 0o600 });
  return { world, socket, close: () => app.close() };
}

/** A client of the event stream. */
class Client {
  text = '';
  ended = false;
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

  static async connect(t: TestContext, socketPath: string, headers: http.OutgoingHttpHeaders = {}): Promise<Client> {
    const client = await new Promise<Client>((resolve, reject) => {
      const call = http.get({ socketPath, path: '/v1/events', headers, agent: false }, (response) => {
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

  async untilEnd(): Promise<void> {
    while (!this.ended) await new Promise((resolve) => setTimeout(resolve, 1));
  }

  get ids(): string[] {
    return [...this.text.matchAll(/^id: (.*)$/gm)].map(([, id]) => id!);
  }

  get events(): ServiceEvent[] {
    return [...this.text.matchAll(/^data: (\{"id".*)$/gm)].map(([, data]) => JSON.parse(data!));
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

  it('drop a client that does not read, and no other one', async (t) => {
    const { world, socket } = await watched(t);
    const slow = await Client.connect(t, socket);
    const quick = (await Client.connect(t, socket)).read();
    await quick.until(/retry/);
    const reason = 'x'.repeat(2000);
    let sent = 0;
    // What the operating system takes comes on top of the backlog.
    while (world.clock.pending > 1 && sent < 20_000) {
      world.lane.emit({ type: 'bus-refused', bus: `b${sent}`, peer: null, reason });
      sent += 1;
      if (sent % 50 === 0) await settle();
    }
    assert.equal(world.clock.pending, 1, 'only one stream is left');
    assert.ok(sent > limits.eventStreamBacklogEvents);
    await quick.until(new RegExp(`"object":"b${sent - 1}"`));
    assert.equal(quick.events.length, sent);
    slow.read();
    await slow.untilEnd();
    assert.equal((await request(socket, 'GET', '/healthz')).status, 200);
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
