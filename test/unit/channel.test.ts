import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { Channel, type ChannelHandler, newCounters } from '../../src/device/channel.ts';
import { FlightRecorder } from '../../src/device/flight-recorder.ts';
import { systemClock } from '../../src/kit/clock.ts';
import { limits } from '../../src/kit/limits.ts';
import { type CanonicalMessage, dialectD5 } from '../../src/virtio-msg/dialect.ts';
import { parseFrame } from '../support/bridge-bench.ts';
import { FakePort, FakeScheduler } from '../support/bridge-fakes.ts';

const newRecorder = (): FlightRecorder => new FlightRecorder(systemClock, 16);
const ping = (data: number): CanonicalMessage => ({ kind: 'response', name: 'PING', body: { data } });
const getStatus: CanonicalMessage = { kind: 'request', name: 'GET_DEVICE_STATUS', body: {} };

class Rig implements ChannelHandler {
  readonly scheduler = new FakeScheduler();
  readonly port: FakePort;
  readonly counters = newCounters();
  readonly log: string[] = [];
  readonly channel: Channel;

  constructor(capacity = 1024, maxMessageSize = 64) {
    this.port = new FakePort(64, capacity);
    this.channel = new Channel(
      this.port,
      dialectD5,
      maxMessageSize,
      this,
      this.scheduler,
      this.counters,
      newRecorder(),
    );
  }

  busMessage(message: CanonicalMessage): void {
    this.log.push(`bus ${message.name}`);
  }

  transportMessage(message: CanonicalMessage, header: { deviceNumber: number; token: number }): void {
    this.log.push(`${message.name} ${header.deviceNumber} ${header.token}`);
  }

  available(deviceNumber: number, queue: number): void {
    this.log.push(`available ${deviceNumber} ${queue}`);
  }

  broken(reason: string): void {
    this.log.push(`broken: ${reason}`);
  }

  incoming(message: CanonicalMessage, device = 0, token = 0): void {
    const frame = new Uint8Array(64);
    this.port.incoming.push(frame.subarray(0, dialectD5.encode(message, device, token, frame)));
  }

  /** What the guest takes now. */
  seen(): string[] {
    return this.port.visible.splice(0).map((frame) => {
      const { name, header, body } = parseFrame(frame);
      return `${name} ${header.deviceNumber} ${JSON.stringify(body)}`;
    });
  }
}

