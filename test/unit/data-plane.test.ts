import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { openDataPlane } from '../../src/app/lane-data-plane.ts';
import { DataPlane, type QueueJoin } from '../../src/bridge/data-plane/data-plane.ts';
import { JoinEngine } from '../../src/bridge/data-plane/engine.ts';
import { newCounts } from '../../src/bridge/data-plane/protocol.ts';
import { WorkerLink } from '../../src/bridge/data-plane/worker-link.ts';
import { census } from '../../src/libc/census.ts';
import { linux } from '../../src/libc/constants.ts';
import { EpollPoller } from '../../src/libc/epoll.ts';
import { createEventfd, drainEventfd, signalEventfd } from '../../src/libc/eventfd.ts';
import { type Fd, setStatusFlags, statusFlags } from '../../src/libc/fd.ts';
import { writeFrom } from '../../src/libc/native.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { SignalBatch } from '../../src/libc/signal-batch.ts';
import { asDomid, asEventPort, HypervisorFault } from '../../src/ports/hypervisor.ts';
import { EventDevice } from '../support/event-device.ts';
import { FakeXen } from '../support/fake-xen.ts';
import { settledCensus } from '../support/settled-census.ts';
import { eventually } from './libc-harness.ts';

const poller = new LoopPoller();
after(() => poller.close());
const lostNever = (reason: string): void => assert.fail(reason);

/** The four eventfds of a queue: of the guest, then of the program. */
class Queue {
  readonly kick = createEventfd();
  readonly call = createEventfd();
  readonly programKick = createEventfd();
  readonly programCall = createEventfd();

  get spec() {
    return {
      kick: { from: { eventfd: this.kick.number }, to: this.programKick.number },
      call: { from: this.programCall.number, to: { eventfd: this.call.number } },
    };
  }

  async passes(from: Fd, to: Fd): Promise<void> {
    signalEventfd(from.number);
    await eventually(() => assert.ok(drainEventfd(to.number)));
  }

  async works(): Promise<void> {
    await this.passes(this.kick, this.programKick);
    await this.passes(this.programCall, this.call);
  }

  close(): void {
    for (const fd of [this.kick, this.call, this.programKick, this.programCall]) fd.close();
  }
}

async function joined(plane: DataPlane, queue: Queue, lost = lostNever): Promise<QueueJoin> {
  const join = await plane.join(queue.spec, lost);
  assert.ok(!(join instanceof HypervisorFault));
  return join;
}

