import assert from 'node:assert/strict';
import { feature } from '../../src/virtio/features.ts';
import { status } from '../../src/virtio/status.ts';
import { transportRequests } from '../../src/virtio-msg/transport-messages.ts';
import { FakeBackend, type FakeBackendOptions } from '../support/bridge-backend.ts';
import { Bench, buffer, driverOk, featuresOk, needed } from '../support/bridge-bench.ts';
import { Checklist } from '../support/bridge-checklist.ts';

/** The device items of the virtio-msg D5 requirements list, first part: behaviour that is not about one message. */
const list = new Checklist('V', 1, 38, {
  V15: 'a permission: the generation count may start again after a reset; ours goes on',
  V16: 'the strict configuration profile is never advertised: transport features are 0',
  V38: 'a permission for polling-only buses; every bus of this bridge delivers events',
});

function bench(backend: FakeBackendOptions = {}, maxMessageSize = 64): { b: Bench; device: FakeBackend } {
  const b = new Bench({ maxMessageSize });
  const device = new FakeBackend(backend);
  b.attach(device);
  b.connect();
  return { b, device };
}

list.item('V1 no message is larger than the smaller limit of both sides', () => {
  const b = new Bench({ maxMessageSize: 264 });
  const device = new FakeBackend({ config: new Uint8Array(200).fill(7) });
  b.attach(device);
  b.connect({ maxMessageSize: 52 });
  assert.equal(b.askFailing('GET_CONFIG', { offset: 0, length: 33 }), 90);
  assert.equal(b.ask('GET_CONFIG', { offset: 0, length: 32 }).length, 32);
  assert.equal(b.askFailing('GET_DEVICE_FEATURES', { blockIndex: 0, blockCount: 10 }), 90);
  assert.equal(b.ask('GET_DEVICE_FEATURES', { blockIndex: 0, blockCount: 9 }).blocks.length, 9);
  assert.equal(b.askFailing('GET_DEVICE_FEATURES', { blockIndex: 0, blockCount: 0xffffffff }), 90);
  b.start();
  device.host?.configChanged(0, new Uint8Array(150));
  b.scheduler.run();
  assert.ok(b.take().every((message) => message.header.size <= 52));
});

list.item('V2 V4 messages that revision 1 does not define are ignored', () => {
  const { b } = bench();
  for (const id of [0x00, 0x01, 0x0d, 0x3f, 0x43, 0x80, 0xff]) {
    b.postRaw(Uint8Array.of(0, id, 0, 0, 1, 0, 8, 0));
  }
  assert.deepEqual(b.take(), []);
  assert.equal(b.getStatus(), 0);
});

list.item('V3 every request of revision 1 gets its response', () => {
  const { b } = bench();
  const zeros: Record<string, number | bigint | Uint8Array | number[]> = {
    ...{ blockIndex: 0, blockCount: 0, blocks: [], offset: 0, length: 0, data: new Uint8Array(0), generation: 0 },
    ...{ index: 0, flags: 0, size: 0, reserved: 0, descAddr: 0n, driverAddr: 0n, deviceAddr: 0n, status: 0 },
  };
  for (const name of Object.keys(transportRequests)) b.ask(name as 'GET_CONFIG', zeros as never);
});

list.item('V5 V8 V9 a wrong generation in SET_CONFIG changes nothing: the baseline profile ignores it', () => {
  const { b, device } = bench();
  b.start();
  for (const generation of [0, 1, 77, 0xffffffff]) {
    const before = b.ask('GET_CONFIG', { offset: 0, length: 0 }).generation;
    const answer = b.ask('SET_CONFIG', { generation, offset: 4, length: 2, data: Uint8Array.of(9, generation & 255) });
    assert.equal(answer.length, 2);
    assert.notEqual(answer.generation, before);
    assert.deepEqual([...b.ask('GET_CONFIG', { offset: 4, length: 2 }).data], [9, generation & 255]);
  }
  assert.equal(device.writes.length, 4);
});

