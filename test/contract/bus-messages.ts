import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlkDriver } from '../../src/guest/index.ts';
import { limits } from '../../src/kit/limits.ts';
import { dialectD5 } from '../../src/virtio-msg/dialect.ts';
import {
  type BusImplementation,
  blockBytes,
  blockwise,
  fewSlotsMax,
  nothingStrange,
  serviceCounters,
  withBus,
} from '../support/bus-bench.ts';
import { isCode, until } from '../support/guest-fixture.ts';
import { contentOf } from '../support/versioned-load.ts';

function sizeCases(implementation: BusImplementation): void {
  const { messageSizeMinBytes: least, messageSizeMaxBytes: most } = limits;
  for (const [ofService, ofGuest] of [
    [least, most],
    [most, least],
    [most, most],
  ] as const) {
    test(`messages of ${ofService} bytes at the service, ${ofGuest} at the guest: the smaller size is kept`, () =>
      withBus(
        implementation,
        async (bench) => {
          const size = Math.min(ofService, ofGuest);
          for (const number of [400, 1500, 3000]) await bench.service.attachEntropy(`e${number}`, number);
          const { bus } = await bench.connect({ maxMessageSize: ofGuest });
          assert.equal(bus.terms.maxMessageSize, size);
          assert.equal(bench.service.runtime.snapshot().channel?.maxMessageSizeBytes, size);
          const before = bus.statistics.messagesOut;
          assert.deepEqual(await bus.devices(), [1, 2, 400, 1500, 3000]);
          assert.equal(bus.statistics.messagesOut - before > 2, size === least, 'a list in parts');
          const blk = await BlkDriver.open(bus, 1, blockwise);
          assert.equal(blk.capacityBytes, bench.service.disk.sizeBytes);
          await blk.close();
          const sizes = bench.service.runtime.records().map(({ sizeBytes }) => sizeBytes);
          assert.ok(sizes.length > 10 && Math.max(...sizes) <= size, `messages of ${sizes} bytes`);
          nothingStrange(bench, bus);
        },
        { maxMessageSizeBytes: ofService },
      ));
  }
}

/** Bytes that are no message of a guest: see the header and the tables of the dialect. */
const garbage: readonly Uint8Array[] = [
  new Uint8Array(52).fill(0xff),
  new Uint8Array(8),
  // A size below the header, and one beyond the largest message.
  Uint8Array.of(0, 2, 0, 0, 1, 0, 4, 0),
  Uint8Array.of(0, 2, 0, 0, 1, 0, 0xff, 0xff),
  // Unknown messages: of a device, of the bus.
  Uint8Array.of(0, 0x3f, 1, 0, 1, 0, 8, 0),
  Uint8Array.of(2, 0x3f, 0, 0, 1, 0, 8, 0),
  // A bus message with a device number; a PING that is too short.
  Uint8Array.of(2, 3, 1, 0, 1, 0, 12, 0, 0, 0, 0, 0),
  Uint8Array.of(2, 3, 0, 0, 1, 0, 10, 0, 0, 0),
];

/** Messages: their size, those that are none, and more of them than a ring holds. */
export function messageCases(implementation: BusImplementation): void {
  sizeCases(implementation);
  garbageCases(implementation);
  fullRingCases(implementation);
}

function garbageCases(implementation: BusImplementation): void {
  test('what is no message is counted and dropped, and the connection goes on', () =>
    withBus(implementation, async (bench) => {
      const { bus, inject } = await bench.connect();
      const blk = await BlkDriver.open(bus, 1, blockwise);
      for (const frame of garbage) inject(frame);
      await bus.ping();
      assert.equal(serviceCounters(bench).malformed, garbage.length);
      await blk.write(0, contentOf(0, 1));
      assert.deepEqual(await blk.read(0, blockBytes), contentOf(0, 1));
      assert.deepEqual(bench.service.endings, []);
    }));

  test('a message that a guest does not send is counted and dropped; a request to nobody fails', () =>
    withBus(implementation, async (bench) => {
      const { bus, inject } = await bench.connect();
      const answer = { kind: 'response', name: 'PING', body: { data: 1 } } as const;
      const frame = new Uint8Array(dialectD5.encodedLength(answer));
      dialectD5.encode(answer, 0, 7, frame);
      inject(frame);
      bus.notify(9, 0);
      await bus.ping();
      assert.equal(serviceCounters(bench).dropped, 2);
      await assert.rejects(bus.request(9, 'GET_DEVICE_STATUS', {}), isCode('not-found', /device 9/));
      assert.equal(serviceCounters(bench).malformed, 0);
      await bus.ping();
    }));
}

function fullRingCases(implementation: BusImplementation): void {
  test('requests beyond what the ring holds are all answered, once', () =>
    withBus(implementation, async (bench) => {
      const { bus } = await bench.connect({ fewSlots: true });
      const before = bus.statistics.messagesOut;
      const count = limits.devicePendingRequests;
      const answers = new Map<string, number>();
      const ask = (name: string, request: () => Promise<unknown>) =>
        Array.from({ length: count }, (_, i) =>
          request().then(() => void answers.set(`${name} ${i}`, (answers.get(`${name} ${i}`) ?? 0) + 1)),
        );
      const asked = [
        ...ask('bus', () => bus.ping()),
        ...ask('disk', () => bus.request(1, 'GET_DEVICE_STATUS', {})),
        ...ask('random', () => bus.request(2, 'GET_DEVICE_INFO', {})),
      ];
      assert.ok(bus.statistics.messagesOut - before <= fewSlotsMax, 'the others wait for room');
      await Promise.all(asked);
      assert.deepEqual([...answers.values()], new Array(3 * count).fill(1));
      nothingStrange(bench, bus);
      assert.equal(bus.statistics.messagesOut, serviceCounters(bench).messagesIn);
      assert.equal(bus.statistics.messagesIn, serviceCounters(bench).messagesOut);
    }));

  test('events beyond what the ring holds all arrive, in order', () =>
    withBus(implementation, async (bench) => {
      const { bus } = await bench.connect({ fewSlots: true });
      const added: number[] = [];
      bus.on('added', ({ device }) => added.push(device));
      const numbers = Array.from({ length: 2 * fewSlotsMax }, (_, i) => 10 + i);
      // No turn of the event loop between them, so that the guest reads none.
      await Promise.all(numbers.map((number) => bench.service.attachEntropy(`e${number}`, number)));
      assert.ok(bench.service.runtime.snapshot().channel!.backlogMessages > 0, 'the ring is full');
      await until(() => added.length >= numbers.length, 'all are told');
      assert.deepEqual(added, numbers);
      assert.deepEqual(await bus.devices(), [1, 2, ...numbers]);
      nothingStrange(bench, bus);
    }));
}
