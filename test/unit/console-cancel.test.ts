import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { limits } from '../../src/kit/limits.ts';
import type { BackendMemory } from '../../src/ports/backend.ts';
import { feature } from '../../src/virtio/features.ts';
import { type DriverQueue, QueueFault } from '../../src/virtio/queue.ts';
import { status } from '../../src/virtio/status.ts';
import { FakeBackend } from '../support/bridge-backend.ts';
import { Bench, buffer, driverOk } from '../support/bridge-bench.ts';
import { FakeMemory, FakeStore } from '../support/bridge-fakes.ts';

/** A backend that keeps receive buffers until it is told to release them. */
class KeepingBackend extends FakeBackend {
  readonly cancelled: number[] = [];
  /** Completes these before the rest is released, as work that was under way. */
  completing = 0;
  memory: BackendMemory | undefined;

  override activate(has: (featureBit: number) => boolean, memory?: BackendMemory): void {
    super.activate(has);
    this.memory = memory;
  }

  cancel(queue: number): void {
    this.cancelled.push(queue);
    for (const request of this.held.filter((each) => each.queue === queue)) {
      this.held.splice(this.held.indexOf(request), 1);
      if (this.completing > 0) {
        this.completing -= 1;
        request.complete(7);
      } else request.release();
    }
  }
}

function bench(store = new FakeStore()): { b: Bench; device: KeepingBackend } {
  const b = new Bench({ store });
  const device = new KeepingBackend();
  b.attach(device);
  b.connect();
  return { b, device };
}

function offer(b: Bench, queue: DriverQueue, count: number): void {
  for (let slot = 0; slot < count; slot++) assert.notEqual(queue.add([], [buffer(1, slot)]), undefined);
  queue.kick();
  b.available();
}

function completed(queue: DriverQueue): number[] {
  const found: number[] = [];
  for (let used = queue.next(); used !== undefined; used = queue.next()) {
    assert.ok(!(used instanceof QueueFault));
    found.push(used.writtenBytes);
  }
  return found;
}

describe('requests that a backend only keeps', () => {
  test('do not hold a reset up, and are not answered', () => {
    const { b, device } = bench();
    const { queue } = b.start();
    offer(b, queue, 3);
    assert.equal(device.held.length, 3);
    assert.equal(b.setStatus(0), 0);
    assert.deepEqual([device.cancelled, device.log, completed(queue)], [[0], ['activate', 'deactivate'], []]);
    assert.equal(b.clock.timers, 1, 'no wait for the backend, only the status event');
    assert.equal(b.removeRegion(1), 0, 'the memory is free');
    b.start();
  });

  test('do not hold a reset of their queue up; the queue works again', () => {
    const { b, device } = bench();
    const { queue, memory } = b.start({ extra: [feature.RING_RESET] });
    offer(b, queue, 2);
    b.ask('RESET_VQUEUE', { index: 0 });
    assert.deepEqual(device.cancelled, [0]);
    memory.bytes.fill(0);
    const again = b.enableQueue(1, memory, { extra: [feature.RING_RESET] });
    offer(b, again, 1);
    device.complete(5);
    b.scheduler.run();
    assert.deepEqual(completed(again), [5]);
  });

  test('go with a guest that leaves', () => {
    const { b, device } = bench();
    const { queue, memory } = b.start();
    offer(b, queue, 3);
    b.leave();
    assert.deepEqual([device.held.length, device.log, memory.closed], [0, ['activate', 'deactivate'], true]);
    b.connect();
    b.start();
  });

  test('do not hold a detach up; what was under way is completed before the device goes', async () => {
    const { b, device } = bench();
    const { queue } = b.start();
    offer(b, queue, 3);
    device.completing = 1;
    await b.detach('disk');
    assert.deepEqual(completed(queue), [7]);
    assert.deepEqual(device.log, ['activate', 'deactivate', 'close']);
    assert.deepEqual(
      b.take().map(({ name }) => name),
      ['EVENT_USED', 'EVENT_DEVICE'],
    );
  });

  test('are released when the device breaks: their memory can go', () => {
    const { b, device } = bench();
    const { queue } = b.start();
    offer(b, queue, 3);
    device.host?.failed('broken');
    b.scheduler.run();
    assert.deepEqual(device.held, []);
    b.take();
    assert.equal(b.removeRegion(1), 0);
    assert.equal(b.getStatus(), driverOk | status.DEVICE_NEEDS_RESET);
    assert.equal(b.setStatus(0), 0);
  });

  for (const [end, act] of [
    ['an orderly end', (b: Bench) => b.runtime.suspend().then(() => b.runtime.close(false))],
    ['a kill', async () => {}],
  ] as const) {
    test(`after ${end} the next service has them, in their order, and none was answered`, async () => {
      const store = new FakeStore();
      const { b, device } = bench(store);
      const { queue, memory } = b.start();
      offer(b, queue, 4);
      device.complete(1);
      b.scheduler.run();
      const { admission } = b.guest;
      await act(b);
      assert.deepEqual(completed(queue), [1]);
      const next = new Bench({ store });
      const again = new KeepingBackend();
      next.attach(again);
      next.connect({ claim: admission });
      next.guest.resources.memories.set(99, new FakeMemory(memory.bytes));
      const length = BigInt(memory.bytes.length);
      const body = { peer: 0, area: 1, flags: 0, reference: 99, domain: 0, offset: 0n, length };
      assert.equal(next.ask('REGION_ADD', body).errno, 0);
      next.available();
      assert.equal(again.held.length, 3);
      for (const [i, request] of again.held.entries()) request.writable[0]![0] = 0x31 + i;
      for (const bytes of [11, 12, 13]) again.complete(bytes);
      next.scheduler.run();
      assert.deepEqual(completed(queue), [11, 12, 13]);
      assert.deepEqual(
        [...memory.bytes.filter((_, i) => i >= 32768 && i % 512 === 0)].slice(0, 4),
        [0, 0x31, 0x32, 0x33],
      );
    });
  }
});

describe('what a backend keeps with the device', () => {
  const kept = (device: KeepingBackend): number[] => [...(device.memory?.kept ?? [])];

  test('is there after a kill, the last of it, also while other state changes', () => {
    const store = new FakeStore();
    const { b, device } = bench(store);
    b.start();
    assert.deepEqual(kept(device), []);
    for (let i = 0; i < 5; i++) device.memory?.keep(Uint8Array.of(1, 2, i));
    b.ask('SET_CONFIG', { generation: 0, offset: 0, length: 1, data: Uint8Array.of(9) });
    let claim = b.guest.admission;
    for (let restart = 0; restart < 3; restart++) {
      const next = new Bench({ store });
      const again = new KeepingBackend();
      next.attach(again);
      claim = next.connect({ claim }).admission;
      assert.deepEqual(kept(again), [1, 2, 4]);
    }
  });

  test('is forgotten with a reset', () => {
    const store = new FakeStore();
    const { b, device } = bench(store);
    b.start();
    device.memory?.keep(new Uint8Array(limits.backendMemoryMaxBytes).fill(3));
    b.setStatus(0);
    b.removeRegion(1);
    b.start();
    assert.deepEqual(kept(device), []);
    const next = new Bench({ store });
    const again = new KeepingBackend();
    next.attach(again);
    next.connect({ claim: b.guest.admission });
    assert.deepEqual([again.log, kept(again)], [['activate'], []]);
  });
});