list.item('V6 V7 the current generation is in every answer and event, and changes with the configuration', () => {
  const { b, device } = bench();
  b.start();
  const generation = (): number => b.ask('GET_CONFIG', { offset: 0, length: 0 }).generation;
  const first = generation();
  assert.equal(generation(), first, 'reading does not change it');
  device.host?.configChanged(0, Uint8Array.of(99));
  b.scheduler.run();
  const [event] = b.takeEvents('EVENT_CONFIG');
  const second = generation();
  assert.notEqual(second, first);
  assert.deepEqual(event?.body, {
    status: driverOk,
    generation: second,
    offset: 0,
    length: 1,
    data: Uint8Array.of(99),
  });
  const written = b.ask('SET_CONFIG', { generation: 0, offset: 0, length: 1, data: Uint8Array.of(5) });
  assert.notEqual(written.generation, second);
  assert.equal(generation(), written.generation);
  device.acceptConfig = false;
  const refused = b.ask('SET_CONFIG', { generation: 0, offset: 0, length: 1, data: Uint8Array.of(6) });
  assert.equal(refused.generation, written.generation);
});

list.item('V10 V17 a change too large for a message is announced without data, and can be read', () => {
  const config = new Uint8Array(120);
  const { b, device } = bench({ config });
  b.start();
  device.host?.configChanged(10, new Uint8Array(41).fill(3));
  b.scheduler.run();
  const [event] = b.takeEvents('EVENT_CONFIG');
  assert.deepEqual(event?.body, { status: driverOk, generation: 1, offset: 0, length: 0, data: new Uint8Array(0) });
  assert.deepEqual(b.ask('GET_CONFIG', { offset: 10, length: 41 }).data, new Uint8Array(41).fill(3));
  device.host?.configChanged(10, new Uint8Array(40).fill(4));
  b.scheduler.run();
  const [fitting] = b.takeEvents('EVENT_CONFIG');
  assert.equal(fitting?.header.size, 64, 'one that just fits is sent with its data');
});

list.item('V11 every change of the configuration is announced to a running driver', () => {
  const { b, device } = bench();
  b.start();
  for (const [offset, byte] of [
    [0, 1],
    [3, 2],
    [0, 1],
    [39, 4],
  ] as const) {
    device.host?.configChanged(offset, Uint8Array.of(byte));
    b.scheduler.run();
    const events = b.takeEvents('EVENT_CONFIG');
    assert.equal(events.length, 1);
    const body = events[0]?.body as { offset: number; length: number; data: Uint8Array };
    assert.deepEqual([body.offset, body.length, [...body.data]], [offset, 1, [byte]]);
  }
});

list.item('V12 V14 a status change that the device starts is announced with offset and length 0', () => {
  const { b, device } = bench();
  b.start();
  device.host?.failed('the test says so');
  b.scheduler.run();
  const seen = b.take();
  assert.deepEqual(
    seen.map((m) => m.name),
    ['EVENT_CONFIG'],
  );
  const body = seen[0]?.body as { status: number; offset: number; length: number };
  assert.deepEqual([body.status, body.offset, body.length], [driverOk | status.DEVICE_NEEDS_RESET, 0, 0]);
});

list.item('V13 SET_DEVICE_STATUS alone causes no EVENT_CONFIG', () => {
  const { b } = bench();
  // `ask` fails on anything beside the response.
  b.start();
  b.setStatus(driverOk | status.FAILED);
  assert.equal(b.setStatus(0), 0);
  b.setStatus(1);
  assert.deepEqual(b.take(), []);
});

list.item('V18 V20 feature blocks past the end are zero; the offered set is told whatever was acknowledged', () => {
  const { b } = bench({ featureBits: [0, 5, 23] });
  const offered = (): number[] => b.ask('GET_DEVICE_FEATURES', { blockIndex: 0, blockCount: 2 }).blocks;
  const before = offered();
  assert.equal((before[0] ?? 0) & 0x00800021, 0x00800021);
  assert.equal((before[1] ?? 0) & 3, 3, 'VERSION_1 and ACCESS_PLATFORM');
  for (const blockIndex of [2, 3, 100, 0x7fffffff, 0xffffffff]) {
    assert.deepEqual(b.ask('GET_DEVICE_FEATURES', { blockIndex, blockCount: 3 }).blocks, [0, 0, 0]);
  }
  assert.deepEqual(b.ask('GET_DEVICE_FEATURES', { blockIndex: 1, blockCount: 2 }).blocks, [before[1], 0]);
  b.negotiate(0, [5]);
  assert.deepEqual(offered(), before);
});