describe('channel: receiving', () => {
  test('one turn takes at most a batch; the rest comes in later turns, in order', () => {
    const rig = new Rig();
    const total = limits.channelBatchMessages * 2 + 5;
    for (let i = 0; i < total; i++) rig.incoming(getStatus, 1, i);
    rig.channel.onDoorbell();
    assert.equal(rig.log.length, limits.channelBatchMessages);
    rig.channel.onDoorbell();
    assert.equal(rig.log.length, limits.channelBatchMessages, 'a doorbell does not jump the queue');
    rig.scheduler.nextTurn();
    assert.equal(rig.log.length, 2 * limits.channelBatchMessages);
    rig.scheduler.run();
    assert.deepEqual(
      rig.log,
      Array.from({ length: total }, (_, i) => `GET_DEVICE_STATUS 1 ${i}`),
    );
    assert.equal(rig.counters.messagesIn, total);
    assert.ok(rig.port.asleep, 'at the end it waits for the doorbell');
  });

  test('two channels share the turns', () => {
    const rigs = [new Rig(), new Rig()] as const;
    const order: number[] = [];
    const shared = new FakeScheduler();
    const channels = rigs.map((rig, n) => {
      for (let i = 0; i < 3 * limits.channelBatchMessages; i++) rig.incoming(getStatus, 0, i);
      const handler = { ...noHandler, transportMessage: () => void order.push(n) };
      return new Channel(rig.port, dialectD5, 64, handler, shared, newCounters(), newRecorder());
    });
    for (const channel of channels) channel.onDoorbell();
    shared.run();
    const batches = order.filter((_, i) => i % limits.channelBatchMessages === 0);
    assert.deepEqual(batches, [0, 1, 0, 1, 0, 1]);
  });

  test('what arrives while it goes to sleep is taken in the same turn', () => {
    const rig = new Rig();
    const sleep = rig.port.sleep.bind(rig.port);
    let once = true;
    rig.port.sleep = () => {
      if (once) rig.incoming(getStatus, 2, 9);
      once = false;
      return sleep();
    };
    rig.channel.onDoorbell();
    assert.deepEqual(rig.log, ['GET_DEVICE_STATUS 2 9']);
  });

  test('EVENT_AVAIL takes its short way, with device and queue of any size', () => {
    const rig = new Rig();
    rig.incoming({ kind: 'event', name: 'EVENT_AVAIL', body: { index: 3, next: 0 } }, 0xffff, 0);
    rig.incoming({ kind: 'event', name: 'EVENT_AVAIL', body: { index: 0xffffffff, next: 0 } }, 0, 77);
    rig.channel.onDoorbell();
    assert.deepEqual(rig.log, ['available 65535 3', 'available 0 4294967295']);
  });

  test('no bytes of a guest throw, stop the channel or reach a handler as anything but a whole message', () => {
    const frames = fc.array(fc.uint8Array({ maxLength: 70 }), { maxLength: 30 });
    const nearly = fc
      .tuple(fc.nat(3), fc.nat(255), fc.nat(70), fc.uint8Array({ maxLength: 60 }))
      .map(([type, id, size, rest]) => Uint8Array.of(type, id, 0, 0, 1, 0, size, 0, ...rest));
    const property = fc.property(fc.oneof(frames, fc.array(nearly, { maxLength: 30 })), (hostile) => {
      const rig = new Rig();
      rig.port.incoming.push(...hostile.map((frame) => frame.subarray(0, 64)));
      rig.incoming(getStatus, 1, 4711);
      rig.channel.onDoorbell();
      rig.scheduler.run();
      assert.equal(rig.log.at(-1), 'GET_DEVICE_STATUS 1 4711');
      assert.equal(rig.counters.malformed + rig.log.length, hostile.length + 1);
    });
    fc.assert(property, { seed: 7, numRuns: 2000 });
  });

  test('an impossible index ends the channel, once, and not from inside its own turn', () => {
    const rig = new Rig();
    rig.port.broken = true;
    rig.channel.onDoorbell();
    assert.deepEqual(rig.log, []);
    rig.channel.onDoorbell();
    rig.scheduler.run();
    assert.deepEqual(rig.log, ['broken: the guest wrote an impossible ring index']);
    rig.port.broken = false;
    rig.incoming(getStatus);
    rig.channel.onDoorbell();
    rig.scheduler.run();
    assert.equal(rig.log.length, 1, 'nothing is received any more');
  });

  test('a channel that is closed by a message takes no further one', () => {
    const rig = new Rig();
    for (let i = 0; i < 3; i++) rig.incoming(getStatus, 0, i);
    rig.transportMessage = () => {
      rig.log.push('closing');
      rig.channel.close();
    };
    rig.channel.onDoorbell();
    rig.scheduler.run();
    assert.deepEqual(rig.log, ['closing']);
    assert.equal(rig.port.flushes, 0, 'the port is not touched after close');
  });
});

const noHandler: ChannelHandler = {
  busMessage() {},
  transportMessage() {},
  available() {},
  broken() {},
};

