import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { limits } from '../../src/kit/limits.ts';
import { feature } from '../../src/virtio/features.ts';
import type { RingDriverQueue } from '../../src/virtio/rings.ts';
import { status } from '../../src/virtio/status.ts';
import { FakeBackend, type FakeBackendOptions } from '../support/bridge-backend.ts';
import { Bench, buffer, driverOk } from '../support/bridge-bench.ts';

function bench(backend: FakeBackendOptions = {}): { b: Bench; device: FakeBackend } {
  const b = new Bench();
  const device = new FakeBackend(backend);
  b.attach(device);
  b.connect();
  return { b, device };
}

/** Makes one request available that the backend holds. */
function hold(b: Bench, queue: RingDriverQueue, slot = 0): void {
  queue.add([buffer(1, slot)], [buffer(1, slot + 1)]);
  queue.kick();
  b.available();
}

const needsReset = driverOk | status.DEVICE_NEEDS_RESET;

describe('device host: requests', () => {
  test('requests behind one that waits keep their order; those beyond the limit fail with EBUSY', () => {
    const { b, device } = bench();
    const { queue } = b.start({ extra: [feature.RING_RESET] });
    hold(b, queue);
    const first = b.request('RESET_VQUEUE', { index: 0 });
    const waiting = Array.from({ length: limits.devicePendingRequests }, () => b.request('GET_DEVICE_STATUS', {}));
    assert.deepEqual(b.take(), []);
    assert.equal(b.askFailing('GET_DEVICE_STATUS', {}), 16);
    assert.equal(b.askFailing('SET_DEVICE_STATUS', { status: 0 }), 16);
    device.complete();
    b.scheduler.run();
    assert.deepEqual(
      b.take().map((message) => message.header.token),
      [first, ...waiting],
    );
    assert.equal(b.getStatus(), driverOk, 'the refused reset was not carried out');
  });

  test('the deadline fails one request, and the next one is answered', () => {
    const { b, device } = bench();
    const { queue } = b.start({ extra: [feature.RING_RESET] });
    hold(b, queue);
    b.request('RESET_VQUEUE', { index: 0 });
    const next = b.request('GET_DEVICE_STATUS', {});
    b.clock.advance(limits.requestTimeoutMs);
    b.scheduler.run();
    const seen = b.take();
    assert.deepEqual(
      seen.map((message) => message.name),
      ['FAILURE', 'EVENT_CONFIG', 'GET_DEVICE_STATUS'],
    );
    assert.deepEqual([seen[2]?.header.token, seen[2]?.body], [next, { status: needsReset }]);
    assert.match(b.runtime.snapshot().devices[0]?.reason ?? '', /RESET_VQUEUE was not carried out in 5000 ms/);
    assert.equal(b.setStatus(0), needsReset);
    device.complete();
    b.scheduler.run();
    assert.equal(b.getStatus(), 0);
    assert.equal(b.clock.timers, 1, 'only the status event is planned');
  });

  test('an answer in time leaves no deadline behind', () => {
    const { b, device } = bench();
    const { queue } = b.start({ extra: [feature.RING_RESET] });
    hold(b, queue);
    b.request('RESET_VQUEUE', { index: 0 });
    b.clock.advance(limits.requestTimeoutMs - 1);
    device.complete();
    b.scheduler.run();
    assert.equal(b.take().length, 1);
    b.clock.advance(limits.requestTimeoutMs);
    b.scheduler.run();
    assert.deepEqual(b.take(), []);
    assert.equal(b.clock.timers, 0);
  });

  test('requests of a device that is detached fail with ENODEV', async () => {
    const { b, device } = bench();
    const { queue } = b.start({ extra: [feature.RING_RESET] });
    hold(b, queue);
    const tokens = [b.request('RESET_VQUEUE', { index: 0 }), b.request('GET_DEVICE_STATUS', {})];
    const gone = b.runtime.detach('disk');
    b.scheduler.run();
    const failures = b.take().map((message) => message.body as { token: number; errno: number });
    assert.deepEqual(
      failures.map(({ token, errno }) => [token, errno]),
      tokens.map((token) => [token, 19]),
    );
    device.complete(7);
    b.scheduler.run();
    await gone;
    b.scheduler.run();
    assert.deepEqual(
      b.take().map((message) => message.name),
      ['EVENT_DEVICE'],
    );
    assert.ok(device.closed);
  });

  test('a detach completes what is in flight towards the driver before the device goes', async () => {
    const { b, device } = bench();
    const { queue } = b.start();
    hold(b, queue);
    const gone = b.runtime.detach('disk');
    hold(b, queue, 2);
    assert.equal(device.handled, 1, 'nothing new is taken');
    assert.equal(b.getStatus(), driverOk, 'the device still answers');
    device.complete(7);
    b.scheduler.run();
    await gone;
    b.scheduler.run();
    assert.deepEqual(
      b.take().map((message) => message.name),
      ['EVENT_USED', 'EVENT_DEVICE'],
    );
    const used = queue.next();
    assert.ok(used !== undefined && 'writtenBytes' in used);
    assert.equal(used.writtenBytes, 7);
    assert.equal(queue.next(), undefined);
    assert.deepEqual(device.log, ['activate', 'deactivate', 'close']);
  });
});

