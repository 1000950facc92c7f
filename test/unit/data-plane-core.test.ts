import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { DataPlane, type JoinLink } from '../../src/bridge/data-plane/data-plane.ts';
import { JoinEngine } from '../../src/bridge/data-plane/engine.ts';
import {
  type JoinOutcome,
  type JoinRequest,
  newCounts,
  noCounts,
  readCounts,
} from '../../src/bridge/data-plane/protocol.ts';
import { Rounds } from '../../src/bridge/data-plane/rounds.ts';
import { SpinBudget } from '../../src/bridge/data-plane/spin.ts';
import { VmsgError } from '../../src/kit/errors.ts';
import { limits } from '../../src/kit/limits.ts';
import { census } from '../../src/libc/census.ts';
import { createEventfd } from '../../src/libc/eventfd.ts';
import { asDomid, asEventPort, type EventChannels, HypervisorFault } from '../../src/ports/hypervisor.ts';

describe('spin budget', () => {
  /** Looks among so many waits, each of which pays or not. */
  const looks = (waits: number, pays: (look: number) => boolean, spin = new SpinBudget(20)): number => {
    let made = 0;
    for (let wait = 0; wait < waits; wait++) {
      if (spin.takeUs() === 0) continue;
      if (pays(made++)) spin.paid();
      else spin.unpaid();
    }
    return made;
  };

  test('looks that pay are made before every wait', () => {
    assert.equal(
      looks(1000, () => true),
      1000,
    );
  });
  test('looks that do not pay become rare, and are tried again', () => {
    const made = looks(100_000, () => false);
    assert.ok(made > 100 && made < 120, `${made} looks`);
  });
  test('after the longest pause a look that pays brings them back within a few more', () => {
    const spin = new SpinBudget(20);
    looks(100_000, () => false, spin);
    looks(2 * limits.dataPlaneSpinPauseWaits, () => true, spin);
    assert.ok(looks(1000, () => true, spin) > 990);
  });
  test('a budget of 0 never looks', () => {
    assert.equal(
      looks(1000, () => true, new SpinBudget(0)),
      0,
    );
  });
});

/** Time passes while it is polled; events come at the times given. */
class FakeEvents {
  nowUs = 0;
  sleeps = 0;
  readonly #at: number[];
  readonly #pollUs: number;

  constructor(at: readonly number[], pollUs = 1) {
    this.#at = [...at];
    this.#pollUs = pollUs;
  }

  readonly poll = (timeoutMs: number): number => {
    this.nowUs += this.#pollUs;
    const next = this.#at[0] ?? Number.POSITIVE_INFINITY;
    if (next > this.nowUs) {
      if (timeoutMs === 0) return 0;
      this.sleeps++;
      this.nowUs = Math.min(next, this.nowUs + timeoutMs * 1000);
      if (next > this.nowUs) return 0;
    }
    let taken = 0;
    while (this.#at[0] !== undefined && this.#at[0] <= this.nowUs) {
      this.#at.shift();
      taken++;
    }
    return taken;
  };
}

describe('rounds', () => {
  const roundsOf = (events: FakeEvents, spinUs: number, forward: () => boolean = () => false) => {
    const counts = newCounts();
    const nowUs = (): number => events.nowUs;
    const rounds = new Rounds({ poll: events.poll, forward, spin: new SpinBudget(spinUs), nowUs, counts });
    return { rounds, counts };
  };

  test('events that come fast are found without sleeping', () => {
    const events = new FakeEvents(Array.from({ length: 100 }, (_, i) => 1000 + i * 10));
    const { rounds, counts } = roundsOf(events, 20);
    for (let i = 0; i < 100; i++) rounds.run(1000);
    assert.deepEqual(readCounts(counts), { ...noCounts(), rounds: 100, sleeps: 1, spinsPaid: 99 });
    assert.equal(events.sleeps, 1);
  });
  test('events that come slowly cost hardly any looks', () => {
    const { rounds, counts } = roundsOf(new FakeEvents(Array.from({ length: 1000 }, (_, i) => i * 500)), 20);
    for (let i = 0; i < 1000; i++) rounds.run(1000);
    assert.ok(readCounts(counts).spinsUnpaid < 12, `${readCounts(counts).spinsUnpaid} looks in vain`);
    assert.equal(readCounts(counts).spinsPaid, 0);
  });
  test('after a wait without events there is no look', () => {
    const { rounds, counts } = roundsOf(new FakeEvents([]), 20);
    for (let i = 0; i < 10; i++) rounds.run(1000);
    assert.deepEqual(readCounts(counts), { ...noCounts(), rounds: 10, sleeps: 10 });
  });
  test('while something is left, or was asked for, nothing waits', () => {
    let left = 3;
    const events = new FakeEvents([]);
    const { rounds, counts } = roundsOf(events, 20, () => left-- > 0);
    rounds.run(0);
    for (let i = 0; i < 3; i++) rounds.run(1000);
    assert.equal(events.sleeps, 0);
    rounds.run(1000);
    assert.equal(readCounts(counts).sleeps, 1);
  });
});

