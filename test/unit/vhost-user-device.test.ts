import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type DeviceRegion, packedRingStart, type QueueStart, VhostDevice } from '../../src/vhost-user/device.ts';
import { protocolFeature } from '../../src/vhost-user/features.ts';
import { FrontEnd } from '../../src/vhost-user/front-end.ts';
import { requestName } from '../../src/vhost-user/messages.ts';
import { openDevice, type WantedDevice } from '../../src/vhost-user/negotiation.ts';
import { FeatureSet, feature } from '../../src/virtio/features.ts';
import { FakeClock } from '../support/bridge-fakes.ts';
import { FakeChannel, messageHex, REPLY, u64Hex } from '../support/vhost-user-fakes.ts';

type Protocol = ReadonlyArray<keyof typeof protocolFeature>;

const offeredBits = [0, 30, feature.EVENT_IDX, feature.VERSION_1, feature.ACCESS_PLATFORM, feature.RING_PACKED];
const bits = (list: readonly number[]): bigint => list.reduce((sum, bit) => sum | (1n << BigInt(bit)), 0n);

/** A back-end that answers everything from a table, and keeps a list of what it was asked. */
class Scripted {
  readonly channel = new FakeChannel();
  readonly clock = new FakeClock();
  readonly frontEnd: FrontEnd;
  readonly answers: Record<string, string>;
  /** Names that are answered with a refusal. */
  readonly refuses = new Set<string>();
  readonly asked: string[] = [];

  constructor(protocol: Protocol, features: readonly number[] = offeredBits) {
    const names = protocol.map((name) => protocolFeature[name]);
    this.answers = {
      GET_FEATURES: u64Hex(bits(features)),
      GET_PROTOCOL_FEATURES: u64Hex(bits([...names, protocolFeature.RARP])),
      GET_QUEUE_NUM: u64Hex(3n),
      GET_MAX_MEM_SLOTS: u64Hex(2n),
      GET_STATUS: u64Hex(0xbn),
      GET_CONFIG: `${'00'.repeat(4)}0200000000000000aabb`,
      GET_VRING_BASE: '0000000005000100',
    };
    this.channel.onSent = (id, hex) => this.#answer(id, hex);
    const ignore = (): void => {};
    const events = { configChanged: ignore, queueCalled: ignore, queueFailed: ignore, closed: ignore };
    this.frontEnd = new FrontEnd(this.channel, this.clock, events);
  }

  #answer(id: number, hex: string): void {
    const name = requestName(id);
    this.asked.push(
      name.startsWith('SET_STATUS') || name.startsWith('SET_VRING_E') ? `${name} ${hex.slice(24)}` : name,
    );
    const needsReply = Number.parseInt(hex.slice(8, 10), 16) === 9;
    const answer = this.answers[name] ?? (needsReply ? u64Hex(this.refuses.has(name) ? 1n : 0n) : undefined);
    if (answer !== undefined) queueMicrotask(() => this.channel.deliver(messageHex(id, REPLY, answer)));
  }

  /** Takes the list. */
  seen(): string[] {
    return this.asked.splice(0);
  }

  async open(wanted: Partial<WantedDevice> = {}): Promise<VhostDevice> {
    const description = await openDevice(this.frontEnd, { configBytes: 2, queues: 1, ...wanted });
    return new VhostDevice(this.frontEnd, description);
  }
}

const everything: Protocol = [
  'MQ',
  'REPLY_ACK',
  'BACKEND_REQ',
  'CONFIG',
  'CONFIGURE_MEM_SLOTS',
  'STATUS',
  'RESET_DEVICE',
];
const ownChannel = () => ({ ours: new FakeChannel(), theirs: { number: 0, close: () => {} } });
const region = (n: number): DeviceRegion => {
  const at = BigInt(n) * 0x1000n;
  return { guestAddress: at, userAddress: at, size: 0x1000n, mmapOffset: 0n, fd: 0 };
};
const start = (index: number, base = 0): QueueStart => {
  const addresses = { desc: 0x1000n, driver: 0x2000n, device: 0x3000n };
  return { index, size: 64, base, ...addresses, kick: 0, call: 1, error: 2 };
};
const chosen = FeatureSet.of(feature.VERSION_1, feature.EVENT_IDX);

