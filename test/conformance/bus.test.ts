import assert from 'node:assert/strict';
import { RingPort } from '../../src/device/ring-port.ts';
import { limits } from '../../src/kit/limits.ts';
import { feature } from '../../src/virtio/features.ts';
import { dialectD5 } from '../../src/virtio-msg/dialect.ts';
import { RingConsumer, RingProducer, ringBytesFor } from '../../src/virtio-msg/ring.ts';
import { FakeBackend } from '../support/bridge-backend.ts';
import { Bench, buffer, driverOk } from '../support/bridge-bench.ts';
import { Checklist } from '../support/bridge-checklist.ts';
import { FakeCall } from '../support/bridge-fakes.ts';

/** The bus items of the virtio-msg D5 requirements list. */
const list = new Checklist('B', 1, 59, {
  B7: 'revision, size and features are in WELCOME, before any message: the handshake is tested with the lane',
  B9: 'no transport feature exists on this bus: WELCOME has 0, tested with the lane',
  B11: 'size and revision are fixed for a connection; a new one has a new epoch, tested with the lane',
  B15: 'only revision 1 exists, so no message needs a higher one',
  B29: 'tokens are not rewritten: the service itself is the device side of this bus',
  B33: 'a permission: responses of different devices may overtake each other',
  B37: 'a permission: GET_DEVICES may be missing; ours is there',
  B38: 'the items B58 and B59 say the same in more detail and are tested',
  B40: 'a demand on the documentation: docs/protocol/loopback.md, Notifications',
  B41: 'a demand on the documentation: docs/protocol/loopback.md, Notifications',
  B45: 'for polling-only buses; every bus of this bridge delivers events',
});

function bench(numbers: readonly number[] = [0], maxMessageSize = 64): { b: Bench; devices: FakeBackend[] } {
  const b = new Bench({ maxMessageSize });
  const devices = numbers.map((number) => {
    const device = new FakeBackend();
    b.attach(device, `disk-${number}`, number);
    return device;
  });
  b.connect();
  return { b, devices };
}

const bitmapNumbers = (offset: number, bitmap: Uint8Array): number[] =>
  [...bitmap].flatMap((byte, i) =>
    Array.from({ length: 8 }, (_, bit) => bit).flatMap((bit) => (byte & (1 << bit) ? [offset + 8 * i + bit] : [])),
  );

function enumerate(b: Bench, count: number): number[] {
  const found: number[] = [];
  for (let offset = 0, windows = 0; ; windows++) {
    assert.ok(windows < 2000, 'the enumeration ends');
    const answer = b.ask('GET_DEVICES', { offset, count });
    assert.equal(answer.offset, offset);
    found.push(...bitmapNumbers(offset, answer.bitmap));
    if (answer.nextOffset === 0) return found;
    assert.ok(answer.nextOffset > offset);
    offset = answer.nextOffset;
  }
}

list.item('B1 GET_DEVICES, PING and EVENT_DEVICE are supported', () => {
  const { b } = bench([2]);
  assert.deepEqual([...b.ask('GET_DEVICES', { offset: 0, count: 8 }).bitmap], [4]);
  assert.equal(b.ask('PING', { data: 5 }).data, 5);
  b.attach(new FakeBackend(), 'new', 3);
  assert.equal(b.takeEvents('EVENT_DEVICE').length, 1);
});

list.item('B2 B3 B35 a message reaches exactly the device it names, and only one that exists', () => {
  const { b } = bench([0, 1, 0x1234]);
  b.setStatus(1, 0x1234);
  assert.deepEqual([b.getStatus(0), b.getStatus(1), b.getStatus(0x1234)], [0, 0, 1]);
  for (const number of [2, 0x1233, 0x1235, 0xffff]) assert.equal(b.askFailing('GET_DEVICE_STATUS', {}, number), 19);
});

list.item('B4 payloads pass through the bus unchanged', () => {
  const { b, devices } = bench([0]);
  const data = Uint8Array.from({ length: 40 }, (_, i) => 255 - i);
  b.ask('SET_CONFIG', { generation: 0, offset: 0, length: 40, data });
  assert.deepEqual(devices[0]?.writes, [{ offset: 0, data }]);
  assert.deepEqual(b.ask('GET_CONFIG', { offset: 0, length: 40 }).data, data);
});