list.item('V19 SET_DRIVER_FEATURES changes only the blocks it addresses', () => {
  const { b } = bench({ featureBits: [0, 5] });
  b.setStatus(3);
  b.ask('SET_DRIVER_FEATURES', { blockIndex: 0, blockCount: 1, blocks: [1 << 5] });
  b.ask('SET_DRIVER_FEATURES', { blockIndex: 1, blockCount: 1, blocks: [3] });
  b.ask('SET_DRIVER_FEATURES', { blockIndex: 2, blockCount: 0, blocks: [] });
  assert.equal(b.setStatus(featuresOk), featuresOk, 'block 1 kept what the driver needs');
  b.enableQueue(1, b.addRegion(1));
  assert.equal(b.setStatus(driverOk), driverOk);
});

list.item('V21 V22 V32 malformed messages have no answer and no effect', () => {
  const { b } = bench();
  b.start();
  const good = b.encode({ kind: 'request', name: 'SET_DEVICE_STATUS', body: { status: 0 } }, 0, 7);
  const wrongSize = good.slice();
  wrongSize[6] = 11;
  const long = new Uint8Array(16);
  long.set(good);
  long[6] = 16;
  const short = good.slice();
  short[6] = 7;
  const huge = good.slice();
  huge[6] = 0xff;
  huge[7] = 0xff;
  const countLies = b.encode(
    { kind: 'request', name: 'SET_DRIVER_FEATURES', body: { blockIndex: 0, blockCount: 1, blocks: [0] } },
    0,
    8,
  );
  countLies[12] = 2;
  b.postRaw(wrongSize, long, short, huge, countLies);
  assert.deepEqual(b.take(), []);
  assert.equal(b.runtime.snapshot().counters.malformed, 5);
  assert.equal(b.getStatus(), driverOk);
});

list.item('V23 all numbers are little-endian', () => {
  const { b } = bench();
  b.postRaw(Uint8Array.of(0, 0x02, 0, 0, 0x34, 0x12, 8, 0));
  const [info] = b.guest.port.visible.splice(0);
  assert.deepEqual([...(info ?? []).slice(0, 16)], [1, 2, 0, 0, 0x34, 0x12, 52, 0, 42, 0, 0, 0, 0x34, 0x12, 0, 0]);
});

list.item('V24 reserved type bits are ignored, and zero in what the device sends', () => {
  const { b } = bench();
  const frame = b.encode({ kind: 'request', name: 'GET_DEVICE_STATUS', body: {} }, 0, 9);
  frame[0] = 0xfc;
  b.postRaw(frame);
  const [response] = b.take();
  assert.equal(response?.frame[0], 1);
  assert.equal(response?.header.token, 9);
  const avail = b.encode({ kind: 'event', name: 'EVENT_AVAIL', body: { index: 0, next: 0 } }, 0, 0);
  avail[0] = 0xfc;
  b.postRaw(avail);
  assert.deepEqual(b.take(), []);
});

list.item('V25 V26 size and device number of every message are right', () => {
  const b = new Bench();
  const devices = [0, 3, 0x8000, 0xffff];
  for (const number of devices) b.attach(new FakeBackend(), `disk-${number}`, number);
  b.connect();
  for (const number of devices) {
    // `ask` compares the device number, and each frame with the size in its header.
    assert.equal(b.ask('GET_DEVICE_INFO', {}, number).deviceId, 42);
    assert.equal(b.ask('GET_CONFIG', { offset: 1, length: 5 }, number).length, 5);
  }
});

list.item('V27 bytes behind the message are not looked at', () => {
  const { b } = bench();
  // The port puts 0xa5 behind every frame, as a guest may.
  assert.equal(b.ask('SET_CONFIG', { generation: 0, offset: 0, length: 2, data: Uint8Array.of(1, 2) }).length, 2);
  assert.deepEqual([...b.ask('GET_CONFIG', { offset: 0, length: 3 }).data], [1, 2, 3]);
});

list.item('V28 V29 the token is copied, whatever it is', () => {
  const { b } = bench();
  for (const token of [0, 1, 0x7fff, 0x8000, 0xffff, 1]) {
    b.post({ kind: 'request', name: 'GET_DEVICE_STATUS', body: {} }, 0, token);
    assert.deepEqual(
      b.take().map((message) => message.header.token),
      [token],
    );
  }
});