for (const workers of [0, 1, 2]) {
  describe(`data plane with ${workers} threads`, () => {
    const noXen = new FakeXen();
    const hypervisor = noXen.hypervisorFor(noXen.createDomain('none'));
    const open = (): DataPlane => openDataPlane({ dataPlaneWorkers: workers, dataPlaneSpinUs: 20 }, poller, hypervisor);
    let plane: DataPlane;
    const queues: Queue[] = [];
    const newQueue = (): Queue => {
      const queue = new Queue();
      queues.push(queue);
      return queue;
    };
    before(() => {
      plane = open();
    });
    after(async () => {
      await plane.close();
      noXen.close();
      for (const queue of queues) queue.close();
    });

    test('kicks and calls pass, many times, on many queues', async () => {
      const all = Array.from({ length: 5 }, newQueue);
      const joins = await Promise.all(all.map((queue) => joined(plane, queue)));
      for (let round = 0; round < 20; round++) await Promise.all(all.map((queue) => queue.works()));
      const { joins: count, events, signals } = plane.snapshot();
      assert.equal(count, 5);
      assert.ok(signals <= events);
      await Promise.all(joins.map((join) => join.close()));
      assert.equal(plane.snapshot().joins, 0);
    });

    test('what was signalled before the join passes', async () => {
      const queue = newQueue();
      signalEventfd(queue.kick.number);
      signalEventfd(queue.programCall.number);
      const join = await joined(plane, queue);
      await eventually(() => assert.ok(drainEventfd(queue.programKick.number)));
      await eventually(() => assert.ok(drainEventfd(queue.call.number)));
      await join.close();
    });

    test('after its end a join passes nothing, and leaves nothing open; others go on', async () => {
      const other = newQueue();
      const otherJoin = await joined(plane, other);
      const queue = newQueue();
      const start = await settledCensus();
      const join = await joined(plane, queue);
      await queue.works();
      const [one, two] = [join.close(), join.close()];
      await Promise.all([one, two]);
      signalEventfd(queue.kick.number);
      await other.works();
      assert.equal(drainEventfd(queue.programKick.number), false);
      assert.deepEqual(await settledCensus(), start);
      await otherJoin.close();
    });

    test('the caller may close its descriptors, and the same ones may be joined again', async () => {
      const queue = newQueue();
      const first = await joined(plane, queue);
      const second = await joined(plane, queue);
      await first.close();
      await queue.works();
      await second.close();
    });

    test('one direction alone', async () => {
      const queue = newQueue();
      const { kick } = queue.spec;
      const join = await plane.join({ kick }, lostNever);
      await queue.passes(queue.kick, queue.programKick);
      await (join as QueueJoin).close();
    });

    test('a full counter that blocks its writers stops nobody else', async () => {
      const [bad, good] = [newQueue(), newQueue()];
      const joins = [await joined(plane, bad), await joined(plane, good)];
      for (const fd of [bad.programKick, bad.call]) {
        assert.equal(writeFrom(fd.number, new Uint8Array([0xfe, 255, 255, 255, 255, 255, 255, 255]), 8), 8);
        setStatusFlags(fd.number, statusFlags(fd.number) & ~linux.O_NONBLOCK);
      }
      for (let round = 0; round < 5; round++) {
        signalEventfd(bad.kick.number);
        signalEventfd(bad.programCall.number);
        await good.works();
      }
      await Promise.all(joins.map((join) => join.close()));
    });

    test('a queue that is signalled all the time does not keep another one waiting, or a command', async () => {
      const [noisy, quiet] = [newQueue(), newQueue()];
      const join = await joined(plane, noisy);
      let noise: NodeJS.Immediate;
      const shout = (): void => {
        for (let i = 0; i < 100; i++) signalEventfd(noisy.kick.number);
        noise = setImmediate(shout);
      };
      shout();
      const quietJoin = await joined(plane, quiet);
      for (let round = 0; round < 5; round++) await quiet.works();
      await quietJoin.close();
      clearImmediate(noise!);
      await join.close();
    });

    test('a closed plane is closed: joins end silently, later ones fail', async () => {
      const start = await settledCensus();
      const closing = open();
      const queue = new Queue();
      const join = await joined(closing, queue);
      await queue.works();
      const counted = closing.snapshot().signals;
      await closing.close();
      await closing.close();
      await join.close();
      await assert.rejects(closing.join(queue.spec, lostNever), { code: 'unavailable' });
      assert.equal(closing.snapshot().joins, 0);
      assert.ok(closing.snapshot().signals >= counted);
      queue.close();
      assert.deepEqual(await settledCensus(), start);
    });

    test('a descriptor that is not open, or no eventfd, is an error', async () => {
      const start = census();
      const spec = { kick: { from: { eventfd: 0x7fff_fff0 }, to: 0x7fff_fff1 } };
      await assert.rejects(plane.join(spec, lostNever), { code: 'system-call' });
      // Known to be no eventfd: standard input.
      const other = { kick: { from: { eventfd: 0 }, to: 0 } };
      await assert.rejects(plane.join(other, lostNever), { code: 'invalid-request', message: /0 is no eventfd/ });
      assert.deepEqual(census(), start);
    });
  });
}

describe('data plane and event channels', () => {
  const rig = () => {
    const xen = new FakeXen();
    const guestDomid = xen.createDomain('guest');
    const service = xen.hypervisorFor(xen.createDomain('service'));
    const guest = xen.hypervisorFor(guestDomid).openEventChannels();
    const plane = openDataPlane({ dataPlaneWorkers: 0, dataPlaneSpinUs: 0 }, poller, service);
    const [kick, call] = [createEventfd(), createEventfd()];
    const spec = (number: number) => {
      const end = { channel: { domid: guestDomid, port: asEventPort(number)! } };
      return { kick: { from: end, to: kick.number }, call: { from: call.number, to: end } };
    };
    const close = async (): Promise<void> => {
      await plane.close();
      kick.close();
      call.close();
      xen.close();
    };
    return { xen, service, guestDomid, guest, plane, kick, call, spec, close };
  };

  test('events of the guest kick the program, and its calls are events of the guest', async () => {
    const { guest, service, plane, kick, call, spec, close } = rig();
    let events = 0;
    const channel = guest.bindUnbound(service.domid, () => void events++);
    const join = await plane.join(spec(channel.port), lostNever);
    assert.ok(!(join instanceof HypervisorFault));
    for (let round = 0; round < 10; round++) {
      channel.notify();
      await eventually(() => assert.ok(drainEventfd(kick.number)));
      const before_ = events;
      signalEventfd(call.number);
      await eventually(() => assert.ok(events > before_));
    }
    await join.close();
    assert.equal(service.census().channels, 0);
    const again = await plane.join(spec(channel.port), lostNever);
    assert.ok(!(again instanceof HypervisorFault), 'the port is free again');
    await close();
  });

  test('a port that is not there, or bound already, is told', async () => {
    const { guest, guestDomid, service, plane, spec, close } = rig();
    const channel = guest.bindUnbound(service.domid, () => {});
    const missing = await plane.join(spec(999), lostNever);
    assert.ok(missing instanceof HypervisorFault && missing.errno === 'EINVAL' && missing.first === 999);
    const held = service.openEventChannels().bindInterdomain(guestDomid, channel.port, () => {});
    assert.ok(!(held instanceof HypervisorFault));
    assert.ok((await plane.join(spec(channel.port), lostNever)) instanceof HypervisorFault);
    assert.equal(plane.snapshot().joins, 0);
    held.close();
    assert.ok(!((await plane.join(spec(channel.port), lostNever)) instanceof HypervisorFault));
    await close();
  });

  test('a guest that is paused, and one that was destroyed, change nothing for others', async () => {
    const { xen, guest, guestDomid, service, plane, call, spec, close } = rig();
    const channel = guest.bindUnbound(service.domid, () => {});
    await plane.join(spec(channel.port), lostNever);
    const queue = new Queue();
    await joined(plane, queue);
    xen.pause(guestDomid);
    signalEventfd(call.number);
    await queue.works();
    xen.unpause(guestDomid);
    xen.destroy(guestDomid);
    signalEventfd(call.number);
    await queue.works();
    queue.close();
    await close();
  });

  test('queues of one guest may share a port', async () => {
    const { guest, service, plane, spec, close } = rig();
    const channel = guest.bindUnbound(service.domid, () => {});
    const joins = await Promise.all([1, 2].map(() => plane.join(spec(channel.port), lostNever)));
    assert.equal(service.census().channels, 1);
    for (const join of joins) {
      assert.ok(!(join instanceof HypervisorFault));
      await join.close();
    }
    assert.equal(service.census().channels, 0);
    await close();
  });
});