describe('channel: sending', () => {
  test('what one turn sends is published with one flush', () => {
    const rig = new Rig();
    for (let i = 0; i < 5; i++) rig.channel.send(ping(i), 0, i);
    rig.channel.sendUsed(1, 0);
    assert.deepEqual(rig.seen(), []);
    rig.scheduler.run();
    assert.equal(rig.port.flushes, 1);
    assert.equal(rig.seen().length, 6);
    assert.deepEqual([rig.counters.messagesOut, rig.counters.doorbellsOut], [6, 1]);
  });

  test('messages for a full ring wait, and keep their order', () => {
    const rig = new Rig(3);
    for (let i = 0; i < 8; i++) rig.channel.send(ping(i), 0, i);
    rig.scheduler.run();
    const all: string[] = [];
    for (let round = 0; round < 3; round++) {
      all.push(...rig.seen());
      rig.channel.onDoorbell();
      rig.scheduler.run();
    }
    assert.deepEqual(
      all,
      Array.from({ length: 8 }, (_, i) => `PING 0 {"data":${i}}`),
    );
  });

  test('EVENT_USED for a full ring waits once for each queue', () => {
    const rig = new Rig(1);
    rig.channel.send(ping(0), 0, 0);
    for (let i = 0; i < 1000; i++) {
      for (const [device, queue] of [
        [0, 0],
        [0, 1],
        [0xffff, 63],
        [0x8000, 0],
      ] as const) {
        rig.channel.sendUsed(device, queue);
      }
    }
    const all: string[] = [];
    rig.port.capacity = 100;
    for (let round = 0; round < 2; round++) {
      rig.scheduler.run();
      all.push(...rig.seen());
      rig.channel.onDoorbell();
    }
    assert.deepEqual(all, [
      'PING 0 {"data":0}',
      'EVENT_USED 0 {"index":0}',
      'EVENT_USED 0 {"index":1}',
      'EVENT_USED 65535 {"index":63}',
      'EVENT_USED 32768 {"index":0}',
    ]);
    rig.channel.sendUsed(0, 0);
    rig.scheduler.run();
    assert.deepEqual(rig.seen(), ['EVENT_USED 0 {"index":0}'], 'a later one is a new event');
  });

  test('a guest that never reads its ring loses the connection when the backlog is full', () => {
    const rig = new Rig(2);
    for (let i = 0; i < limits.channelBacklogMessages + 2; i++) rig.channel.send(ping(i), 0, 0);
    rig.scheduler.run();
    assert.deepEqual(rig.log, []);
    rig.channel.send(ping(0), 0, 0);
    rig.scheduler.run();
    assert.deepEqual(rig.log, ['broken: the guest does not read its ring']);
    rig.channel.send(ping(0), 0, 0);
    rig.channel.sendUsed(0, 0);
    rig.scheduler.run();
    assert.equal(rig.log.length, 1);
  });

  for (const [name, send] of [
    ['a response', (rig: Rig) => rig.channel.send(ping(1), 0, 1)],
    ['EVENT_USED', (rig: Rig) => rig.channel.sendUsed(0, 1)],
  ] as const) {
    test(`an impossible index in the outgoing ring ends the channel: ${name}`, () => {
      const rig = new Rig();
      rig.port.sendBroken = true;
      send(rig);
      rig.scheduler.run();
      assert.deepEqual(rig.log, ['broken: the guest wrote an impossible ring index']);
    });

    test(`an impossible index is found when the backlog is sent: ${name}`, () => {
      const rig = new Rig(0);
      send(rig);
      rig.port.sendBroken = true;
      rig.channel.onDoorbell();
      rig.scheduler.run();
      assert.deepEqual(rig.log, ['broken: the guest wrote an impossible ring index']);
    });
  }

  test('a message of exactly the slot size is sent whole', () => {
    const rig = new Rig();
    const data = Uint8Array.from({ length: 44 }, (_, i) => i);
    rig.channel.send(
      { kind: 'response', name: 'GET_CONFIG', body: { generation: 1, offset: 0, length: 44, data } },
      0,
      1,
    );
    rig.scheduler.run();
    const [frame] = rig.port.visible;
    assert.equal(frame?.length, 64);
    assert.deepEqual(frame?.slice(20), data);
  });
});
