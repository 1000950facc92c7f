import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { RingConsumer, RingProducer } from '../../src/virtio-msg/ring.ts';
import { GuardedRing, inSlot, numbered } from '../support/message-ring.ts';

const slot = 64;

/** What the protocol page says about a ring, with plain queues. */
class ModelRing {
  readonly #room: number;
  readonly #sleepWords: boolean;
  readonly #written: number[] = [];
  readonly #visible: number[] = [];
  #unreleased = 0;
  #unannounced = false;
  #asleep = false;
  fullSeen = 0;

  constructor(capacity: number, sleepWords: boolean) {
    this.#room = capacity - 1;
    this.#sleepWords = sleepWords;
  }

  push(sequence: number): 'pushed' | 'full' {
    if (this.#written.length + this.#visible.length + this.#unreleased === this.#room) {
      this.#show();
      this.fullSeen += 1;
      return 'full';
    }
    this.#written.push(sequence);
    this.#unannounced = true;
    return 'pushed';
  }

  #show(): void {
    this.#visible.push(...this.#written.splice(0));
  }

  publish(): boolean {
    if (!this.#unannounced) return false;
    this.#unannounced = false;
    this.#show();
    const rings = !this.#sleepWords || this.#asleep;
    this.#asleep = false;
    return rings;
  }

  pop(): number | undefined {
    const sequence = this.#visible.shift();
    if (sequence !== undefined) this.#unreleased += 1;
    return sequence;
  }

  release(): boolean {
    const wasFull = this.#visible.length + this.#unreleased === this.#room;
    const given = this.#unreleased > 0;
    this.#unreleased = 0;
    return given && wasFull;
  }

  sleep(): boolean {
    this.#asleep = true;
    return this.#visible.length === 0;
  }
}

type Step = readonly ['push' | 'publish' | 'pop' | 'release' | 'sleep', number];

const step: fc.Arbitrary<Step> = fc.tuple(
  fc.constantFrom('push', 'push', 'publish', 'pop', 'pop', 'release', 'sleep' as const),
  fc.integer({ min: 1, max: 6 }),
);

function runAgainstModel(capacity: number, sleepWords: boolean, steps: readonly Step[]) {
  const memory = new GuardedRing(capacity, slot);
  const producer = new RingProducer(memory.ring, slot, sleepWords);
  const consumer = new RingConsumer(memory.ring, slot, sleepWords);
  const model = new ModelRing(capacity, sleepWords);
  const target = new Uint8Array(slot);
  let sequence = 0;
  let received = 0;
  for (const [action, times] of steps) {
    switch (action) {
      case 'push':
        for (let i = 0; i < times; i++) {
          const outcome = producer.push(numbered(sequence, slot));
          assert.equal(outcome, model.push(sequence));
          if (outcome === 'pushed') sequence += 1;
        }
        break;
      case 'pop':
        for (let i = 0; i < times; i++) {
          target.fill(0xa5);
          const expected = model.pop();
          assert.equal(consumer.pop(target), expected === undefined ? 'empty' : 'message');
          if (expected === undefined) assert.ok(target.every((byte) => byte === 0xa5));
          else assert.deepEqual(target, inSlot(numbered(expected, slot), slot));
          if (expected !== undefined) received += 1;
        }
        break;
      case 'publish':
        assert.equal(producer.publish(), model.publish());
        break;
      case 'release':
        assert.equal(consumer.release(), model.release());
        break;
      case 'sleep':
        assert.equal(consumer.sleep(), model.sleep());
        break;
    }
  }
  memory.checkGuards();
  return { received, fullSeen: model.fullSeen };
}

describe('ring against a model queue', () => {
  for (const sleepWords of [true, false]) {
    it(`behaves alike for random batches ${sleepWords ? 'with' : 'without'} sleep words`, () => {
      let turns = 0;
      let fullSeen = 0;
      fc.assert(
        fc.property(
          fc.integer({ min: 2, max: 9 }),
          fc.array(step, { maxLength: 120, size: 'max' }),
          (capacity, steps) => {
            const run = runAgainstModel(capacity, sleepWords, steps);
            turns += Math.floor(run.received / capacity);
            fullSeen += run.fullSeen;
          },
        ),
        { seed: 0x52494e47, numRuns: 2_000 },
      );
      assert.ok(turns > 1_000, `${turns} turns of a ring`);
      assert.ok(fullSeen > 1_000, `${fullSeen} full rings`);
    });
  }
});