describe('device host: reset', () => {
  test('a backend that does not let go is reported, and the reset still completes later', () => {
    const { b, device } = bench();
    const { queue } = b.start();
    hold(b, queue);
    assert.equal(b.setStatus(0), driverOk);
    b.clock.advance(limits.resetTimeoutMs - 1);
    assert.equal(b.runtime.snapshot().devices[0]?.reason, null);
    b.clock.advance(1);
    assert.match(b.runtime.snapshot().devices[0]?.reason ?? '', /did not complete its requests in 30000 ms/);
    assert.equal(b.getStatus(), driverOk);
    device.complete();
    b.scheduler.run();
    assert.equal(b.getStatus(), 0);
    assert.equal(b.runtime.snapshot().devices[0]?.reason, null);
    assert.deepEqual(device.log, ['activate', 'deactivate']);
  });

  test('a completion after a reset writes nothing to the rings or to the message channel', () => {
    const { b, device } = bench();
    const { queue, memory } = b.start();
    hold(b, queue);
    b.setStatus(0);
    const before = memory.bytes.slice();
    device.complete(512);
    b.scheduler.run();
    assert.deepEqual(memory.bytes, before);
    assert.deepEqual(b.take(), []);
  });

  test('the guest leaves during a reset: the device drains, and is activated again for the next guest', () => {
    const { b, device } = bench();
    const { queue } = b.start();
    hold(b, queue);
    b.setStatus(0);
    const left = b.guest;
    b.leave();
    assert.ok(left.closed);
    device.complete();
    b.scheduler.run();
    assert.deepEqual(device.log, ['activate', 'deactivate']);
    b.connect();
    assert.equal(b.getStatus(), 0);
    b.start();
    assert.deepEqual(device.log, ['activate', 'deactivate', 'activate']);
  });

  test('a guest that connects while requests of the last one drain finds the device resetting, then in reset', () => {
    const { b, device } = bench();
    const { queue } = b.start();
    hold(b, queue);
    const first = b.guest;
    b.leave();
    b.connect();
    assert.equal(b.getStatus(), driverOk, 'not 0 before the reset is done');
    assert.equal(b.setStatus(0), driverOk);
    assert.equal(b.setStatus(3), driverOk, 'nothing but waiting is possible');
    assert.equal(first.resources.opened[0]?.closed, false, 'the memory is still in use');
    device.complete();
    b.scheduler.run();
    assert.deepEqual(b.take(), [], 'the new guest sees nothing of the old request');
    assert.equal(first.resources.opened[0]?.closed, true);
    assert.equal(b.getStatus(), 0);
    b.start();
  });

  test('guests that come and go while the device drains leave it usable', () => {
    const { b, device } = bench();
    const { queue } = b.start();
    hold(b, queue);
    for (let i = 0; i < 3; i++) {
      b.leave();
      b.connect();
    }
    device.complete();
    b.scheduler.run();
    assert.equal(b.getStatus(), 0);
    assert.deepEqual(device.log, ['activate', 'deactivate']);
    b.start();
  });

  test('requests in flight on every queue have to end before the reset does', () => {
    const { b, device } = bench();
    const memory = b.addRegion(1);
    const second = b.addRegion(2);
    b.negotiate();
    const queues = [b.enableQueue(1, memory), b.enableQueue(2, second, { index: 1 })];
    b.setStatus(driverOk);
    for (const [index, queue] of queues.entries()) {
      queue.add([buffer(index + 1, 0)], []);
      queue.kick();
      b.available(index);
    }
    assert.equal(b.setStatus(0), driverOk);
    device.complete();
    b.scheduler.run();
    assert.equal(b.getStatus(), driverOk);
    device.complete();
    b.scheduler.run();
    assert.equal(b.getStatus(), 0);
  });
});