test('a connection starts in the order of the specification', async () => {
  const back = new Scripted(everything);
  const { description } = await back.open({ openBackEndChannel: ownChannel });
  assert.deepEqual(back.seen(), [
    'GET_FEATURES',
    'GET_PROTOCOL_FEATURES',
    'SET_PROTOCOL_FEATURES',
    'SET_OWNER',
    'GET_QUEUE_NUM',
    'GET_CONFIG',
    'GET_MAX_MEM_SLOTS',
    'SET_BACKEND_REQ_FD',
  ]);
  assert.deepEqual(description.features.bits(), [0, feature.EVENT_IDX, feature.VERSION_1, feature.RING_PACKED]);
  assert.equal(description.protocolFeatures.has(protocolFeature.RARP), false);
  assert.deepEqual(description.config, Uint8Array.of(0xaa, 0xbb));
  assert.equal(description.memSlots, 2);
  assert.equal(description.queues, 3);
});

test('a back-end without protocol features is asked nothing that it does not know', async () => {
  const back = new Scripted([], [0, feature.VERSION_1]);
  const device = await back.open({ openBackEndChannel: ownChannel });
  assert.deepEqual(back.seen(), ['GET_FEATURES', 'SET_OWNER']);
  assert.equal(device.description.queues, undefined);
  assert.equal(device.description.config, undefined);
  assert.equal(device.description.memSlots, 8);
  await device.agree(FeatureSet.of(feature.VERSION_1));
  await device.setMemory([region(1)]);
  await device.startQueues([start(0)]);
  assert.deepEqual(back.seen(), [
    'SET_FEATURES',
    'SET_MEM_TABLE',
    'GET_FEATURES',
    'SET_VRING_NUM',
    'SET_VRING_BASE',
    'SET_VRING_ADDR',
    `SET_VRING_ERR ${u64Hex(0n)}`,
    'SET_VRING_CALL',
    'SET_VRING_KICK',
  ]);
  await device.reset();
  assert.deepEqual(back.seen(), ['GET_VRING_BASE']);
});

test('without a channel to give, none is agreed on', async () => {
  const back = new Scripted(everything);
  const { description } = await back.open();
  assert.equal(description.protocolFeatures.has(protocolFeature.BACKEND_REQ), false);
  assert.equal(back.seen().includes('SET_BACKEND_REQ_FD'), false);
});

test('a queue is set up before its kick, enabled last, and the status follows', async () => {
  const back = new Scripted(everything);
  const device = await back.open();
  back.seen();
  await device.agree(chosen);
  assert.deepEqual(back.seen(), [
    `SET_STATUS ${u64Hex(1n)}`,
    `SET_STATUS ${u64Hex(3n)}`,
    'SET_FEATURES',
    `SET_STATUS ${u64Hex(11n)}`,
    'GET_STATUS',
  ]);
  const setFeatures = back.channel.sent.find((hex) => hex.startsWith('02000000'));
  assert.equal(setFeatures, messageHex(2, 9, u64Hex(bits([30, feature.EVENT_IDX, feature.VERSION_1]))));
  await device.setMemory([region(1)]);
  await device.startQueues([start(0), start(1)]);
  const queue = (enable: string): string[] => [
    'SET_VRING_NUM',
    'SET_VRING_BASE',
    'SET_VRING_ADDR',
    `SET_VRING_ERR ${u64Hex(BigInt(`0x${enable.slice(0, 2)}`))}`,
    'SET_VRING_CALL',
    'SET_VRING_KICK',
    `SET_VRING_ENABLE ${enable}`,
  ];
  assert.deepEqual(back.seen(), [
    'ADD_MEM_REG',
    ...queue('0000000001000000'),
    ...queue('0100000001000000'),
    `SET_STATUS ${u64Hex(15n)}`,
  ]);
  assert.deepEqual(device.startedQueues, [0, 1]);
});

test('a back-end that does not keep FEATURES_OK refuses the choice', async () => {
  const back = new Scripted(everything);
  back.answers.GET_STATUS = u64Hex(3n);
  const device = await back.open();
  await assert.rejects(device.agree(chosen), { code: 'backend-refused' });
  assert.equal(device.features, undefined);
});

test('the base of a split queue has 16 bits, that of a packed one both indices', async () => {
  for (const [features, base] of [
    [chosen, 5],
    [chosen.with(feature.RING_PACKED), 0x1_0005],
  ] as const) {
    const back = new Scripted(everything);
    const device = await back.open();
    await device.agree(features);
    await device.startQueues([start(0, features.has(feature.RING_PACKED) ? packedRingStart : 0)]);
    assert.deepEqual([...(await device.stopQueues())], [[0, base]]);
    assert.deepEqual(device.startedQueues, []);
  }
});