list.item('B5 B6 a request without a device fails visibly, an event without one is dropped', () => {
  const { b } = bench([0]);
  const token = b.request('GET_CONFIG', { offset: 0, length: 4 }, 9);
  const [failure] = b.take();
  assert.deepEqual(failure?.body, { device: 9, token, id: 5, type: 0, reserved: 0, errno: 19 });
  b.available(0, 9);
  assert.deepEqual(b.take(), []);
  assert.equal(b.runtime.snapshot().counters.dropped, 1);
});

list.item('B8 transport features are not among those of devices', () => {
  const { b } = bench([0]);
  const { blocks } = b.ask('GET_DEVICE_FEATURES', { blockIndex: 0, blockCount: 2 });
  // Bits 0 and 5 of the device; of the ring and the platform 28, 29, 32 to 35, 40; not 38, for kicks may come out of band.
  assert.deepEqual(blocks, [0x30000021, 0x10f]);
});

list.item('B10 the same size limit holds in both directions', () => {
  const { b } = bench([0], 64);
  const data = new Uint8Array(45);
  const frame = b.encode({ kind: 'request', name: 'SET_CONFIG', body: { generation: 0, offset: 0, length: 45, data } });
  assert.equal(frame.length, 65);
  b.postRaw(frame);
  assert.equal(b.runtime.snapshot().counters.malformed, 1, 'a byte too much towards the device');
  assert.equal(b.askFailing('GET_CONFIG', { offset: 0, length: 45 }), 90, 'and towards the driver');
});

list.item('B12 B13 the size limits are those of the specification', () => {
  assert.equal(limits.messageSizeMinBytes, 52);
  assert.ok(limits.messageSizeMaxBytes <= 264);
  assert.equal(dialectD5.spec.minMessageSize, 52);
  const { b } = bench([0], 52);
  assert.equal(b.ask('GET_DEVICE_INFO', {}).deviceId, 42);
});

list.item('B14 the bus publishes revision 1 and speaks it', () => {
  assert.equal(dialectD5.spec.revision, 1);
});

list.item('B16 B17 device numbers are unique, and not used again in the same epoch', async () => {
  const b = new Bench();
  b.connect();
  assert.equal(b.attach(new FakeBackend(), 'a'), 0);
  assert.equal(b.attach(new FakeBackend(), 'b'), 1);
  assert.throws(() => b.attach(new FakeBackend(), 'c', 1), { code: 'device-number-taken' });
  await b.detach('a');
  assert.equal(b.attach(new FakeBackend(), 'd'), 2, 'number 0 rests until the next epoch');
  b.leave();
  b.connect();
  assert.equal(b.attach(new FakeBackend(), 'e'), 0);
});

list.item('B18 B36 every device can be found', () => {
  const numbers = [0, 1, 7, 8, 63, 64, 303, 304, 305, 1000, 0x7fff, 0x8000, 0xfffe, 0xffff];
  const { b } = bench(numbers);
  for (const count of [1, 7, 8, 9, 64, 304, 0xffff]) assert.deepEqual(enumerate(b, count), numbers);
});

list.item('B19 B20 B21 a request that its device does not finish fails visibly after a bounded time, once', () => {
  const { b, devices } = bench([0]);
  const { queue } = b.start({ extra: [feature.RING_RESET] });
  queue.add([buffer(1, 0)], []);
  queue.kick();
  b.available();
  const token = b.request('RESET_VQUEUE', { index: 0 });
  b.clock.advance(limits.requestTimeoutMs - 1);
  assert.deepEqual(b.take(), []);
  b.clock.advance(1);
  b.scheduler.run();
  const seen = b.take();
  assert.deepEqual(
    seen.map((message) => message.name),
    ['FAILURE', 'EVENT_CONFIG'],
  );
  assert.deepEqual(seen[0]?.body, { device: 0, token, id: 11, type: 0, reserved: 0, errno: 110 });
  devices[0]?.complete();
  b.scheduler.run();
  assert.deepEqual(b.take(), [], 'the late result is not told');
  assert.equal(b.getStatus(), driverOk | 64);
});

list.item('B22 malformed headers and unknown bus messages are discarded without traffic', () => {
  const { b } = bench([0]);
  const ping = b.encode({ kind: 'request', name: 'PING', body: { data: 1 } }, 0, 3);
  const unknown = ping.slice();
  unknown[1] = 0x7e;
  const tooLong = ping.slice();
  tooLong[6] = 65;
  b.postRaw(unknown, tooLong, Uint8Array.of(2, 3, 0, 0, 0, 0, 0, 0));
  assert.deepEqual(b.take(), []);
  assert.equal(b.runtime.snapshot().counters.malformed, 3);
});