const [domid, port] = [asDomid(3)!, asEventPort(7)!];

/** An engine whose eventfds and ports are numbers, and fire when told. */
function engineRig(binds: (port: number) => boolean = () => true) {
  const edges = new Map<number, () => void>();
  const ports = new Map<number, () => void>();
  const added: number[] = [];
  const signalled: (number | string)[] = [];
  let wakes = 0;
  let open = 0;
  const channels: EventChannels = {
    bindUnbound: () => assert.fail('only ports of guests are bound'),
    bindInterdomain(remote, number, onEvent) {
      if (!binds(number)) return new HypervisorFault('bind', 'EINVAL', remote, number, 1);
      assert.ok(!ports.has(number), 'a port is bound once');
      ports.set(number, onEvent);
      return { port: number, notify: () => signalled.push(`port ${number}`), close: () => ports.delete(number) };
    },
    close: () => open--,
  };
  const counts = newCounts();
  const engine = new JoinEngine({
    watchEdges(fd, onEdge) {
      edges.set(fd, onEdge);
      return { close: () => edges.delete(fd) };
    },
    signals: { add: (fd) => added.push(fd), flush: () => signalled.push(...added.splice(0)) },
    openChannels() {
      open++;
      return channels;
    },
    wake: () => wakes++,
    counts,
  });
  const forward = (): (number | string)[] => {
    while (engine.forward()) assert.ok(signalled.length < 10_000);
    return signalled.splice(0);
  };
  const state = () => ({ edges: [...edges.keys()], ports: [...ports.keys()], open });
  return { engine, edges, ports, signalled, counts, forward, state, wakes: () => wakes };
}

const queue = (n: number) => ({
  kick: { from: { eventfd: n }, to: n + 1000 },
  call: { from: n + 2000, to: { eventfd: n + 3000 } },
});
const ofPort = (n: number, number = port) => ({
  kick: { from: { channel: { domid, port: number } }, to: n + 1000 },
  call: { from: n + 2000, to: { channel: { domid, port: number } } },
});

describe('join engine', () => {
  test('each direction signals its own other end', () => {
    const { engine, edges, forward } = engineRig();
    engine.join(1, queue(1));
    engine.join(2, queue(2));
    edges.get(1)?.();
    assert.deepEqual(forward(), [1001]);
    edges.get(2002)?.();
    assert.deepEqual(forward(), [3002]);
    assert.deepEqual(forward(), []);
  });
  test('any number of edges between two rounds is one signal', () => {
    const { engine, edges, forward, counts, wakes } = engineRig();
    engine.join(1, queue(1));
    for (let i = 0; i < 1000; i++) edges.get(1)?.();
    assert.deepEqual(forward(), [1001]);
    const { events, signals } = readCounts(counts);
    assert.deepEqual([events, signals, wakes()], [1000, 1, 1]);
  });
  test('one that always fires has one turn in each round, and all others have theirs', () => {
    const { engine, edges, signalled } = engineRig();
    const count = limits.dataPlaneBatchSignals * 2;
    for (let n = 0; n < count; n++) engine.join(n, queue(n));
    for (let n = 0; n < count; n++) edges.get(n)?.();
    const rounds: number[] = [];
    for (let left = true; left; rounds.push(signalled.length)) {
      edges.get(0)?.();
      left = engine.forward();
    }
    // It was first, and is marked again behind the others.
    assert.deepEqual(rounds, [count / 2, count, count + 1]);
    assert.equal(new Set(signalled).size, count);
    assert.deepEqual(signalled.slice(1, 4), [1001, 1002, 1003]);
    assert.equal(signalled.at(-1), 1000);
  });
  test('a port is bound once for kicks and calls of several queues, until the last of them leaves', () => {
    const { engine, ports, forward, state } = engineRig();
    engine.join(1, ofPort(1));
    engine.join(2, ofPort(2));
    assert.deepEqual(forward(), [1001, 1002], 'events before a join may have been for it');
    ports.get(port)?.();
    assert.deepEqual(forward(), [1001, 1002]);
    engine.unjoin(1);
    ports.get(port)?.();
    assert.deepEqual(forward(), [1002]);
    engine.unjoin(2);
    assert.deepEqual(state(), { edges: [], ports: [], open: 1 });
    engine.join(3, ofPort(3));
    assert.deepEqual(state().ports, [port]);
    engine.close();
    assert.deepEqual(state(), { edges: [], ports: [], open: 0 });
  });
  test('calls notify the port', () => {
    const { engine, edges, forward } = engineRig();
    engine.join(1, { call: { from: 5, to: { channel: { domid, port } } } });
    edges.get(5)?.();
    assert.deepEqual(forward(), [`port ${port}`]);
  });
  test('a port that cannot be bound is told, and nothing is left of the join', () => {
    const { engine, state } = engineRig((number) => number !== 9);
    const fault = engine.join(1, { ...queue(1), call: ofPort(1, asEventPort(9)!).call });
    assert.ok(fault instanceof HypervisorFault && fault.errno === 'EINVAL');
    assert.deepEqual(state(), { edges: [], ports: [], open: 1 });
    assert.equal(engine.join(1, queue(1)), undefined);
  });
  test('what was marked before a join ended signals nothing', () => {
    const { engine, edges, forward } = engineRig();
    engine.join(1, queue(1));
    edges.get(1)?.();
    engine.unjoin(1);
    assert.deepEqual(forward(), []);
  });
  test('a thread takes a bounded number of joins', () => {
    const { engine } = engineRig();
    const { call } = queue(1);
    for (let id = 0; id < limits.dataPlaneJoinsPerWorker; id++) engine.join(id, { call });
    assert.throws(() => engine.join(limits.dataPlaneJoinsPerWorker, { call }), { code: 'limit-reached' });
  });
});