test('with memory slots only the difference is sent, and their number is kept', async () => {
  const back = new Scripted(everything);
  const device = await back.open();
  await device.setMemory([region(1), region(2)]);
  back.seen();
  await device.setMemory([region(2), region(3)]);
  assert.deepEqual(back.seen(), ['REM_MEM_REG', 'ADD_MEM_REG']);
  await device.setMemory([region(3), region(2)]);
  assert.deepEqual(back.seen(), []);
  await assert.rejects(device.addRegion(region(4)), { code: 'limit-reached' });
  await assert.rejects(device.setMemory([1, 2, 3].map(region)), { code: 'limit-reached' });
  back.refuses.add('REM_MEM_REG');
  await assert.rejects(device.removeRegion(region(3)), { code: 'backend-refused' });
  assert.equal(device.regions.length, 2);
});

test('without memory slots the whole table is sent again', async () => {
  const back = new Scripted(['REPLY_ACK']);
  const device = await back.open();
  await device.setMemory([region(1)]);
  await device.addRegion(region(2));
  await device.removeRegion(region(1));
  assert.deepEqual(
    back.channel.sent.filter((hex) => hex.startsWith('05000000')).map((hex) => Number.parseInt(hex.slice(24, 26), 16)),
    [1, 2, 1],
  );
  assert.deepEqual(
    device.regions.map((each) => each.guestAddress),
    [0x2000n],
  );
});

const resets: ReadonlyArray<readonly [string, Protocol, string[]]> = [
  ['RESET_DEVICE', ['REPLY_ACK', 'RESET_DEVICE', 'STATUS'], ['RESET_DEVICE']],
  ['the status', ['REPLY_ACK', 'STATUS'], [`SET_STATUS ${u64Hex(0n)}`]],
  ['a stop', ['REPLY_ACK'], []],
];
for (const [name, protocol, expected] of resets) {
  test(`a reset stops the queues, then uses ${name}, and features are chosen anew`, async () => {
    const back = new Scripted(protocol);
    const device = await back.open();
    await device.agree(chosen);
    await device.startQueues([start(0)]);
    back.seen();
    await device.reset();
    assert.deepEqual(back.seen(), ['GET_VRING_BASE', ...expected]);
    assert.equal(device.features, undefined);
    await device.agree(chosen);
    assert(back.seen().includes('SET_FEATURES'));
  });
}

test('a refused part of a queue is told after the rest was sent, and the queue can be stopped', async () => {
  const back = new Scripted(everything);
  const device = await back.open();
  await device.agree(chosen);
  back.refuses.add('SET_VRING_ADDR');
  await assert.rejects(device.startQueues([start(0)]), { message: 'the back-end refused SET_VRING_ADDR with 1' });
  assert.deepEqual(device.startedQueues, [0]);
  await device.stopQueue(0);
  assert.equal(back.clock.timers, 0);
});

test('a queue beyond those of the back-end is not asked for', async () => {
  const back = new Scripted(everything);
  const device = await back.open();
  await device.agree(chosen);
  back.seen();
  await assert.rejects(device.startQueues([start(3)]), { code: 'invalid-request' });
  assert.deepEqual(back.seen(), []);
});

const useless: ReadonlyArray<readonly [string, Partial<WantedDevice>, Record<string, string>, RegExp]> = [
  ['has too few queues', { queues: 4 }, {}, /has 3 queues, 4 are needed/],
  ['has no memory slots', {}, { GET_MAX_MEM_SLOTS: u64Hex(0n) }, /no memory slots/],
  [
    'lacks what is required',
    { required: FeatureSet.of(protocolFeature.INFLIGHT_SHMFD) },
    {},
    /does not offer INFLIGHT_SHMFD/,
  ],
];
for (const [name, wanted, answers, reason] of useless) {
  test(`a back-end that ${name} is of no use`, async () => {
    const back = new Scripted(everything);
    Object.assign(back.answers, answers);
    await assert.rejects(back.open(wanted), { code: 'backend-unusable', message: reason });
  });
}

test('enormous numbers of a back-end are bounded', async () => {
  const back = new Scripted(everything);
  back.answers.GET_QUEUE_NUM = u64Hex((1n << 64n) - 1n);
  back.answers.GET_MAX_MEM_SLOTS = u64Hex((1n << 64n) - 1n);
  const { description } = await back.open();
  assert.equal(description.queues, 256);
  assert.equal(description.memSlots, 512);
});
