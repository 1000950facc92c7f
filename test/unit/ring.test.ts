import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { RingConsumer, RingProducer, ringBytesFor, ringCapacity, slotBytes } from '../../src/virtio-msg/ring.ts';
import { GuardedRing, inSlot, numbered, slotAt } from '../support/message-ring.ts';

const slot = 64;

function open(capacity = 8, sleepWords = true) {
  const memory = new GuardedRing(capacity, slot);
  const producer = new RingProducer(memory.ring, slot, sleepWords);
  const consumer = new RingConsumer(memory.ring, slot, sleepWords);
  return { memory, producer, consumer, target: new Uint8Array(slot) };
}

function pushAll(producer: RingProducer, count: number, from = 0): void {
  for (let i = 0; i < count; i++) assert.equal(producer.push(numbered(from + i, slot)), 'pushed');
}

function popAll(consumer: RingConsumer, count: number): void {
  const target = new Uint8Array(slot);
  for (let i = 0; i < count; i++) assert.equal(consumer.pop(target), 'message');
}

describe('ring geometry', () => {
  it('makes slots of whole cache lines or multiples of eight that hold the largest message', () => {
    const cases = [
      [52, 64],
      [64, 64],
      [65, 72],
      [72, 72],
      [104, 104],
      [264, 264],
      [0xffff, 0x1_0000],
    ] as const;
    for (const [message, bytes] of cases) assert.equal(slotBytes(message), bytes);
    for (let message = 52; message < 400; message++) {
      const bytes = slotBytes(message);
      assert.ok(bytes >= message && bytes % 8 === 0 && bytes >= 64 && bytes < Math.max(65, message + 8));
    }
  });

  it('counts whole slots after the 128-byte head', () => {
    assert.equal(ringCapacity(128 + 2 * 64, 64), 2);
    assert.equal(ringCapacity(128 + 3 * 64 - 1, 64), 2);
    assert.equal(ringCapacity(4096, 64), 62);
    assert.ok(ringCapacity(0, 64) < 2);
  });

  it('has room for the wanted slots beside the one that stays empty', () => {
    for (const size of [64, 72, 264]) {
      for (const slots of [1, 2, 255]) assert.equal(ringCapacity(ringBytesFor(slots, size), size) - 1, slots);
    }
    const { producer } = open(ringCapacity(ringBytesFor(5, slot), slot));
    pushAll(producer, 5);
    assert.equal(producer.push(numbered(5, slot)), 'full');
  });

  it('wants two slots and an aligned start', () => {
    const memory = new Uint8Array(new SharedArrayBuffer(1024));
    assert.throws(() => new RingProducer(memory.subarray(0, 128 + 127), slot, true), /at least two slots/);
    assert.throws(() => new RingConsumer(memory.subarray(32), slot, true), /64-byte boundary/);
  });

  it('uses the last slot, though bytes that make no slot follow', () => {
    const memory = new Uint8Array(new SharedArrayBuffer(slotAt + 2 * slot + 60));
    const producer = new RingProducer(memory, slot, true);
    const consumer = new RingConsumer(memory, slot, true);
    for (let i = 0; i < 6; i++) {
      assert.equal(producer.push(new Uint8Array(slot).fill(i + 1)), 'pushed');
      producer.publish();
      popAll(consumer, 1);
      consumer.release();
    }
    assert.ok(memory.subarray(slotAt + 2 * slot).every((byte) => byte === 0));
  });
});

