import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { LateBackendHost } from '../../src/bridge/backend/factory.ts';
import { type Endpoint, socketEndpoint } from '../../src/bridge/backend/vhost-user/endpoint.ts';
import { Doors, ListeningEndpoint } from '../../src/bridge/backend/vhost-user/listen.ts';
import { openVhostUser } from '../../src/bridge/backend/vhost-user/open.ts';
import type { VhostUserDevice } from '../../src/bridge/backend/vhost-user/shapes.ts';
import { systemClock } from '../../src/kit/clock.ts';
import { systemScheduler } from '../../src/kit/scheduler.ts';
import { census } from '../../src/libc/census.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { SharedSignal } from '../../src/libc/signal-batch.ts';
import type { Backend } from '../../src/ports/backend.ts';
import { openMessenger } from '../../src/vhost-user/socket.ts';
import { blkRequestType, blkStatus } from '../../src/virtio/blk.ts';
import { blkHead } from '../support/bridge-disk.ts';
import { FakeClock } from '../support/bridge-fakes.ts';
import { TestRequest } from '../support/bridge-request.ts';
import { isCode, until } from '../support/guest-fixture.ts';
import { noJoins } from '../support/no-joins.ts';
import { VhostUserPeer } from '../support/vhost-user-peer.ts';
import { RamDisk } from '../support/vhost-user-ram-disk.ts';

const none = (): boolean => false;

class Bench {
  readonly directory = mkdtempSync(join(tmpdir(), 'vmsg-ve-'));
  readonly path = join(this.directory, 's');
  readonly poller = new LoopPoller();
  readonly messenger = openMessenger();
  readonly signals = new SharedSignal();
  readonly leases = new FakeClock();
  readonly doors = new Doors(this.poller, this.leases);
  readonly device = new RamDisk(this.poller);
  readonly peer = new VhostUserPeer(this.path, this.device, this.poller, this.messenger);
  readonly absences: (string | null)[] = [];
  ready = 0;

  listening(): ListeningEndpoint {
    return new ListeningEndpoint(this.path, this.doors, () => {
      this.ready += 1;
    });
  }

  async open(device: VhostUserDevice, endpoint: Endpoint, mac?: string): Promise<Backend> {
    const host = new LateBackendHost(() => {});
    host.bind({ configChanged: () => {}, failed: () => {}, away: (reason) => this.absences.push(reason) });
    const common = {
      signals: this.signals,
      dataPlane: noJoins(),
      poller: this.poller,
      clock: systemClock,
      scheduler: systemScheduler,
    };
    const spec = { type: 'vhost-user', device, socket: this.path, dataPath: 'shadow' } as const;
    const way = { ruledOut: undefined, ruleOut: () => {} };
    const parts = { ...common, ...(mac === undefined ? {} : { mac }) };
    const backend = await openVhostUser(spec, endpoint, host, way, parts);
    assert('handle' in backend);
    return backend;
  }

  async close(): Promise<void> {
    this.peer.leave();
    this.doors.close();
    await until(() => this.device.running.length === 0, 'the device has stopped');
    this.poller.close();
    this.messenger.close();
    this.signals.close();
    rmSync(this.directory, { recursive: true });
  }
}

async function withBench(run: (bench: Bench) => Promise<void>): Promise<void> {
  const before = JSON.stringify(census());
  const bench = new Bench();
  try {
    await run(bench);
  } finally {
    await bench.close();
  }
  await until(() => JSON.stringify(census()) === before, `nothing is left: ${JSON.stringify(census())}`);
}

async function isServed(backend: Backend): Promise<void> {
  const request = new TestRequest([blkHead(blkRequestType.IN, 0n)], [512, 1], 0);
  backend.handle(request);
  assert.equal(await request.done, 513);
  assert.equal(request.written()[512], blkStatus.OK);
}

describe('a back-end that connects to the service', () => {
  test('is told about when it comes, and then served', () =>
    withBench(async (bench) => {
      const nobody = isCode('unavailable', /no back-end has connected to it yet/);
      await assert.rejects(bench.open('blk', bench.listening()), nobody);
      assert.equal(statSync(bench.path).mode & 0o777, 0o600);
      assert.equal(bench.ready, 0);
      assert.ok(bench.peer.call());
      await until(() => bench.ready === 1, 'it is told');
      const backend = await bench.open('blk', bench.listening());
      backend.activate(none);
      await isServed(backend);
      await backend.close();
    }));

  test('that goes may connect again; a second one waits until then', () =>
    withBench(async (bench) => {
      await assert.rejects(bench.open('blk', bench.listening()), isCode('unavailable'));
      assert.ok(bench.peer.call());
      const backend = await bench.open('blk', bench.listening());
      backend.activate(none);
      await isServed(backend);
      bench.peer.hangUp();
      await until(() => bench.absences.length > 0, 'it is away');
      assert.ok(bench.peer.call());
      await isServed(backend);
      const second = new VhostUserPeer(bench.path, bench.device, bench.poller, bench.messenger);
      assert.ok(second.call());
      await isServed(backend);
      bench.peer.hangUp();
      await isServed(backend);
      await backend.close();
      second.leave();
    }));

  test('finds the socket for a while after its device has gone, and not for ever', () =>
    withBench(async (bench) => {
      await assert.rejects(bench.open('blk', bench.listening()), isCode('unavailable'));
      bench.leases.advance(60_000);
      assert.ok(existsSync(bench.path));
      bench.leases.advance(60_000);
      assert.ok(!existsSync(bench.path));
    }));

  test('replaces a socket that nobody listens on, and no other file', () =>
    withBench(async (bench) => {
      writeFileSync(bench.path, 'mine');
      await assert.rejects(bench.open('blk', bench.listening()), isCode('system-call', /EADDRINUSE/));
      rmSync(bench.path);
      bench.peer.listen();
      await assert.rejects(bench.open('blk', bench.listening()), isCode('system-call', /EADDRINUSE/));
    }));
});

class Nameless extends RamDisk {
  override config(): Uint8Array {
    return new Uint8Array(0);
  }
}

test('a network device gets the address that its back-end does not give, and the back-end does not know', () =>
  withBench(async (bench) => {
    const device = new Nameless(bench.poller);
    bench.peer.device = device;
    bench.peer.listen();
    const backend = await bench.open('net', socketEndpoint(bench.path), '02:00:00:00:00:2a');
    const macBit = 5;
    const { featureBits, config } = backend.description;
    assert.ok(featureBits.includes(macBit));
    assert.deepEqual(config.subarray(0, 6), Uint8Array.of(2, 0, 0, 0, 0, 0x2a));
    assert.equal(config.length, 12);
    assert.ok(!device.features.has(macBit));
    // A back-end that is told of a feature that it does not have ends the connection.
    backend.activate((bit) => bit === macBit);
    await until(() => device.running.length === 2, 'it has started its queues');
    await backend.close();
    await until(() => device.running.length === 0, 'it has stopped');

    const plain = await bench.open('net', socketEndpoint(bench.path));
    assert.equal(plain.description.config.length, 0);
    assert.ok(!plain.description.featureBits.includes(macBit));
    await plain.close();
  }));
