import assert from 'node:assert/strict';
import { feature } from '../../src/virtio/features.ts';
import { status } from '../../src/virtio/status.ts';
import { transportRequests } from '../../src/virtio-msg/transport-messages.ts';
import { FakeBackend, type FakeBackendOptions } from '../support/bridge-backend.ts';
import { Bench, buffer, driverOk, featuresOk } from '../support/bridge-bench.ts';
import { Checklist } from '../support/bridge-checklist.ts';

/** The device items of the virtio-msg D5 requirements list, second part: message by message. */
const list = new Checklist('V', 39, 74, {
  V43: 'the bridge has no administration queues, so there are none to count',
  V46: 'a permission: a device may have a UUID',
  V47: 'a recommendation for whoever assigns UUIDs; the built-in devices have none',
});

function bench(backend: FakeBackendOptions = {}, maxMessageSize = 64): { b: Bench; device: FakeBackend } {
  const b = new Bench({ maxMessageSize });
  const device = new FakeBackend(backend);
  b.attach(device);
  b.connect();
  return { b, device };
}

const areaAddress = (area: number, offset: number): bigint => (BigInt(area) << 48n) | BigInt(offset);
const setup = {
  index: 0,
  flags: 0,
  size: 8,
  reserved: 0,
  descAddr: areaAddress(1, 0),
  driverAddr: areaAddress(1, 4096),
  deviceAddr: areaAddress(1, 8192),
};
const enable = 1;
const keep = 2;
const ignoreAll = 0x3c;
const emptyQueue = { index: 0, maxSize: 16, size: 0, flags: 0, descAddr: 0n, driverAddr: 0n, deviceAddr: 0n };
const noData = new Uint8Array(0);

