import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { LoopbackResources } from '../../src/device/loopback-resources.ts';
import type { QueueEngine, RingBackend } from '../../src/device/queue-engine.ts';
import { QueueSignals } from '../../src/device/queue-signals.ts';
import type { Closable } from '../../src/kit/scope.ts';
import { census } from '../../src/libc/census.ts';
import { createEventfd } from '../../src/libc/eventfd.ts';
import { createMemfd } from '../../src/libc/memfd.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import type { HandedFd, QueueWay } from '../../src/ports/bus.ts';
import type { Domid, EventPort } from '../../src/ports/hypervisor.ts';
import { FakeBackend } from '../support/bridge-backend.ts';
import { Bench } from '../support/bridge-bench.ts';
import { FakeCall } from '../support/bridge-fakes.ts';

const eperm = 1;
const enoent = 2;
const enodev = 19;
const einval = 22;
const eopnotsupp = 95;

class FakeFd implements HandedFd {
  readonly number: number;
  closed = false;

  constructor(number: number) {
    this.number = number;
  }

  close(): void {
    assert.ok(!this.closed, `${this.number} is closed once`);
    this.closed = true;
  }
}

/** Queues that do nothing but keep what they are given. */
class FakeEngine implements QueueEngine {
  readonly work = null;
  readonly kicked: number[] = [];
  readonly given = new Map<number, QueueWay>();
  connect(): void {}
  disconnect(_link: unknown, done: () => void): void {
    done();
  }
  activate(): void {}
  start(): void {}
  kick(index: number): boolean {
    this.kicked.push(index);
    return true;
  }
  inFlight(): number {
    return 0;
  }
  stop(_index: number, done: () => void): void {
    done();
  }
  halt(): void {}
  stopAll(done: () => void): void {
    done();
  }
  drainAll(done: () => void): void {
    done();
  }
  deactivate(): void {}
  /** What the next way gets instead of being taken. */
  refusal: number | Promise<number> | undefined;
  useWay(index: number, way: QueueWay | undefined): number | Promise<number> {
    const { refusal } = this;
    this.refusal = undefined;
    if (way !== undefined && refusal !== undefined) {
      for (const end of endsOf(way)) end.close();
      return refusal;
    }
    const before = this.given.get(index);
    if (way === undefined) this.given.delete(index);
    else this.given.set(index, way);
    if (before !== undefined) for (const end of endsOf(before)) end.close();
    return 0;
  }
}

const endsOf = (way: QueueWay): readonly Closable[] =>
  'kick' in way ? [way.kick, way.call] : [way.kickPort, way.callPort];

function descriptorsOf(way: QueueWay | undefined): readonly [number, number] {
  assert.ok(way !== undefined && 'kick' in way);
  return [way.kick.number, way.call.number];
}

function bench() {
  const b = new Bench();
  const engine = new FakeEngine();
  const { description } = new FakeBackend();
  const backend: RingBackend = {
    description,
    resumes: false,
    openQueues: () => engine,
    writeConfig: () => true,
    close: async () => {},
  };
  b.attach(backend as never);
  b.connect();
  const fds = new Map([1, 2, 3, 4].map((reference) => [reference, new FakeFd(reference)]));
  b.guest.resources.takeEventfd = (reference) => {
    if (reference === 9) return 'EPERM';
    const fd = fds.get(reference);
    return fd === undefined ? 'ENOENT' : fd;
  };
  const notify = { device: 0, queue: 0, flags: 7, kick: 1, call: 2 };
  const ask = (changes: Partial<typeof notify> = {}): number => b.ask('QUEUE_NOTIFY', { ...notify, ...changes }).errno;
  const closed = (): number[] => [...fds.values()].filter((fd) => fd.closed).map(({ number }) => number);
  return { b, engine, ask, closed };
}

