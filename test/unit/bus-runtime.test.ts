import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { limits } from '../../src/kit/limits.ts';
import { status } from '../../src/virtio/status.ts';
import { FakeBackend } from '../support/bridge-backend.ts';
import { Bench, buffer, driverOk } from '../support/bridge-bench.ts';
import { type FakeConnection, FakeMemory, FakeStore, testPeer } from '../support/bridge-fakes.ts';

const claimOf = (connection: FakeConnection) => connection.admission;

/** A service with one device in use, killed; its store and the guest's memory are what is left. */
function killed(inFlight: number): { store: FakeStore; memory: FakeMemory; claim: FakeConnection['admission'] } {
  const store = new FakeStore();
  const b = new Bench({ store });
  b.attach(new FakeBackend());
  b.connect();
  const { queue, memory } = b.start();
  for (let i = 0; i < inFlight; i++) queue.add([buffer(1, 2 * i)], [buffer(1, 2 * i + 1)]);
  queue.kick();
  b.available();
  return { store, memory, claim: claimOf(b.guest) };
}

/** Gives the region that a resumed guest had before. */
function addAgain(b: Bench, memory: FakeMemory): void {
  b.guest.resources.memories.set(99, new FakeMemory(memory.bytes));
  const length = BigInt(memory.bytes.length);
  const body = { peer: 0, area: 1, flags: 0, reference: 99, domain: 0, offset: 0n, length };
  assert.equal(b.ask('REGION_ADD', body).errno, 0);
}

describe('bus runtime: guests', () => {
  test('coming and going is reported with epoch, peer and reason', () => {
    const b = new Bench();
    b.connect();
    b.leave();
    b.connect();
    assert.deepEqual(b.events, [
      { type: 'bus-connected', bus: 'bench', epoch: 1n, peer: testPeer, resumed: false },
      { type: 'bus-disconnected', bus: 'bench', epoch: 1n, reason: 'the guest left' },
      { type: 'bus-connected', bus: 'bench', epoch: 2n, peer: testPeer, resumed: false },
    ]);
    const { epoch, peer, state } = b.runtime.snapshot();
    assert.deepEqual([epoch, peer, state], [2n, testPeer, 'connected']);
  });

  test('frames that came before anyone listened are answered', () => {
    const b = new Bench();
    const ping = b.encode({ kind: 'request', name: 'PING', body: { data: 1 } }, 0, 1);
    const guest = b.transport.connect({ epoch: 0n, token: new Uint8Array(16) }, 64, 8, [ping]);
    b.scheduler.run();
    assert.equal(guest.port.visible.length, 1);
  });

  test('a broken ring ends the connection and resets the devices', () => {
    const b = new Bench();
    b.attach(new FakeBackend());
    b.connect();
    const { memory } = b.start();
    b.guest.port.broken = true;
    b.guest.doorbell();
    b.scheduler.run();
    assert.ok(b.guest.closed);
    assert.ok(memory.closed);
    assert.equal(b.runtime.snapshot().devices[0]?.status, 0);
    assert.deepEqual(b.events.at(-1)?.type, 'bus-disconnected');
  });

  test('a break that is told late does not end the next guest', () => {
    const b = new Bench();
    b.connect();
    b.guest.port.broken = true;
    b.guest.doorbell();
    b.transport.leave('the guest left');
    const next = b.transport.connect({ epoch: 0n, token: new Uint8Array(16) }, 64);
    b.scheduler.run();
    assert.equal(next.closed, false);
    assert.equal(b.runtime.snapshot().epoch, 2n);
    assert.equal(b.events.filter((event) => event.type === 'bus-disconnected').length, 1);
  });

  test('garbage is counted, not answered, and hurts nobody', () => {
    const b = new Bench();
    b.attach(new FakeBackend());
    b.connect();
    for (let i = 0; i < 1000; i++) b.postRaw(Uint8Array.from({ length: 64 }, (_, j) => (i * 31 + j * 17) & 0xff));
    const { malformed, dropped, failures, messagesIn } = b.runtime.snapshot().counters;
    assert.equal(messagesIn, 1000);
    assert.ok(malformed > 500 && malformed + dropped + failures <= 1000);
    b.take();
    assert.equal(b.getStatus(), 0);
  });
});