list.item('B23 B24 B25 the bus answers no unknown transport id and no event with an error', () => {
  const { b } = bench([0]);
  b.postRaw(Uint8Array.of(0, 0x3e, 0, 0, 9, 0, 8, 0), Uint8Array.of(0, 0x7f, 0, 0, 0, 0, 8, 0));
  b.available(77, 0);
  b.available(0xffffffff, 0);
  b.post({ kind: 'event', name: 'EVENT_USED', body: { index: 0 } }, 0);
  b.post({ kind: 'event', name: 'EVENT_DEVICE', body: { device: 0, state: 2 } });
  b.post({ kind: 'response', name: 'PING', body: { data: 1 } });
  b.post({ kind: 'response', name: 'GET_DEVICE_STATUS', body: { status: 1 } }, 0);
  assert.deepEqual(b.take(), []);
  assert.equal(b.getStatus(), 0);
});

list.item('B26 bus messages have device number 0; one with another number is malformed', () => {
  const { b } = bench([5]);
  const ping = b.encode({ kind: 'request', name: 'PING', body: { data: 1 } }, 0, 3);
  ping[2] = 5;
  b.postRaw(ping);
  assert.deepEqual(b.take(), []);
  b.request('GET_DEVICE_STATUS', {}, 6);
  b.request('PING', { data: 1 });
  assert.deepEqual(
    b.take().map((message) => message.header.deviceNumber),
    [0, 0],
  );
});

list.item('B27 reserved type bits are zero in what the bus sends, and ignored in what it gets', () => {
  const { b } = bench([0]);
  const ping = b.encode({ kind: 'request', name: 'PING', body: { data: 7 } }, 0, 3);
  ping[0] = 0xfe;
  b.postRaw(ping);
  assert.deepEqual(
    b.take().map((message) => message.frame[0]),
    [3],
  );
});

list.item('B28 the slot behind a message is zero', () => {
  const memory = new Uint8Array(ringBytesFor(2, 64));
  const back = new Uint8Array(ringBytesFor(2, 64));
  const port = new RingPort(64, new RingConsumer(back, 64, false), new RingProducer(memory, 64, false), () => {});
  const guest = new RingConsumer(memory, 64, false);
  const slot = new Uint8Array(64);
  for (const length of [64, 60, 8, 12, 8, 64, 52]) {
    assert.equal(port.send(new Uint8Array(length).fill(0xee)), 'sent');
    port.flush();
    assert.equal(guest.pop(slot), 'message');
    guest.release();
    assert.ok(slot.subarray(0, length).every((byte) => byte === 0xee));
    assert.ok(slot.subarray(length).every((byte) => byte === 0));
  }
});

list.item('B30 B31 B32 B34 devices do not wait for each other, one device keeps the order, events do not wait', () => {
  const { b, devices } = bench([0, 1]);
  const { queue } = b.start({ extra: [feature.RING_RESET] });
  b.start({ device: 1, area: 2 });
  queue.add([buffer(1, 0)], []);
  queue.kick();
  b.available();
  const first = b.request('RESET_VQUEUE', { index: 0 }, 0);
  const second = b.request('GET_DEVICE_STATUS', {}, 0);
  assert.deepEqual(b.take(), [], 'the second request of device 0 waits for the first');
  assert.equal(b.getStatus(1), driverOk, 'device 1 answers meanwhile');
  devices[0]?.host?.configChanged(0, Uint8Array.of(1));
  b.scheduler.run();
  assert.equal(b.takeEvents('EVENT_CONFIG').length, 1, 'events overtake');
  devices[0]?.complete();
  b.scheduler.run();
  assert.deepEqual(
    b.take().map((message) => message.header.token),
    [first, second],
  );
});

list.item('B39 B57 B58 B59 a new device is announced when it answers, a removed one when it does not', async () => {
  const { b, devices } = bench([0]);
  b.start();
  const number = b.attach(new FakeBackend(), 'new');
  const [added] = b.take();
  assert.deepEqual([added?.name, added?.body], ['EVENT_DEVICE', { device: number, state: 1 }]);
  assert.equal(b.getStatus(number), 0);
  await b.detach('disk-0');
  const [removed] = b.take();
  assert.deepEqual([removed?.name, removed?.body], ['EVENT_DEVICE', { device: 0, state: 2 }]);
  assert.equal(b.askFailing('GET_DEVICE_STATUS', {}, 0), 19);
  assert.deepEqual(devices[0]?.log, ['activate', 'deactivate', 'close']);
  assert.deepEqual(enumerate(b, 64), [number]);
});