/** A place that only writes down what it is asked. */
class FakeLink implements JoinLink {
  readonly requests: JoinRequest[] = [];
  readonly #ended: (reason: string) => void;
  outcome: JoinOutcome | Promise<never> = { ok: true };

  constructor(ended: (reason: string) => void) {
    this.#ended = ended;
  }

  async call(request: JoinRequest): Promise<JoinOutcome> {
    this.requests.push(request);
    return await this.outcome;
  }

  counts() {
    return { ...noCounts(), signals: this.requests.length };
  }

  async close(): Promise<void> {
    this.#ended('closed');
  }

  fail(reason: string): void {
    this.outcome = Promise.reject(new VmsgError('unavailable', reason));
    this.outcome.catch(() => {});
  }

  end(reason: string): void {
    this.#ended(reason);
  }
}

describe('places of a data plane', () => {
  const rig = (places: number) => {
    const links: FakeLink[] = [];
    const plane = new DataPlane({
      places,
      open(ended) {
        const link = new FakeLink(ended);
        links.push(link);
        return link;
      },
    });
    const fd = createEventfd();
    const lost: string[] = [];
    const join = async (of?: number) => {
      const from = of === undefined ? { eventfd: fd.number } : { channel: { domid: asDomid(of)!, port } };
      const made = await plane.join({ kick: { from, to: fd.number } }, (reason) => lost.push(reason));
      assert.ok(!(made instanceof HypervisorFault));
      return made;
    };
    const loads = (): number[] => links.map(({ requests }) => requests.length);
    const close = async (): Promise<void> => {
      await plane.close();
      fd.close();
    };
    return { plane, links, lost, join, loads, close };
  };

  test('none is opened before it is needed; joins are spread, those of one domain stay together', async () => {
    const { links, join, loads, close } = rig(3);
    assert.equal(links.length, 0);
    for (const domain of [1, 1, 1, 2, 2, 3, undefined, 1]) await join(domain);
    assert.deepEqual(loads(), [4, 2, 2]);
    await close();
  });
  test('a place that is empty again is used before another is opened', async () => {
    const { links, join, close } = rig(3);
    for (let i = 0; i < 5; i++) await (await join(i)).close();
    assert.equal(links.length, 1);
    await close();
  });
  test('the end of a place is told to who has joins there; later ones get a new place; its counts stay', async () => {
    const start = census();
    const { plane, links, lost, join, loads, close } = rig(2);
    const kept = await join(1);
    await join(2);
    const left = await join(1);
    await left.close();
    links[0]?.end('broken');
    assert.deepEqual(lost, ['broken']);
    assert.equal(plane.snapshot().joins, 1);
    await kept.close();
    await join(1);
    assert.deepEqual(loads(), [3, 1, 1]);
    assert.equal(plane.snapshot().signals, 5);
    await close();
    assert.deepEqual(lost, ['broken']);
    assert.deepEqual(census(), start);
  });
  test('descriptors of a place that does not answer stay open until it has ended', async () => {
    const { links, lost, join, close } = rig(1);
    const one = await join(1);
    links[0]?.fail('silent');
    const before = census();
    await assert.rejects(join(2), { code: 'unavailable' });
    let closed = false;
    const closing = one.close().then(() => {
      closed = true;
    });
    await new Promise((resolve) => setImmediate(resolve));
    assert.equal(closed, false);
    assert.equal(
      census().fds.eventfd,
      (before.fds.eventfd ?? 0) + 1,
      'the sink of the second join, whose source is a port',
    );
    links[0]?.end('silent');
    await closing;
    assert.deepEqual(lost, [], 'one was closed, the other never began');
    await close();
  });
  test('a place that ends in the turn of its answer has joined nothing', async () => {
    const { links, lost, join, plane, close } = rig(1);
    await (await join()).close();
    const joining = join();
    links[0]?.end('broken');
    await assert.rejects(joining, { code: 'unavailable' });
    assert.deepEqual(lost, []);
    assert.equal(plane.snapshot().joins, 0);
    await close();
  });
  test('a join that is refused leaves nothing open', async () => {
    const start = census();
    const { links, join, plane, close } = rig(1);
    await (await join()).close();
    links[0]!.outcome = { error: { code: 'limit-reached', message: 'enough' } };
    await assert.rejects(join(), { code: 'limit-reached', message: 'enough' });
    assert.equal(plane.snapshot().joins, 0);
    await close();
    assert.deepEqual(census(), start);
  });
});