describe('bus runtime: attachments', () => {
  test('limits and duplicates are refused with their code', async () => {
    const b = new Bench();
    for (let i = 0; i < limits.devicesPerBus; i++) b.attach(new FakeBackend({ queueSizes: [4] }), `a${i}`);
    assert.throws(() => b.attach(new FakeBackend(), 'more'), { code: 'limit-reached' });
    await assert.rejects(b.runtime.detach('nobody'), { code: 'not-found' });
    await b.detach('a7');
    b.attach(new FakeBackend(), 'more');
    assert.throws(() => b.attach(new FakeBackend(), 'again', 3), { code: 'limit-reached' });
  });

  test('numbers end at 65535: then an attachment needs one of its own', () => {
    const b = new Bench();
    for (let i = 0; i <= 0xffff; i++) b.store.files.set(`device-${i}-0123456789abcdef`, new Uint8Array(0));
    assert.throws(() => b.attach(new FakeBackend()), { code: 'limit-reached' });
    assert.equal(b.attach(new FakeBackend(), 'chosen', 5), 5);
  });

  test('a detach leaves nothing behind', async () => {
    const b = new Bench();
    const device = new FakeBackend();
    b.attach(device);
    b.connect();
    b.start();
    const files = b.store.files.size;
    await b.detach('disk');
    assert.ok(device.closed);
    assert.deepEqual([b.store.files.size, b.store.openMemories], [files - 1, 1], 'only the record of the bus');
    assert.deepEqual(b.runtime.snapshot().devices, []);
  });

  test('a detach from a stuck backend fails after a bounded time', async () => {
    const b = new Bench();
    b.attach(new FakeBackend());
    b.connect();
    const { queue } = b.start();
    queue.add([buffer(1, 0)], []);
    queue.kick();
    b.available();
    const gone = assert.rejects(b.runtime.detach('disk'), { code: 'timeout' });
    b.clock.advance(limits.resetTimeoutMs);
    await gone;
  });

  test('closing with requests in flight waits for them, and touches no ring meanwhile', async () => {
    const b = new Bench();
    const device = new FakeBackend();
    b.attach(device);
    b.connect();
    const { queue, memory } = b.start();
    queue.add([buffer(1, 0)], []);
    queue.kick();
    b.available();
    b.request('REGION_DEL', { peer: 0, area: 1, reserved: 0 });
    // More messages than one turn takes: the rest is planned for a later one.
    const ping = b.encode({ kind: 'request', name: 'PING', body: { data: 1 } }, 0, 1);
    for (let i = 0; i < 2 * limits.channelBatchMessages; i++) b.guest.port.incoming.push(ping);
    b.guest.doorbell();
    const closed = b.runtime.close(true);
    for (const method of ['receive', 'send', 'flush', 'sleep'] as const) {
      b.guest.port[method] = () => assert.fail(`${method} after the rings are unmapped`);
    }
    b.scheduler.run();
    assert.equal(device.closed, false);
    device.complete();
    b.scheduler.run();
    await closed;
    assert.deepEqual([device.closed, memory.closed, b.transport.closed], [true, true, true]);
    assert.deepEqual([b.store.files.size, b.store.openMemories], [0, 0]);
    b.clock.advance(limits.resetTimeoutMs);
    assert.equal(b.clock.timers, 0);
  });
});

