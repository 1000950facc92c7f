import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { LateBackendHost } from '../../src/bridge/backend/factory.ts';
import { socketEndpoint } from '../../src/bridge/backend/vhost-user/endpoint.ts';
import { openVhostUser } from '../../src/bridge/backend/vhost-user/open.ts';
import type { VhostUserDevice } from '../../src/bridge/backend/vhost-user/shapes.ts';
import { type Clock, systemClock } from '../../src/kit/clock.ts';
import { systemScheduler } from '../../src/kit/scheduler.ts';
import { census } from '../../src/libc/census.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { SharedSignal } from '../../src/libc/signal-batch.ts';
import type { Backend } from '../../src/ports/backend.ts';
import { openMessenger } from '../../src/vhost-user/socket.ts';
import { blkRequestType, blkStatus } from '../../src/virtio/blk.ts';
import { blkHead } from '../support/bridge-disk.ts';
import { TestRequest } from '../support/bridge-request.ts';
import { isCode, until } from '../support/guest-fixture.ts';
import { noJoins } from '../support/no-joins.ts';
import { LazyDisk } from '../support/vhost-user-habits.ts';
import { VhostUserPeer } from '../support/vhost-user-peer.ts';

const none = (): boolean => false;
/** Time in which no wait is long. */
const impatient: Clock = {
  nowMs: () => systemClock.nowMs(),
  after: (delayMs, callback) => systemClock.after(Math.min(delayMs, 150), callback),
};

class Bench {
  readonly directory = mkdtempSync(join(tmpdir(), 'vmsg-vu-'));
  readonly poller = new LoopPoller();
  readonly messenger = openMessenger();
  readonly signals = new SharedSignal();
  readonly disk = new LazyDisk(this.poller);
  readonly peer = new VhostUserPeer(join(this.directory, 's'), this.disk, this.poller, this.messenger);
  clock = impatient;
  readonly failures: string[] = [];
  readonly absences: (string | null)[] = [];
  readonly gone: string[] = [];
  readonly configs: { offset: number; data: Uint8Array }[] = [];

  async open(device: VhostUserDevice = 'blk'): Promise<Backend> {
    const host = new LateBackendHost((reason) => this.gone.push(reason));
    host.bind({
      configChanged: (offset, data) => this.configs.push({ offset, data }),
      failed: (reason) => this.failures.push(reason),
      away: (reason) => this.absences.push(reason),
    });
    const spec = { type: 'vhost-user', device, socket: this.peer.path } as const;
    const way = { ruledOut: undefined, ruleOut: () => {} };
    const opened = await openVhostUser(spec, socketEndpoint(this.peer.path), host, way, {
      poller: this.poller,
      clock: this.clock,
      scheduler: systemScheduler,
      signals: this.signals,
      dataPlane: noJoins(),
    });
    assert('handle' in opened);
    return opened;
  }

  async close(): Promise<void> {
    this.peer.leave();
    await until(() => this.disk.running.length === 0, 'the device has stopped');
    this.poller.close();
    this.messenger.close();
    this.signals.close();
    rmSync(this.directory, { recursive: true });
  }
}

/** Runs a test with a back-end that listens; in the end nothing may be left open. */
async function withBench(run: (bench: Bench) => Promise<void>): Promise<void> {
  const before = census();
  const bench = new Bench();
  bench.peer.listen();
  try {
    await run(bench);
  } finally {
    await bench.close();
  }
  await until(
    () => JSON.stringify(census()) === JSON.stringify(before),
    `nothing is left: ${JSON.stringify(census())}`,
  );
}

const write = (sector: number, byte: number, queue = 0): TestRequest =>
  new TestRequest([blkHead(blkRequestType.OUT, BigInt(sector)), new Uint8Array(512).fill(byte)], [1], queue);
const read = (sector: number, queue = 0): TestRequest =>
  new TestRequest([blkHead(blkRequestType.IN, BigInt(sector))], [512, 1], queue);

async function isRead(backend: Backend, sector: number, byte: number): Promise<void> {
  const request = read(sector);
  backend.handle(request);
  assert.equal(await request.done, 513);
  assert.deepEqual(request.written(), Uint8Array.of(...new Uint8Array(512).fill(byte), blkStatus.OK));
}