list.item('B42 B43 B44 B46 one way of notification counts for each queue, never both', () => {
  const { b, devices } = bench([0]);
  const { queue } = b.start();
  const kick = { onKick: undefined as (() => void) | undefined, closed: false };
  const call = new FakeCall();
  b.guest.resources.kicks.set(1, kick);
  b.guest.resources.calls.set(2, call);
  const setting = { device: 0, flags: 3, queue: 0, kick: 1, call: 2 };
  assert.equal(b.ask('QUEUE_NOTIFY', setting).errno, 0);
  queue.add([buffer(1, 0)], []);
  queue.kick();
  b.available();
  assert.equal(devices[0]?.handled, 0, 'the event is not the authoritative way');
  kick.onKick?.();
  b.scheduler.run();
  assert.equal(devices[0]?.handled, 1);
  devices[0]?.complete();
  b.scheduler.run();
  assert.deepEqual(b.take(), []);
  assert.equal(call.rings, 1);
  assert.equal(b.ask('QUEUE_NOTIFY', { ...setting, flags: 0 }).errno, 0);
  assert.deepEqual([kick.closed, call.closed], [true, true]);
  queue.next();
  queue.add([buffer(1, 0)], []);
  queue.kick();
  b.available();
  devices[0]?.complete();
  b.scheduler.run();
  assert.equal(b.takeEvents('EVENT_USED').length, 1);
  assert.equal(call.rings, 1);
});

list.item('B47 NOTIFICATION_DATA is not carried, and so cannot be negotiated', () => {
  const { b } = bench([0]);
  b.setStatus(3);
  b.ask('SET_DRIVER_FEATURES', { blockIndex: 1, blockCount: 1, blocks: [3 | (1 << (feature.NOTIFICATION_DATA - 32))] });
  assert.equal(b.setStatus(11), 3);
});

list.item('B48 B51 the bitmap has a bit a number, lowest first, and zero behind the window', () => {
  const { b } = bench([0, 3, 9, 10, 11]);
  const { bitmap, count, nextOffset } = b.ask('GET_DEVICES', { offset: 0, count: 11 });
  assert.deepEqual([[...bitmap], count, nextOffset], [[0b1001, 0b110], 11, 11]);
  for (let requested = 0; requested < 40; requested++) {
    assert.equal(b.ask('GET_DEVICES', { offset: 0, count: requested }).bitmap.length, (requested + 7) >> 3);
  }
});

list.item('B49 B55 a window of nothing is answered with nothing', () => {
  const { b } = bench([4]);
  const answer = b.ask('GET_DEVICES', { offset: 0, count: 0 });
  assert.deepEqual([answer.count, [...answer.bitmap]], [0, []]);
  assert.equal(answer.nextOffset, 4);
});

list.item('B50 B54 a window is as large as asked for, or as fits', () => {
  const { b } = bench([0xffff], 64);
  assert.equal(b.ask('GET_DEVICES', { offset: 0, count: 100 }).count, 100);
  assert.equal(b.ask('GET_DEVICES', { offset: 0, count: 0xffff }).count, 50 * 8);
  const last = b.ask('GET_DEVICES', { offset: 0xfff8, count: 100 });
  assert.deepEqual([last.count, [...last.bitmap], last.nextOffset], [8, [0x80], 0]);
});

list.item('B52 B53 the next offset is 0 at the end and higher than the one asked for before it', () => {
  const { b } = bench([0, 100, 200]);
  const next = (offset: number, count: number) => b.ask('GET_DEVICES', { offset, count }).nextOffset;
  assert.deepEqual([next(0, 10), next(0, 101), next(100, 10), next(200, 1), next(201, 50)], [100, 200, 200, 0, 0]);
  for (const offset of [0, 1, 99, 100, 199, 200]) {
    for (const count of [0, 1, 2, 100]) {
      const value = next(offset, count);
      assert.ok(value === 0 || value > offset);
    }
  }
});

list.item('B56 PING is echoed exactly', () => {
  const { b } = bench();
  for (const data of [0, 1, 0x7fffffff, 0x80000000, 0xffffffff]) assert.equal(b.ask('PING', { data }).data, data);
});