list.item('V30 V31 requests are carried out in the order received, each with one response', () => {
  const { b } = bench();
  const statuses = [1, 3, 0, 1, 0, 1, 3];
  const frames = statuses.flatMap((value, i) => [
    b.encode({ kind: 'request', name: 'SET_DEVICE_STATUS', body: { status: value } }, 0, 2 * i + 1),
    b.encode({ kind: 'request', name: 'GET_DEVICE_STATUS', body: {} }, 0, 2 * i + 2),
  ]);
  b.postRaw(...frames);
  const seen = b.take();
  assert.deepEqual(
    seen.map((message) => message.header.token),
    Array.from({ length: 14 }, (_, i) => i + 1),
  );
  assert.deepEqual(
    seen.map((message) => (message.body as { status: number }).status),
    statuses.flatMap((value) => [value, value]),
  );
});

list.item('V33 NOTIF_CONFIG_DATA is not offered', () => {
  const { b } = bench({ featureBits: [0] });
  const { blocks } = b.ask('GET_DEVICE_FEATURES', { blockIndex: 1, blockCount: 1 });
  assert.equal((blocks[0] ?? 0) & (1 << (feature.NOTIF_CONFIG_DATA - 32)), 0);
  assert.equal((blocks[0] ?? 0) & (1 << (feature.NOTIFICATION_DATA - 32)), 0, 'nor NOTIFICATION_DATA');
});

list.item('V34 FEATURES_OK is not kept for a set that was not offered, or lacks what is needed', () => {
  const { b } = bench({ featureBits: [0] });
  const refused: { blockIndex: number; blocks: number[] }[] = [
    { blockIndex: 0, blocks: [1 << 7, 3] },
    { blockIndex: 0, blocks: [0, 3, 1] },
    { blockIndex: 0, blocks: [0, 1] },
    { blockIndex: 0, blocks: [0, 2] },
    { blockIndex: 0, blocks: [0, 3 | (1 << 31)] },
    { blockIndex: 0x7fffffff, blocks: [1] },
    { blockIndex: 0xffffffff, blocks: [1] },
  ];
  for (const { blockIndex, blocks } of refused) {
    assert.equal(b.setStatus(0), 0);
    b.setStatus(3);
    b.ask('SET_DRIVER_FEATURES', { blockIndex: 0, blockCount: 2, blocks: [0, 3] });
    b.ask('SET_DRIVER_FEATURES', { blockIndex, blockCount: blocks.length, blocks });
    assert.equal(b.setStatus(featuresOk), 3, `block ${blockIndex}: ${blocks}`);
    assert.equal(b.setStatus(driverOk), 3, 'nor DRIVER_OK without it');
  }
  assert.equal(b.setStatus(0), 0);
  b.negotiate();
  b.ask('SET_DRIVER_FEATURES', { blockIndex: 0, blockCount: 1, blocks: [1 << 7] });
  assert.equal(b.getStatus(), featuresOk, 'after FEATURES_OK the set is fixed');
});

list.item('V35 V36 requests in a queue are taken after DRIVER_OK, not before', () => {
  const { b, device } = bench();
  const memory = b.addRegion(1);
  b.negotiate();
  const queue = b.enableQueue(1, memory);
  queue.add([buffer(1, 0)], [buffer(1, 1)]);
  queue.kick();
  b.available();
  assert.equal(device.handled, 0);
  assert.deepEqual(device.log, []);
  assert.equal(b.setStatus(driverOk), driverOk);
  assert.deepEqual(device.log, ['activate']);
  assert.equal(device.handled, 1, 'what was made available before is taken without another kick');
  assert.ok(needed.every((bit) => device.active?.(bit)));
});

list.item('V37 used buffers are announced with EVENT_USED unless the driver does not want it', () => {
  const { b, device } = bench();
  const { queue } = b.start();
  queue.add([buffer(1, 0)], [buffer(1, 1)]);
  queue.kick();
  b.available();
  device.complete(100);
  b.scheduler.run();
  const seen = b.take();
  assert.deepEqual(
    seen.map((message) => [message.name, message.body, message.header.token]),
    [['EVENT_USED', { index: 0 }, 0]],
  );
  const used = queue.next();
  assert.ok(used !== undefined && 'writtenBytes' in used);
  assert.equal(used.writtenBytes, 100);
  queue.suppressInterrupts();
  queue.add([buffer(1, 0)], []);
  queue.kick();
  b.available();
  device.complete(0);
  b.scheduler.run();
  assert.deepEqual(b.take(), []);
  assert.ok(queue.next() !== undefined);
});