describe('device host: faults', () => {
  test('rings that are not in shared memory fail the device at DRIVER_OK', () => {
    const { b, device } = bench();
    b.negotiate();
    const addresses = { descAddr: 1n << 48n, driverAddr: (1n << 48n) + 4096n, deviceAddr: (1n << 48n) + 8192n };
    b.ask('SET_VQUEUE', { index: 0, flags: 1, size: 8, reserved: 0, ...addresses });
    b.request('SET_DEVICE_STATUS', { status: driverOk });
    const seen = b.take().map((message) => [message.name, (message.body as { status: number }).status]);
    assert.deepEqual(seen, [
      ['EVENT_CONFIG', needsReset],
      ['SET_DEVICE_STATUS', needsReset],
    ]);
    assert.equal(b.getStatus(), needsReset);
    assert.match(b.runtime.snapshot().devices[0]?.reason ?? '', /queue 0: descriptor area: no region has area id 1/);
    assert.equal(device.handled, 0);
    assert.equal(b.setStatus(0), 0);
  });

  test('after a fault no queue takes requests, and those in flight are given back without a completion', () => {
    const { b, device } = bench();
    const { queue } = b.start();
    hold(b, queue);
    device.host?.failed('first');
    b.scheduler.run();
    assert.equal(b.takeEvents('EVENT_CONFIG').length, 1);
    hold(b, queue, 2);
    assert.equal(device.handled, 1);
    device.complete();
    b.scheduler.run();
    assert.equal(queue.next(), undefined);
    device.host?.failed('second');
    b.scheduler.run();
    assert.deepEqual(b.take(), [], 'one fault is announced once');
    assert.equal(b.setStatus(0), 0);
    b.removeRegion(1);
    b.start();
  });

  test('a region that is removed under a device fails it after the wait, and is unmapped with its last user', () => {
    const { b, device } = bench();
    const { queue, memory } = b.start();
    hold(b, queue);
    const token = b.request('REGION_DEL', { peer: 0, area: 1, reserved: 0 });
    assert.deepEqual(b.take(), []);
    b.clock.advance(limits.regionRemovalTimeoutMs);
    b.scheduler.run();
    const seen = b.take();
    assert.deepEqual(
      seen.map((message) => [message.name, message.header.token]),
      [
        ['REGION_DEL', token],
        ['EVENT_CONFIG', 0],
      ],
    );
    assert.deepEqual(seen[0]?.body, { errno: 16 });
    assert.equal(memory.closed, false);
    device.complete();
    b.scheduler.run();
    assert.equal(memory.closed, true, 'the halted queue has given its rings back too');
    assert.equal(b.getStatus(), needsReset);
  });

  test('a backend that fails while its device is in reset says why, and does not keep a driver from starting', () => {
    const b = new Bench();
    const device = new FakeBackend();
    b.attach(device);
    device.host?.failed('no entropy');
    assert.equal(b.runtime.snapshot().devices[0]?.reason, 'no entropy');
    b.connect();
    assert.equal(b.getStatus(), 0);
    b.start();
  });

  test('status changes are reported at a bounded rate, the latest one', () => {
    const { b } = bench();
    b.events.length = 0;
    b.start();
    b.setStatus(0);
    b.setStatus(1);
    assert.deepEqual(b.events, []);
    b.clock.advance(20);
    assert.deepEqual(b.events, [
      { type: 'device-status', bus: 'bench', attachment: 'disk', deviceNumber: 0, status: 1, reason: null },
    ]);
  });
});