list.item('V39 the core messages are all there, GET_SHM included', () => {
  const ids = Object.values(transportRequests).map((row) => row.id);
  assert.deepEqual(ids, [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
  const { b } = bench();
  for (const id of ids.filter((each) => ![3, 4, 5, 6, 8, 9, 10, 11, 12].includes(each))) {
    b.postRaw(Uint8Array.of(0, id, 0, 0, id, 0, 8, 0));
    assert.deepEqual(
      b.take().map((message) => message.header.id),
      [id],
    );
  }
  assert.equal(b.ask('GET_SHM', { index: 1 }).index, 1);
});

list.item('V40 V41 V42 GET_DEVICE_INFO is answered in every state, always the same, and fits the device', () => {
  const { b, device } = bench({ featureBits: [0, 5], queueSizes: [16, 8, 4] });
  const first = b.ask('GET_DEVICE_INFO', {});
  const offered = b.ask('GET_DEVICE_FEATURES', { blockIndex: 0, blockCount: 8 }).blocks;
  assert.ok(offered.slice(first.featureBlockCount).every((block) => block === 0));
  assert.deepEqual([first.maxVirtqueues, first.configSize, first.vendorId], [3, 40, 0x1234]);
  assert.ok(first.maxVirtqueues <= 65536);
  assert.equal(first.featureBlockCount, 2, 'Linux takes only devices with 64 feature bits');
  b.start();
  assert.deepEqual(b.ask('GET_DEVICE_INFO', {}), first);
  device.host?.failed('the test says so');
  b.scheduler.run();
  b.take();
  assert.deepEqual(b.ask('GET_DEVICE_INFO', {}), first);
  const large = new Bench();
  large.attach(new FakeBackend({ featureBits: [0, 100] }));
  large.connect();
  assert.equal(large.ask('GET_DEVICE_INFO', {}).featureBlockCount, 4);
  assert.equal(large.ask('GET_DEVICE_FEATURES', { blockIndex: 3, blockCount: 1 }).blocks[0], 1 << 4);
});

list.item('V44 V45 without administration queues their range is empty and starts at 0', () => {
  const { b } = bench();
  const { adminStart, adminCount, maxVirtqueues } = b.ask('GET_DEVICE_INFO', {});
  assert.deepEqual([adminStart, adminCount], [0, 0]);
  assert.ok(adminStart + adminCount <= maxVirtqueues);
});

list.item('V48 a device without a UUID tells the nil one, another its own', () => {
  const { b, device } = bench();
  assert.deepEqual(b.ask('GET_DEVICE_INFO', {}).uuid, device.description.uuid);
  const nil = new FakeBackend();
  Object.assign(nil, { description: { ...nil.description, uuid: new Uint8Array(16) } });
  const number = b.attach(nil, 'other');
  b.take();
  assert.deepEqual(b.ask('GET_DEVICE_INFO', {}, number).uuid, new Uint8Array(16));
});

list.item('V49 GET_CONFIG gives the generation with any length, 0 included', () => {
  const { b } = bench();
  b.ask('SET_CONFIG', { generation: 0, offset: 0, length: 1, data: Uint8Array.of(1) });
  for (const [offset, length, expected] of [
    [0, 0, 0],
    [0, 40, 40],
    [39, 1, 1],
    [40, 0, 0],
    [39, 2, 0],
    [0xffffffff, 4, 0],
    [0xffffffff, 0, 0],
  ] as const) {
    const answer = b.ask('GET_CONFIG', { offset, length });
    assert.deepEqual([answer.generation, answer.offset, answer.length], [1, offset, expected], `${offset}+${length}`);
  }
});

list.item('V50 V51 V53 SET_CONFIG gives the generation; length 0 does nothing and has no data in the answer', () => {
  const { b, device } = bench();
  const none = b.ask('SET_CONFIG', { generation: 0, offset: 3, length: 0, data: noData });
  assert.deepEqual(none, { generation: 0, offset: 3, length: 0, data: noData });
  assert.equal(device.writes.length, 0);
  const written = b.ask('SET_CONFIG', { generation: 0, offset: 3, length: 2, data: Uint8Array.of(8, 9) });
  assert.deepEqual(written, { generation: 1, offset: 3, length: 2, data: Uint8Array.of(8, 9) });
});

list.item('V52 SET_CONFIG is applied in full or not at all', () => {
  const { b, device } = bench();
  const before = b.ask('GET_CONFIG', { offset: 0, length: 40 });
  for (const [offset, length] of [
    [39, 2],
    [40, 1],
    [0xffffffff, 1],
    [0x7ffffff8, 16],
  ] as const) {
    const answer = b.ask('SET_CONFIG', { generation: 0, offset, length, data: new Uint8Array(length).fill(0xee) });
    assert.deepEqual(answer, { generation: 0, offset, length: 0, data: noData });
  }
  assert.equal(device.writes.length, 0, 'the backend is not asked about a range outside');
  device.acceptConfig = false;
  const refused = b.ask('SET_CONFIG', { generation: 0, offset: 0, length: 4, data: new Uint8Array(4) });
  assert.equal(refused.length, 0);
  assert.deepEqual(b.ask('GET_CONFIG', { offset: 0, length: 40 }), before);
});

list.item('V54 V56 the status is told as it is, with what the device made of it', () => {
  const { b } = bench();
  assert.equal(b.getStatus(), 0);
  assert.equal(b.setStatus(1), 1);
  assert.equal(b.setStatus(3), 3);
  assert.equal(b.setStatus(1), 3, 'bits are cleared only by a reset');
  assert.equal(b.setStatus(3 | status.FEATURES_OK), 3, 'the features are not acceptable');
  assert.equal(b.setStatus(3 | status.DEVICE_NEEDS_RESET), 3, 'a driver cannot set that bit');
  assert.equal(b.setStatus(0xffffff03), 3, 'nor bits that are not defined');
  assert.equal(b.setStatus(3 | status.FAILED), 3 | status.FAILED);
  assert.equal(b.getStatus(), 3 | status.FAILED);
});

list.item('V55 a fatal error shows as DEVICE_NEEDS_RESET until a reset', () => {
  const { b, device } = bench();
  const { queue, memory } = b.start();
  // The head of the next chain lies outside the queue.
  new DataView(memory.bytes.buffer).setUint16(8 * 16 + 4, 77, true);
  new DataView(memory.bytes.buffer).setUint16(8 * 16 + 2, 1, true);
  b.available();
  assert.deepEqual(
    b.take().map((message) => message.name),
    ['EVENT_CONFIG'],
  );
  assert.equal(b.getStatus(), driverOk | status.DEVICE_NEEDS_RESET);
  assert.match(b.runtime.snapshot().devices[0]?.reason ?? '', /queue 0: head 77 of 8/);
  assert.equal(queue.next(), undefined);
  assert.equal(b.setStatus(0), 0);
  assert.equal(b.runtime.snapshot().devices[0]?.reason, null);
  assert.deepEqual(device.log, ['activate', 'deactivate']);
});

list.item('V57 V58 V59 a reset is complete when status 0 is told, and not before', () => {
  const { b, device } = bench();
  const { queue } = b.start();
  assert.equal(b.setStatus(0), 0, 'nothing in flight: at once');
  b.removeRegion(1);
  const second = b.start();
  second.queue.add([buffer(1, 0)], [buffer(1, 1)]);
  second.queue.kick();
  b.available();
  assert.equal(b.setStatus(0), driverOk, 'a request is in flight');
  assert.equal(b.getStatus(), driverOk);
  assert.equal(b.setStatus(0), driverOk, 'asking again does not help');
  assert.equal(b.setStatus(1), driverOk, 'nor does going on');
  device.complete();
  b.scheduler.run();
  assert.equal(b.getStatus(), 0);
  assert.equal(second.queue.next(), undefined, 'the request of before the reset is not completed');
  assert.equal(queue.next(), undefined);
  assert.deepEqual(b.ask('GET_VQUEUE', { index: 0 }), emptyQueue);
  b.removeRegion(1);
  b.start();
});

list.item('V60 GET_VQUEUE tells size and addresses as set, 0 before', () => {
  const { b } = bench();
  assert.deepEqual(b.ask('GET_VQUEUE', { index: 0 }), emptyQueue);
  b.negotiate();
  b.ask('SET_VQUEUE', setup);
  const { reserved: _, ...told } = setup;
  assert.deepEqual(b.ask('GET_VQUEUE', { index: 0 }), { ...told, maxSize: 16 });
  assert.equal(b.ask('GET_VQUEUE', { index: 1 }).maxSize, 8);
});

list.item('V61 GET_VQUEUE answers the zero sentinel, with the index, for a queue that is not there', () => {
  const { b } = bench({ queueSizes: [16, 0, 8] });
  for (const index of [1, 3, 64, 0x10000, 0x7fffffff, 0xffffffff]) {
    assert.deepEqual(b.ask('GET_VQUEUE', { index }), { ...emptyQueue, index, maxSize: 0 });
  }
});

list.item('V62 the enabled flag is bit 0, other flags are zero', () => {
  const { b } = bench();
  b.negotiate();
  b.ask('SET_VQUEUE', setup);
  assert.equal(b.ask('GET_VQUEUE', { index: 0 }).flags, 0);
  b.ask('SET_VQUEUE', { ...setup, flags: enable });
  assert.equal(b.ask('GET_VQUEUE', { index: 0 }).flags, 1);
});

list.item('V63 SET_VQUEUE outside the queues is a no-op with an empty answer', () => {
  const { b } = bench();
  b.negotiate();
  for (const index of [2, 64, 0xffffffff]) {
    assert.deepEqual(b.ask('SET_VQUEUE', { ...setup, index, flags: enable }), {});
  }
  assert.deepEqual(b.ask('GET_VQUEUE', { index: 0 }), emptyQueue);
});

list.item('V64 V66 SET_VQUEUE with an invalid field, flag or operation changes nothing', () => {
  const { b } = bench();
  b.negotiate();
  const wrong = [
    { ...setup, reserved: 1 },
    { ...setup, flags: enable | 0x40 },
    { ...setup, flags: (enable | 0x80000000) >>> 0 },
    { ...setup, flags: 3 },
    { ...setup, size: 17 },
    { ...setup, size: 32 },
    { ...setup, size: 6 },
    { ...setup, size: 0x80000000 },
    { ...setup, size: 0, flags: enable },
    { ...setup, descAddr: setup.descAddr + 8n },
    { ...setup, driverAddr: setup.driverAddr + 1n },
    { ...setup, deviceAddr: setup.deviceAddr + 2n },
  ];
  for (const request of wrong) {
    assert.deepEqual(b.ask('SET_VQUEUE', request), {});
    assert.deepEqual(
      b.ask('GET_VQUEUE', { index: 0 }),
      emptyQueue,
      JSON.stringify(request, (_, v) => String(v)),
    );
  }
});

list.item('V65 V68 V69 an enabled queue cannot be disabled or changed; only a reset ends it', () => {
  const { b } = bench({}, 64);
  b.negotiate();
  b.ask('SET_VQUEUE', { ...setup, flags: enable });
  const before = b.ask('GET_VQUEUE', { index: 0 });
  assert.equal(before.flags, 1);
  for (const request of [
    setup,
    { ...setup, flags: ignoreAll },
    { ...setup, flags: keep, size: 4 },
    { ...setup, flags: enable, size: 4 },
    { ...setup, flags: keep | 0x38, size: 4 },
    { ...setup, flags: keep | 0x34, descAddr: areaAddress(2, 0) },
    { ...setup, flags: keep | ignoreAll },
    { ...setup, flags: enable | ignoreAll },
  ]) {
    b.ask('SET_VQUEUE', request);
    assert.deepEqual(b.ask('GET_VQUEUE', { index: 0 }), before);
  }
});

list.item('V67 ignore bits leave their fields alone; fields are set before the operation', () => {
  const { b } = bench();
  b.negotiate();
  b.ask('SET_VQUEUE', setup);
  const other = { ...setup, size: 4, descAddr: areaAddress(2, 0), driverAddr: areaAddress(2, 64), deviceAddr: 128n };
  const get = () => b.ask('GET_VQUEUE', { index: 0 });
  b.ask('SET_VQUEUE', { ...other, flags: keep | 0x38 });
  assert.deepEqual([get().size, get().descAddr], [4, setup.descAddr]);
  b.ask('SET_VQUEUE', { ...other, size: 8, flags: 0x34 });
  assert.deepEqual([get().size, get().descAddr, get().driverAddr], [4, other.descAddr, setup.driverAddr]);
  b.ask('SET_VQUEUE', { ...other, size: 2, flags: enable | 0x0c });
  assert.deepEqual(get(), {
    index: 0,
    maxSize: 16,
    size: 4,
    flags: 1,
    descAddr: other.descAddr,
    driverAddr: other.driverAddr,
    deviceAddr: other.deviceAddr,
  });
});

list.item('V70 RESET_VQUEUE outside the queues is a no-op with an empty answer', () => {
  const { b } = bench();
  b.negotiate(0, [feature.RING_RESET]);
  for (const index of [2, 64, 0xffffffff]) assert.deepEqual(b.ask('RESET_VQUEUE', { index }), {});
});

list.item('V71 RESET_VQUEUE without RING_RESET is answered and changes nothing', () => {
  const { b, device } = bench();
  const { queue } = b.start();
  assert.deepEqual(b.ask('RESET_VQUEUE', { index: 0 }), {});
  assert.equal(b.ask('GET_VQUEUE', { index: 0 }).flags, 1);
  queue.add([buffer(1, 0)], []);
  queue.kick();
  b.available();
  assert.equal(device.handled, 1);
});

list.item('V72 RESET_VQUEUE stops the queue when its requests are done, clears it, and allows a new set-up', () => {
  const { b, device } = bench();
  const { queue, memory } = b.start({ extra: [feature.RING_RESET] });
  queue.add([buffer(1, 0)], []);
  queue.kick();
  b.available();
  const token = b.request('RESET_VQUEUE', { index: 0 });
  assert.deepEqual(b.take(), [], 'a request is in flight');
  queue.add([buffer(1, 1)], []);
  queue.kick();
  b.available();
  assert.equal(device.handled, 1, 'no new request is taken');
  device.complete();
  b.scheduler.run();
  assert.deepEqual(
    b.take().map((message) => [message.name, message.header.token]),
    [['RESET_VQUEUE', token]],
  );
  assert.equal(queue.next(), undefined, 'nothing is completed on a queue that is reset');
  assert.deepEqual(b.ask('GET_VQUEUE', { index: 0 }), emptyQueue);
  const again = b.enableQueue(1, memory, { size: 4, extra: [feature.RING_RESET] });
  again.add([buffer(1, 0)], []);
  again.kick();
  b.available();
  assert.equal(device.handled, 2);
  device.complete();
  b.scheduler.run();
  assert.ok(again.next() !== undefined);
  assert.equal(b.takeEvents('EVENT_USED').length, 1);
  assert.equal(b.getStatus(), featuresOk | status.DRIVER_OK);
});

list.item('V73 V74 GET_SHM of an unknown id has length 0 and zeroes', () => {
  const { b } = bench();
  for (const index of [0, 1, 255, 0xffffffff]) {
    assert.deepEqual(b.ask('GET_SHM', { index }), { index, reserved: 0, length: 0n, address: 0n });
  }
});