describe('a data-plane thread and the event channels of Xen', () => {
  const guest = asDomid(5)!;
  const channel = (port: number) => ({ channel: { domid: guest, port: asEventPort(port)! } });

  test('one wait for all: ports of the device and eventfds; ports are given back after their round', () => {
    const epoll = new EpollPoller(8);
    const device = new EventDevice(epoll);
    const batch = new SignalBatch(8);
    const engine = new JoinEngine({
      watchEdges: (fd, onEdge) => epoll.watchEdges(fd, onEdge),
      signals: batch,
      openChannels: () => device.channels,
      wake: () => {},
      counts: newCounts(),
    });
    const round = (): void => {
      assert.ok(epoll.dispatch(1000) > 0);
      engine.forward();
    };
    const [kick, call, other] = [createEventfd(), createEventfd(), createEventfd()];
    // The device numbers ports in the order in which they are bound: 1 and 2.
    engine.join(1, { kick: { from: channel(41), to: kick.number }, call: { from: call.number, to: channel(41) } });
    engine.join(2, { kick: { from: channel(42), to: other.number } });
    engine.forward();
    assert.deepEqual([drainEventfd(kick.number), drainEventfd(other.number)], [true, true]);
    device.raise(1);
    round();
    assert.deepEqual([drainEventfd(kick.number), drainEventfd(other.number)], [true, false]);
    assert.deepEqual(device.finished(), [1]);
    signalEventfd(call.number);
    round();
    assert.deepEqual(device.notified, [1]);
    device.raise(2, 1);
    signalEventfd(call.number);
    round();
    assert.deepEqual([drainEventfd(kick.number), drainEventfd(other.number)], [true, true]);
    assert.deepEqual(device.notified, [1, 1]);
    engine.unjoin(1);
    assert.deepEqual(device.unbound, [1]);
    engine.close();
    assert.deepEqual(device.unbound, [1, 2]);
    for (const each of [device, epoll, batch, kick, call, other]) each.close();
  });
});

describe('a data-plane thread that fails', () => {
  const planeOf = (program: string): DataPlane =>
    new DataPlane({
      places: 1,
      open: (ended) => new WorkerLink(new URL(`data:text/javascript,${encodeURIComponent(program)}`), 0, ended),
    });

  test('at its start: the join fails with the reason, and nothing stays open', async () => {
    const queue = new Queue();
    const start = await settledCensus();
    const plane = planeOf("throw new Error('on purpose')");
    for (let attempt = 0; attempt < 2; attempt++) {
      await assert.rejects(plane.join(queue.spec, lostNever), { code: 'unavailable', message: 'on purpose' });
    }
    await plane.close();
    assert.deepEqual(await settledCensus(), start);
    queue.close();
  });

  test('later: the users of its joins are told', async () => {
    const queue = new Queue();
    const start = await settledCensus();
    const plane = planeOf(`
      import { parentPort } from 'node:worker_threads';
      parentPort.once('message', ({ call }) => {
        parentPort.postMessage({ call, outcome: { ok: true } });
        parentPort.once('message', () => { throw new Error('on purpose'); });
      });
    `);
    let reason = '';
    const fails = (why: string): void => {
      reason = why;
    };
    const join = await joined(plane, queue, fails);
    // The next command is one too many.
    await assert.rejects(plane.join(queue.spec, lostNever), { code: 'unavailable', message: 'on purpose' });
    await eventually(() => assert.equal(plane.snapshot().joins, 0));
    await join.close();
    assert.equal(reason, 'on purpose');
    assert.equal(plane.snapshot().joins, 0);
    await plane.close();
    assert.deepEqual(await settledCensus(), start);
    queue.close();
  });
});