describe('a queue that another program works on', () => {
  test('may be asked about: yes, no, or no such queue', () => {
    const { b, engine, ask } = bench();
    assert.equal(ask({ flags: 4, kick: 0, call: 0 }), 0);
    assert.equal(ask({ flags: 4, queue: 2 }), einval);
    assert.equal(ask({ flags: 4, device: 9 }), enodev);
    assert.equal(ask({ flags: 12 }), einval);
    assert.equal(engine.given.size, 0);
    const other = b.attach(new FakeBackend(), 'other', 1);
    b.take();
    assert.equal(ask({ flags: 4, device: other }), eperm);
    assert.equal(ask({ flags: 7, device: other }), eperm);
    // Both references are used up.
    assert.deepEqual(b.guest.resources.discarded, [1, 2]);
  });

  test('gets both descriptors of the guest or none', () => {
    const { b, engine, ask, closed } = bench();
    assert.equal(ask({ flags: 5 }), einval);
    assert.equal(ask({ flags: 6 }), einval);
    assert.deepEqual(b.guest.resources.discarded.splice(0), [1, 2]);
    assert.equal(ask({ kick: 77 }), enoent);
    assert.equal(ask({ kick: 9 }), eperm);
    assert.deepEqual(closed(), []);
    assert.equal(ask({ kick: 3, call: 77 }), enoent);
    assert.deepEqual(closed(), [3], 'the other one is given back');
    assert.equal(ask({ kick: 4, call: 9 }), eperm);
    assert.deepEqual([closed(), engine.given.size], [[3, 4], 0]);
    assert.equal(ask(), 0);
    assert.deepEqual(descriptorsOf(engine.given.get(0)), [1, 2]);
  });

  test('is not kicked by events beside the descriptors, which a wrong request leaves alone', () => {
    const { b, engine, ask, closed } = bench();
    b.available();
    assert.deepEqual(engine.kicked, [0]);
    assert.equal(ask(), 0);
    b.available();
    assert.equal(ask({ flags: 5, kick: 3 }), einval);
    assert.equal(ask({ kick: 77, call: 3 }), enoent);
    b.available();
    b.available(1);
    assert.deepEqual([engine.kicked, closed()], [[0, 1], []]);
    assert.equal(b.runtime.snapshot().counters.dropped, 2);
    assert.equal(ask({ kick: 3, call: 4 }), 0);
    assert.deepEqual(
      [descriptorsOf(engine.given.get(0)), closed()],
      [
        [3, 4],
        [1, 2],
      ],
    );
  });

  test('hears events when its program does not take what it is given, at once or later', async () => {
    const { b, engine, ask } = bench();
    engine.refusal = 16;
    assert.equal(ask(), 16);
    b.available();
    assert.deepEqual(engine.kicked, [0]);
    engine.refusal = Promise.resolve(12);
    b.request('QUEUE_NOTIFY', { device: 0, queue: 0, flags: 7, kick: 3, call: 4 });
    b.available();
    await new Promise((resolve) => setImmediate(resolve));
    b.scheduler.run();
    assert.deepEqual(
      b.take().map(({ name, body }) => [name, body]),
      [['QUEUE_NOTIFY', { errno: 12 }]],
    );
    b.available();
    assert.deepEqual([engine.kicked, engine.given.size], [[0, 0, 0], 0]);
  });

  test('ends what its program is still to get with a reset of its device', async () => {
    const { b, engine, ask } = bench();
    b.start();
    assert.equal(ask(), 0);
    let answer = (_errno: number): void => {};
    engine.refusal = new Promise((resolve) => {
      answer = resolve;
    });
    b.request('QUEUE_NOTIFY', { device: 0, queue: 0, flags: 7, kick: 3, call: 4 });
    b.setStatus(0);
    assert.equal(engine.given.size, 0);
    answer(0);
    await new Promise((resolve) => setImmediate(resolve));
    b.scheduler.run();
    const [last] = b.take().slice(-1);
    assert.deepEqual([last?.name, last?.body], ['QUEUE_NOTIFY', { errno: 16 }]);
    b.available();
    assert.deepEqual(engine.kicked, [0]);
  });

  test('may be notified by the service all the same', () => {
    const { b, engine, ask, closed } = bench();
    assert.equal(ask(), 0);
    const kick = { onKick: undefined as (() => void) | undefined, closed: false };
    b.guest.resources.kicks.set(3, kick);
    b.guest.resources.calls.set(4, new FakeCall());
    assert.equal(ask({ flags: 3, kick: 3, call: 4 }), 0);
    assert.deepEqual([closed(), engine.given.size], [[1, 2], 0]);
    kick.onKick?.();
    assert.deepEqual(engine.kicked, [0]);
    assert.equal(ask({ flags: 0 }), 0);
    assert.ok(kick.closed);
    b.available();
    assert.deepEqual(engine.kicked, [0, 0]);
  });

  test('gives them back with a reset of its device, its removal and the end of the connection', async () => {
    for (const end of ['reset', 'detach', 'leave'] as const) {
      const { b, engine, ask, closed } = bench();
      b.start();
      assert.equal(ask(), 0);
      assert.equal(ask({ queue: 1, kick: 3, call: 4 }), 0);
      assert.deepEqual(closed(), []);
      if (end === 'reset') b.setStatus(0);
      else if (end === 'detach') await b.detach('disk');
      else b.leave();
      assert.deepEqual([closed(), engine.given.size], [[1, 2, 3, 4], 0], end);
    }
  });

  test('gets both ports of a guest that has no descriptors, or none', () => {
    const { b, engine, ask } = bench();
    delete b.guest.resources.takeEventfd;
    assert.equal(ask(), eopnotsupp);
    const open = new Set<number>();
    b.guest.resources.takePort = (reference) => {
      if (reference === 9) return 'EINVAL';
      open.add(reference);
      const close = (): void => assert.ok(open.delete(reference), `${reference} is closed once`);
      return { domid: 5 as Domid, port: reference as EventPort, refused: () => {}, close };
    };
    assert.equal(ask({ call: 9 }), einval);
    assert.deepEqual([[...open], engine.given.size], [[], 0]);
    assert.equal(ask(), 0);
    const way = engine.given.get(0);
    assert.ok(way !== undefined && 'kickPort' in way);
    assert.deepEqual([way.kickPort.port, way.callPort.port, [...open]], [1, 2, [1, 2]]);
    b.available();
    assert.deepEqual(engine.kicked, []);
    assert.equal(ask({ flags: 0 }), 0);
    assert.deepEqual([[...open], engine.given.size], [[], 0]);
  });

  test('takes eventfds only, and what is none is closed', () => {
    const before = census();
    const poller = new LoopPoller();
    const resources = new LoopbackResources(
      poller,
      () => {},
      () => false,
    );
    const signals = new QueueSignals(resources);
    const engine = new FakeEngine();
    const device = { useWay: engine.useWay.bind(engine) } as never;
    const request = { device: 0, queue: 0, flags: 7, kick: 1, call: 2 };
    for (const [kick, call, errno] of [
      [createMemfd('none', 4096), createEventfd(), eperm],
      [createEventfd(), createMemfd('none', 4096), eperm],
      [createEventfd(), createEventfd(), 0],
    ] as const) {
      assert.equal(resources.add(1, [kick, call]), undefined);
      assert.equal(signals.setForProgram(request, device), errno);
      resources.discard(1);
      resources.discard(2);
      assert.equal(engine.given.size, errno === 0 ? 1 : 0);
    }
    assert.equal(signals.hasKick(0, 0), true);
    assert.equal(signals.call(0, 0), false);
    signals.clear();
    assert.equal(engine.given.size, 0);
    resources.close();
    poller.close();
    assert.deepEqual(census(), before);
  });
});