describe('bus runtime: resuming after a kill', () => {
  test('the guest finds its device as it was, and requests in flight are executed and completed once', () => {
    const { store, memory, claim } = killed(3);
    const b = new Bench({ store });
    const device = new FakeBackend();
    assert.equal(b.attach(device), 0);
    b.connect({ claim });
    assert.equal(b.guest.admission.resumed, true);
    assert.deepEqual(device.log, ['activate']);
    addAgain(b, memory);
    assert.equal(b.getStatus(), driverOk);
    assert.equal(b.ask('GET_VQUEUE', { index: 0 }).flags, 1);
    assert.equal(device.handled, 0, 'not before the guest says that its memory is back');
    b.available();
    assert.equal(device.handled, 3);
    for (let i = 0; i < 3; i++) device.complete(5);
    b.scheduler.run();
    assert.equal(new DataView(memory.bytes.buffer).getUint16(8 * 16 + 24 + 2, true), 3, 'used.idx');
  });

  test('without the claim the device is in reset', () => {
    const { store } = killed(1);
    const b = new Bench({ store });
    const device = new FakeBackend();
    b.attach(device);
    b.connect();
    assert.equal(b.getStatus(), 0);
    assert.deepEqual(device.log, []);
    b.start();
    assert.equal(device.handled, 0);
  });

  test('a guest that was seen to leave finds its device in reset after a restart', () => {
    const { store, claim } = killed(0);
    const first = new Bench({ store });
    first.attach(new FakeBackend());
    const connection = first.connect({ claim });
    first.leave();
    const b = new Bench({ store });
    b.attach(new FakeBackend());
    b.connect({ claim: connection.admission });
    assert.equal(b.guest.admission.resumed, false);
    assert.equal(b.getStatus(), 0);
  });

  test('another backend under the same number is not taken for the old one', () => {
    const { store, claim } = killed(1);
    const b = new Bench({ store });
    b.attach(new FakeBackend(), 'another disk', 0);
    b.connect({ claim });
    assert.equal(b.guest.admission.resumed, true);
    assert.equal(b.getStatus(), 0);
  });

  test('devices get the numbers they had, in whatever order they are attached', () => {
    const store = new FakeStore();
    const first = new Bench({ store });
    for (const name of ['a', 'b', 'c']) first.attach(new FakeBackend(), name);
    const b = new Bench({ store });
    const numbers = ['c', 'new', 'a', 'b'].map((name) => b.attach(new FakeBackend(), name));
    assert.deepEqual(numbers, [2, 3, 0, 1]);
  });

  test('a changed configuration is announced to the resumed driver', () => {
    const { store, memory, claim } = killed(0);
    const b = new Bench({ store });
    b.attach(new FakeBackend({ config: new Uint8Array(40).fill(3) }));
    b.connect({ claim });
    const events = b.takeEvents('EVENT_CONFIG');
    assert.deepEqual(
      events.map((event) => (event.body as { status: number }).status),
      [driverOk],
    );
    addAgain(b, memory);
    assert.deepEqual(b.ask('GET_CONFIG', { offset: 0, length: 2 }).data, Uint8Array.of(3, 3));
  });

  test('a device whose region did not come back fails, without touching anything', () => {
    const { store, claim } = killed(1);
    const b = new Bench({ store });
    const device = new FakeBackend();
    b.attach(device);
    b.connect({ claim });
    b.available();
    b.take();
    assert.equal(b.getStatus(), driverOk | status.DEVICE_NEEDS_RESET);
    assert.equal(device.handled, 0);
    assert.equal(b.setStatus(0), 0);
  });

  test('records of devices that are not attached any more go when a guest starts afresh', () => {
    const { store } = killed(0);
    const b = new Bench({ store });
    assert.equal(store.files.size, 2);
    b.connect();
    assert.deepEqual(store.names(), ['bus']);
  });

  test('a service that ends in order completes what is in flight, and its guest resumes', async () => {
    const store = new FakeStore();
    const first = new Bench({ store });
    const device = new FakeBackend();
    first.attach(device);
    const { admission } = first.connect();
    const { queue, memory } = first.start();
    queue.add([buffer(1, 0)], []);
    queue.kick();
    first.available();
    const suspended = first.runtime.suspend();
    device.complete();
    first.scheduler.run();
    await suspended;
    assert.ok(queue.next() !== undefined);
    await first.runtime.close(false);
    const b = new Bench({ store });
    const next = new FakeBackend();
    b.attach(next);
    b.connect({ claim: admission });
    addAgain(b, memory);
    b.available();
    b.take();
    assert.equal(next.handled, 0, 'nothing is executed again');
    queue.add([buffer(1, 0)], []);
    queue.kick();
    b.available();
    assert.equal(next.handled, 1);
  });
});