describe('a vhost-user back-end', () => {
  test('serves requests of all its queues, also after a reset and after the reset of a queue', () =>
    withBench(async (bench) => {
      const backend = await bench.open();
      const { deviceType, queueSizes, config, queueReset } = backend.description;
      assert.deepEqual([deviceType, queueSizes.length, config.length, queueReset], [2, 1, 60, true]);
      assert.equal(backend.resumes, true);
      for (let round = 1; round <= 3; round++) {
        backend.activate(none);
        const request = write(round, round);
        backend.handle(request);
        assert.equal(await request.done, 1);
        await isRead(backend, round, round);
        // Nothing runs: the queue starts anew with the next request.
        backend.cancel!(0, false);
        await isRead(backend, round, round);
        backend.deactivate();
      }
      assert.deepEqual([bench.failures, bench.absences, bench.gone], [[], [], []]);
      await backend.close();
    }));

  test('that goes gets again what it had not completed, when it is back', () =>
    withBench(async (bench) => {
      const backend = await bench.open();
      bench.disk.lazy = true;
      backend.activate(none);
      const requests = [1, 2, 3].map((n) => write(n, n));
      for (const request of requests) backend.handle(request);
      await until(() => bench.peer.accepted === 1, 'it is connected');
      await new Promise((resolve) => setTimeout(resolve, 20));
      bench.peer.leave();
      await until(() => bench.absences.length > 0, 'its absence is told');
      assert.match(bench.absences[0] ?? '', /the back-end at .* is away: /);
      const late = write(4, 4);
      backend.handle(late);
      bench.disk.lazy = false;
      bench.peer.listen();
      assert.deepEqual(await Promise.all([...requests, late].map(({ done }) => done)), [1, 1, 1, 1]);
      assert.equal(bench.absences.at(-1), null);
      for (const n of [1, 2, 3, 4]) await isRead(backend, n, n);
      assert.deepEqual(bench.failures, []);
      await backend.close();
    }));

  test('that is away keeps nobody waiting who resets or closes the device', () =>
    withBench(async (bench) => {
      const backend = await bench.open();
      backend.activate(none);
      await isRead(backend, 0, 0);
      bench.peer.leave();
      await until(() => bench.absences.length > 0, 'its absence is told');
      const lost = write(1, 1);
      backend.handle(lost);
      backend.cancel!(0, false);
      await lost.done;
      assert.equal(lost.released, true);
      backend.deactivate();
      backend.activate(none);
      const kept = write(2, 2);
      backend.handle(kept);
      bench.peer.listen();
      assert.equal(await kept.done, 1);
      bench.peer.leave();
      await until(() => bench.absences.filter((reason) => reason !== null).length > 1, 'its absence is told again');
      const last = write(3, 3);
      backend.handle(last);
      await backend.close();
      await last.done;
      assert.equal(last.released, true);
    }));

  test('that hangs up, hangs, or babbles when it comes back is tried again, and the reason is told', () =>
    withBench(async (bench) => {
      const backend = await bench.open();
      backend.activate(none);
      await isRead(backend, 0, 0);
      for (const manners of ['hang up', 'babble', 'hang'] as const) {
        bench.peer.manners = manners;
        const tries = bench.peer.accepted;
        bench.peer.hangUp();
        await until(() => bench.peer.accepted >= tries + 2, 'it is tried again');
        bench.peer.manners = 'serve';
        bench.peer.hangUp();
        await isRead(backend, 0, 0);
        assert.equal(bench.absences.at(-1), null, manners);
      }
      assert.deepEqual(bench.failures, []);
      await backend.close();
    }));

  for (const manners of ['hang up', 'babble', 'hang'] as const) {
    test(`that would ${manners} at first is an error, and leaves nothing`, () =>
      withBench(async (bench) => {
        bench.peer.manners = manners;
        await assert.rejects(
          bench.open(),
          isCode({ 'hang up': 'backend-lost', babble: 'protocol-violation', hang: 'unavailable' }[manners]),
        );
      }));
  }

  test('that is not there, or has too few queues, is an error that says so', () =>
    withBench(async (bench) => {
      await assert.rejects(bench.open('vsock'), isCode('backend-unusable', /has 2 queues, its device speaks of 3/));
      bench.peer.leave();
      await assert.rejects(bench.open(), isCode('unavailable', /no such socket/));
    }));

  test('of a device with state takes the device along when it goes', () =>
    withBench(async (bench) => {
      const backend = await bench.open('i2c');
      assert.equal(backend.resumes, false);
      backend.activate(none);
      bench.peer.hangUp();
      await until(() => bench.gone.length === 1, 'it is gone');
      assert.deepEqual(bench.absences, []);
      await backend.close();
    }));

  test('that is away for a while is set up once when it is back', () =>
    withBench(async (bench) => {
      // On a busy machine what is hurried comes too late.
      bench.clock = systemClock;
      const backend = await bench.open();
      backend.activate(none);
      await isRead(backend, 0, 0);
      bench.peer.leave();
      const request = write(1, 1);
      await until(() => bench.absences.length >= 4, 'several tries fail');
      backend.handle(request);
      const { starts } = bench.disk;
      bench.peer.listen();
      assert.equal(await request.done, 1);
      await isRead(backend, 1, 1);
      assert.equal(bench.disk.starts, starts + 1);
      await backend.close();
    }));

  test('that does not complete what it has taken loses its connection, and no one waits for that', () =>
    withBench(async (bench) => {
      const backend = await bench.open();
      backend.activate(none);
      await isRead(backend, 0, 0);
      bench.disk.surplus = 3;
      const lost = write(1, 1);
      backend.handle(lost);
      backend.cancel!(0, false);
      await lost.done;
      backend.deactivate();
      backend.activate(none);
      const request = write(2, 2);
      backend.handle(request);
      assert.equal(await request.done, 1);
      assert.equal(bench.peer.accepted, 2);
      assert.match(bench.absences[0] ?? '', /does not (stop in|complete)/);
      assert.deepEqual(bench.failures, []);
      bench.disk.surplus = 0;
      await backend.close();
    }));

  test('that goes while the service ends gives its requests back', () =>
    withBench(async (bench) => {
      const backend = await bench.open();
      bench.disk.lazy = true;
      backend.activate(none);
      const requests = [1, 2, 3].map((n) => write(n, n));
      for (const request of requests) backend.handle(request);
      await until(() => bench.disk.starts > 0, 'it is set up');
      await new Promise((resolve) => setTimeout(resolve, 20));
      backend.cancel!(0, true);
      bench.peer.leave();
      await Promise.all(requests.map(({ done }) => done));
      assert.ok(requests.every(({ released }) => released));
      backend.deactivate();
      await backend.close();
    }));

  test('that comes and goes while nobody uses it costs no memory', () =>
    withBench(async (bench) => {
      const backend = await bench.open();
      const before = census();
      for (let n = 2; n <= 6; n++) {
        bench.peer.hangUp();
        await until(() => bench.peer.accepted >= n && bench.absences.at(-1) === null, 'it is connected again');
      }
      await until(() => JSON.stringify(census()) === JSON.stringify(before), 'nothing is kept');
      await backend.close();
    }));

  test('that is another one now is told what the driver wrote, and its configuration is passed on', () =>
    withBench(async (bench) => {
      const writeback = 32;
      bench.disk.config()[writeback] = 1;
      const backend = await bench.open();
      backend.activate(none);
      assert.equal(await backend.writeConfig(writeback, Uint8Array.of(0)), true);
      assert.equal(bench.disk.config()[writeback], 0);
      assert.equal(await backend.writeConfig(0, Uint8Array.of(1)), false);
      const other = new LazyDisk(bench.poller);
      other.config().set([9, 9], 0);
      other.config()[writeback] = 1;
      bench.peer.device = other;
      bench.peer.hangUp();
      await isRead(backend, 0, 0);
      assert.equal(other.config()[writeback], 0);
      await until(() => bench.configs.length > 0, 'the driver is told');
      assert.deepEqual(bench.configs[0], { offset: 0, data: Uint8Array.of(9, 9) });
      await backend.close();
      await until(() => other.running.length === 0, 'it has stopped');
    }));
});
