import assert from 'node:assert/strict';
import { describe, it, mock } from 'node:test';
import { RingConsumer, RingProducer } from '../../src/virtio-msg/ring.ts';
import { GuardedRing, numbered } from '../support/message-ring.ts';

const slot = 64;
const capacity = 4;

type AtomicName = 'load' | 'store' | 'exchange';

/**
 * Runs `outer`, and `inner` as a whole just before the `at`-th atomic access of `outer`: what the other thread
 * might have done there.
 * @returns whether `outer` made that many accesses
 */
function interleaved(at: number, outer: () => void, inner: () => void): boolean {
  let accesses = 0;
  let ran = false;
  const hooks = (['load', 'store', 'exchange'] as AtomicName[]).map((name) => {
    const original = Atomics[name] as (...args: unknown[]) => unknown;
    return mock.method(Atomics, name, (...args: unknown[]) => {
      if (!ran && accesses++ === at) {
        ran = true;
        inner();
      }
      return original(...args);
    });
  });
  try {
    outer();
  } finally {
    for (const hook of hooks) hook.mock.restore();
  }
  return ran;
}

/** One side of a ring whose consumer has read `read` of `written` messages and given none back. */
class Scene {
  readonly memory = new GuardedRing(capacity, slot);
  readonly producer = new RingProducer(this.memory.ring, slot, true);
  readonly consumer = new RingConsumer(this.memory.ring, slot, true);
  readonly target = new Uint8Array(slot);
  isProducerWaiting = false;
  isConsumerWaiting = false;
  producerRung = false;
  consumerRung = false;

  constructor(start: number, written: number, read: number) {
    for (let i = 0; i < start; i++) {
      this.producer.push(numbered(i, slot));
      this.producer.publish();
      this.consumer.pop(this.target);
      this.consumer.release();
    }
    for (let i = 0; i < written; i++) this.producer.push(numbered(i, slot));
    this.producer.publish();
    for (let i = 0; i < read; i++) this.consumer.pop(this.target);
  }

  get waitingMessages(): number {
    return (this.memory.head - this.memory.tail + capacity) % capacity;
  }

  /** Sends until the ring is full or `most` are sent. */
  readonly produce = (most: number): void => {
    for (let i = 0; i < most && !this.isProducerWaiting; i++) {
      this.isProducerWaiting = this.producer.push(numbered(i, slot)) === 'full';
    }
    if (this.producer.publish()) this.consumerRung = true;
  };

  readonly release = (): void => {
    if (this.consumer.release()) this.producerRung = true;
  };

  readonly goToSleep = (): void => {
    this.isConsumerWaiting = this.consumer.sleep();
  };

  check(what: string): void {
    const hasRoom = this.waitingMessages < capacity - 1;
    assert.ok(
      !this.isProducerWaiting || !hasRoom || this.producerRung,
      `${what}: the producer waits beside free slots`,
    );
    const hasMessages = this.waitingMessages > 0;
    assert.ok(
      !this.isConsumerWaiting || !hasMessages || this.consumerRung,
      `${what}: the consumer sleeps over messages`,
    );
    this.memory.checkGuards();
  }
}

/** Every place of `act` within `other` and the other way round, for every fill level and position. */
function everywhere(check: (scene: Scene, at: number, sent: number) => boolean): number {
  let places = 0;
  for (let start = 0; start < capacity; start++) {
    for (let written = 0; written < capacity; written++) {
      for (let read = 0; read <= written; read++) {
        for (const sent of [1, 2, 3, 4]) {
          for (let at = 0; check(new Scene(start, written, read), at, sent); at++) places += 1;
        }
      }
    }
  }
  return places;
}

describe('ring with the other side at work between any two accesses', () => {
  it('wakes a producer that meets a full ring while slots are given back', () => {
    const inRelease = everywhere((scene, at, sent) => {
      const ran = interleaved(at, scene.release, () => scene.produce(sent));
      scene.check(`produce ${sent} before access ${at} of release`);
      return ran;
    });
    const inProduce = everywhere((scene, at, sent) => {
      const ran = interleaved(at, () => scene.produce(sent), scene.release);
      scene.check(`release before access ${at} of produce ${sent}`);
      return ran;
    });
    assert.ok(inRelease > 100 && inProduce > 100, `${inRelease} and ${inProduce} places`);
  });

  it('wakes a consumer that goes to sleep while messages are published', () => {
    const sleepAfterReading = (scene: Scene) => (): void => {
      while (scene.consumer.pop(scene.target) === 'message');
      scene.release();
      scene.goToSleep();
    };
    const inSleep = everywhere((scene, at, sent) => {
      const ran = interleaved(at, sleepAfterReading(scene), () => scene.produce(sent));
      scene.check(`produce ${sent} before access ${at} of a turn of the consumer`);
      return ran;
    });
    const inProduce = everywhere((scene, at, sent) => {
      const ran = interleaved(at, () => scene.produce(sent), sleepAfterReading(scene));
      scene.check(`a turn of the consumer before access ${at} of produce ${sent}`);
      return ran;
    });
    assert.ok(inSleep > 100 && inProduce > 100, `${inSleep} and ${inProduce} places`);
  });
});
