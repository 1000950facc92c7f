import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { limits } from '../../src/kit/limits.ts';
import { asEventPort, type EventChannel, type EventChannels } from '../../src/ports/hypervisor.ts';
import {
  granted,
  type HypervisorBench,
  type MakeBench,
  refused,
  settle,
  until,
  withBench,
} from '../support/hypervisor-bench.ts';

interface Pair {
  readonly bench: HypervisorBench;
  readonly ours: EventChannels;
  readonly theirs: EventChannels;
  readonly guest: EventChannel;
  readonly service: EventChannel;
  /** Events of each side; set to 0 once the first, spurious ones have come. */
  readonly count: { guest: number; service: number };
  own<T extends { close(): void }>(resource: T): T;
}

export function eventCases(make: MakeBench): void {
  const withPair = (run: (pair: Pair) => Promise<void>): Promise<void> =>
    withBench(make, async (bench, own) => {
      const count = { guest: 0, service: 0 };
      const ours = own(bench.guest.hypervisor.openEventChannels());
      const theirs = own(bench.service.hypervisor.openEventChannels());
      const guest = own(ours.bindUnbound(bench.service.domid, () => count.guest++));
      const bound = theirs.bindInterdomain(bench.guest.domid, guest.port, () => count.service++);
      const service = own(granted(bound));
      await settle();
      count.guest = 0;
      count.service = 0;
      await run({ bench, ours, theirs, guest, service, count, own });
    });
  edgeCases(withPair);
  bindCases(withPair);
  fairnessCases(withPair);
}

type WithPair = (run: (pair: Pair) => Promise<void>) => Promise<void>;

function edgeCases(withPair: WithPair): void {
  test('events go both ways, never from within a call, and only to the other end', () =>
    withPair(async ({ guest, service, count }) => {
      guest.notify();
      assert.deepEqual(count, { guest: 0, service: 0 });
      await until('the event', () => count.service === 1);
      service.notify();
      assert.equal(count.guest, 0);
      await until('the event', () => count.guest === 1);
      await settle();
      assert.deepEqual(count, { guest: 1, service: 1 });
    }));

  test('events that were not taken yet are one', () =>
    withPair(async ({ guest, count }) => {
      for (let i = 0; i < 1000; i++) guest.notify();
      await until('the event', () => count.service > 0);
      await settle();
      // One more may have come between the kernel's queue and the listener.
      assert.ok(count.service <= 2, `${count.service} events`);
    }));

  test('an event during a listener comes again after it', () =>
    withPair(async ({ bench, ours, theirs, own }) => {
      let [rounds, late] = [0, 0];
      const guest = own(ours.bindUnbound(bench.service.domid, () => late++));
      const back = own(
        granted(
          theirs.bindInterdomain(bench.guest.domid, guest.port, () => {
            if (++rounds <= 5) guest.notify();
            back.notify();
          }),
        ),
      );
      guest.notify();
      await until('all rounds', () => rounds >= 6);
      await until('the answers', () => late > 0);
    }));
}

function bindCases(withPair: WithPair): void {
  test('a port that does not exist, and one that is bound already, are refused by name', () =>
    withPair(async ({ bench, theirs, guest }) => {
      const { domid } = bench.guest;
      for (const port of [guest.port, asEventPort(100_000)!, asEventPort(0xffff_ffff)!]) {
        const fault = refused(theirs.bindInterdomain(domid, port, () => {}));
        assert.deepEqual(
          { ...fault },
          { call: 'xenevtchn_bind_interdomain', errno: 'EINVAL', domid, first: port, count: 1 },
        );
      }
    }));

  test('a port stays usable when the other end comes and goes', () =>
    withPair(async ({ bench, theirs, guest, service, count, own }) => {
      let events = 0;
      service.close();
      guest.notify();
      service.notify();
      const again = own(granted(theirs.bindInterdomain(bench.guest.domid, guest.port, () => events++)));
      await settle();
      events = 0;
      count.guest = 0;
      again.notify();
      await until('an event', () => count.guest > 0);
      guest.notify();
      await until('an event', () => events > 0);
      assert.equal(count.service, 0);
    }));

  test('when the port is gone the other end hears nothing, fails nothing and cannot be bound to it again', () =>
    withPair(async ({ bench, theirs, guest, service, count }) => {
      guest.close();
      service.notify();
      await settle();
      assert.equal(count.guest, 0);
      assert.equal(refused(theirs.bindInterdomain(bench.guest.domid, guest.port, () => {})).errno, 'EINVAL');
    }));

  test('no event comes after close, one that is under way included', () =>
    withPair(async ({ guest, service, count }) => {
      guest.notify();
      service.close();
      await settle();
      assert.equal(count.service, 0);
    }));

  test('closing the channels closes each', () =>
    withPair(async ({ theirs, guest, count, service }) => {
      guest.notify();
      theirs.close();
      service.notify();
      await settle();
      assert.deepEqual(count, { guest: 0, service: 0 });
    }));
}

function fairnessCases(withPair: WithPair): void {
  test('a storm on one channel starves neither others nor timers', () =>
    withPair(async ({ bench, ours, theirs, guest, count, own }) => {
      let [storm, on] = [0, true];
      const noisy: EventChannel = own(ours.bindUnbound(bench.service.domid, () => on && noisy.notify()));
      const echo = own(
        granted(
          theirs.bindInterdomain(bench.guest.domid, noisy.port, () => {
            storm++;
            if (on) echo.notify();
          }),
        ),
      );
      noisy.notify();
      await until('the storm', () => storm > 100);
      guest.notify();
      await until('the quiet channel', () => count.service > 0);
      await sleep(1);
      on = false;
    }));

  test('more channels than one batch holds all get their event', () =>
    withPair(async ({ bench, ours, theirs, own }) => {
      const channels = limits.eventBatchPorts * 2 + 3;
      const got = new Set<number>();
      const ends = Array.from({ length: channels }, (_, i) => {
        const end = own(ours.bindUnbound(bench.service.domid, () => {}));
        own(granted(theirs.bindInterdomain(bench.guest.domid, end.port, () => got.add(i))));
        return end;
      });
      await settle();
      got.clear();
      for (const end of ends) end.notify();
      await until('all events', () => got.size === channels);
    }));

  test('a listener may close another channel whose event has come as well', () =>
    withPair(async ({ bench, ours, theirs, own }) => {
      let [events, armed] = [0, false];
      const ends = [0, 1].map(() => own(ours.bindUnbound(bench.service.domid, () => {})));
      const others: EventChannel[] = ends.map((end, i) => {
        const listener = (): void => {
          if (!armed) return;
          events++;
          others[1 - i]!.close();
        };
        return own(granted(theirs.bindInterdomain(bench.guest.domid, end.port, listener)));
      });
      await settle();
      armed = true;
      for (const end of ends) end.notify();
      await until('an event', () => events > 0);
      await settle();
      assert.equal(events, 1);
    }));
}