describe('ring of two sides', () => {
  it('keeps its words where the protocol says', () => {
    const { memory, producer, consumer } = open();
    pushAll(producer, 3);
    assert.equal(memory.head, 0);
    producer.publish();
    assert.deepEqual([memory.head, memory.tail, memory.sleep], [3, 0, 0]);
    popAll(consumer, 2);
    assert.equal(memory.tail, 0);
    consumer.release();
    assert.equal(memory.tail, 2);
    consumer.sleep();
    assert.deepEqual([memory.head, memory.tail, memory.sleep], [3, 2, 1]);
    memory.checkGuards();
  });

  it('pads a message with zeros, so that nothing of an earlier one is left', () => {
    const { memory, producer, consumer, target } = open(2);
    producer.push(new Uint8Array(slot).fill(0xff));
    producer.publish();
    popAll(consumer, 1);
    consumer.release();
    pushAll(producer, 1);
    producer.publish();
    popAll(consumer, 1);
    consumer.release();
    assert.equal(producer.push(Uint8Array.of(1, 2, 3)), 'pushed');
    producer.publish();
    assert.deepEqual(memory.slotBytes(0), inSlot(Uint8Array.of(1, 2, 3), slot));
    assert.equal(consumer.pop(target), 'message');
    assert.deepEqual(target, inSlot(Uint8Array.of(1, 2, 3), slot));
  });

  it('hands out copies: later writes of the producer do not show', () => {
    const { memory, producer, consumer, target } = open();
    producer.push(Uint8Array.of(1, 2, 3, 4));
    producer.publish();
    consumer.pop(target);
    memory.ring.fill(0xee, slotAt);
    assert.deepEqual(target, inSlot(Uint8Array.of(1, 2, 3, 4), slot));
  });

  it('rings only for what is new', () => {
    const { producer, consumer } = open(8, false);
    assert.equal(producer.publish(), false);
    pushAll(producer, 2);
    assert.equal(producer.publish(), true);
    assert.equal(producer.publish(), false);
    assert.equal(consumer.release(), false);
  });

  it('rings a consumer once for each time it went to sleep', () => {
    const { memory, producer, consumer } = open();
    pushAll(producer, 1);
    assert.equal(producer.publish(), false, 'the consumer is awake');
    assert.equal(consumer.sleep(), false, 'a message waits');
    popAll(consumer, 1);
    assert.equal(consumer.sleep(), true);
    pushAll(producer, 1);
    assert.equal(producer.publish(), true);
    assert.equal(memory.sleep, 0);
    pushAll(producer, 1);
    assert.equal(producer.publish(), false);
  });

  it('leaves the sleep word alone where it was not negotiated', () => {
    const { memory, producer, consumer } = open(8, false);
    assert.equal(consumer.sleep(), true);
    assert.equal(memory.sleep, 0);
    memory.sleep = 1;
    pushAll(producer, 1);
    assert.equal(producer.publish(), true);
    assert.equal(memory.sleep, 1);
    assert.equal(consumer.sleep(), false);
  });

  it('rings a producer that found the ring full, once', () => {
    const { producer, consumer } = open(4);
    pushAll(producer, 3);
    assert.equal(producer.push(numbered(3, slot)), 'full');
    producer.publish();
    popAll(consumer, 1);
    assert.equal(consumer.release(), true);
    popAll(consumer, 1);
    assert.equal(consumer.release(), false);
  });

  it('rings also for a full ring that was not published when the producer met its end', () => {
    const { producer, consumer } = open(8);
    pushAll(producer, 3);
    producer.publish();
    popAll(consumer, 3);
    pushAll(producer, 4, 3);
    assert.equal(producer.push(numbered(7, slot)), 'full');
    assert.equal(consumer.release(), true);
    assert.equal(producer.push(numbered(7, slot)), 'pushed');
  });

  it('announces to a sleeping consumer what a full ring showed before', () => {
    const { producer, consumer } = open(4);
    consumer.sleep();
    pushAll(producer, 3);
    assert.equal(producer.push(numbered(3, slot)), 'full');
    assert.equal(producer.publish(), true);
  });

  it('announces again after a whole turn of the ring without a publication', () => {
    const { producer, consumer } = open(4);
    pushAll(producer, 3);
    assert.equal(producer.push(numbered(3, slot)), 'full');
    popAll(consumer, 3);
    consumer.release();
    pushAll(producer, 1, 3);
    assert.equal(consumer.sleep(), true);
    assert.equal(producer.publish(), true);
    popAll(consumer, 1);
  });
});

const hostileIndexes = [8, 9, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, 0xffff_ffff];

describe('ring with a hostile peer', () => {
  for (const index of hostileIndexes) {
    it(`is broken by a head of ${index}`, () => {
      const { memory, consumer, target } = open(8);
      memory.head = index;
      target.fill(0x11);
      assert.equal(consumer.sleep(), false, 'looks again instead of sleeping');
      assert.equal(consumer.pop(target), 'broken');
      assert.ok(target.every((byte) => byte === 0x11));
      assert.equal(consumer.release(), false);
      memory.checkGuards();
    });

    it(`is broken by a tail of ${index}`, () => {
      const { memory, producer } = open(8);
      pushAll(producer, 2);
      producer.publish();
      const before = memory.allSlots();
      memory.tail = index;
      assert.equal(producer.push(numbered(9, slot)), 'broken');
      assert.equal(producer.publish(), false);
      assert.deepEqual(memory.allSlots(), before);
      memory.checkGuards();
    });

    it(`does not take a head of ${index} for a full ring`, () => {
      const { memory, producer, consumer } = open(8);
      pushAll(producer, 7);
      producer.publish();
      popAll(consumer, 1);
      memory.head = index;
      assert.equal(consumer.release(), false);
      memory.checkGuards();
    });
  }

  it('has no more than its own slots to lose when indexes lie in range', () => {
    const index = fc.oneof(fc.nat(9), fc.constantFrom(...hostileIndexes));
    const action = fc.record(
      { word: fc.constantFrom('head', 'tail', 'sleep' as const), value: index, own: fc.nat(5) },
      { noNullPrototype: true },
    );
    fc.assert(
      fc.property(fc.array(action, { maxLength: 60, size: 'max' }), fc.boolean(), (actions, sleepWords) => {
        const out = open(8, sleepWords);
        const incoming = open(8, sleepWords);
        for (const { word, value, own } of actions) {
          // A peer of the producer writes tail and sleep, a peer of the consumer head.
          if (word === 'head') incoming.memory.head = value;
          else if (word === 'tail') out.memory.tail = value;
          else out.memory.sleep = value;
          if (own === 0) assert.equal(out.producer.push(numbered(value, slot)) === 'broken', out.memory.tail >= 8);
          if (own === 1) out.producer.publish();
          if (own === 2) incoming.consumer.pop(incoming.target);
          if (own === 3) incoming.consumer.release();
          if (own === 4) incoming.consumer.sleep();
          assert.ok(out.memory.head < 8 && incoming.memory.tail < 8, 'our own index stays in range');
          assert.ok(
            incoming.memory.allSlots().every((byte) => byte === 0),
            'a consumer does not write slots',
          );
        }
        out.memory.checkGuards();
        incoming.memory.checkGuards();
      }),
      { seed: 0x60551e, numRuns: 1_000 },
    );
  });
});
