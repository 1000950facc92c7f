import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { RingConsumer, RingProducer, ringBytesFor } from '../../src/virtio-msg/ring.ts';
import { inSlot, numbered } from '../support/message-ring.ts';

const slotSize = 64;
/** Only reached when a wake-up is lost. */
const hangMs = 20_000;

interface Shared {
  readonly role: 'producer' | 'consumer';
  readonly messages: number;
  readonly sleepWords: boolean;
  /** Whether the consumer announces its sleep before it gives slots back, as a flush at the end of a turn does. */
  readonly lateRelease: boolean;
  readonly ring: Uint8Array;
  readonly toConsumer: Int32Array;
  readonly toProducer: Int32Array;
}

/** A counter to wait on; it keeps a ring that came before the wait, as a doorbell socket does. */
class Doorbell {
  readonly #count: Int32Array;
  #seen = 0;
  waits = 0;

  constructor(count: Int32Array) {
    this.#count = count;
  }

  ring(): void {
    Atomics.add(this.#count, 0, 1);
    Atomics.notify(this.#count, 0);
  }

  wait(who: string): void {
    this.waits += 1;
    assert.notEqual(Atomics.wait(this.#count, 0, this.#seen, hangMs), 'timed-out', `${who} was not woken`);
    this.#seen = Atomics.load(this.#count, 0);
  }
}

function prng(seed: number): (below: number) => number {
  let x = seed;
  return (below) => {
    x = (Math.imul(x, 1_664_525) + 1_013_904_223) >>> 0;
    return (x >>> 8) % below;
  };
}

/** @returns how often it waited for room */
function produce(shared: Shared): number {
  const ring = new RingProducer(shared.ring, slotSize, shared.sleepWords);
  const consumerBell = new Doorbell(shared.toConsumer);
  const room = new Doorbell(shared.toProducer);
  const below = prng(1);
  for (let sent = 0; sent < shared.messages; ) {
    let outcome: string = 'pushed';
    for (let burst = 1 + below(12); burst > 0 && sent < shared.messages && outcome === 'pushed'; burst--) {
      outcome = ring.push(numbered(sent, slotSize));
      if (outcome === 'pushed') sent += 1;
    }
    if (ring.publish()) consumerBell.ring();
    assert.notEqual(outcome, 'broken');
    if (outcome === 'full') room.wait('the producer');
  }
  return room.waits;
}

/** @returns how often it slept */
function consume(shared: Shared): number {
  const ring = new RingConsumer(shared.ring, slotSize, shared.sleepWords);
  const messages = new Doorbell(shared.toConsumer);
  const producerBell = new Doorbell(shared.toProducer);
  const below = prng(2);
  const target = new Uint8Array(slotSize);
  const release = (): void => {
    if (ring.release()) producerBell.ring();
  };
  for (let received = 0; received < shared.messages; ) {
    const outcome = ring.pop(target);
    assert.notEqual(outcome, 'broken');
    if (outcome === 'message') {
      assert.equal(Buffer.compare(target, inSlot(numbered(received, slotSize), slotSize)), 0, `message ${received}`);
      received += 1;
      if (below(5) === 0) release();
      continue;
    }
    if (!shared.lateRelease) release();
    const asleep = ring.sleep();
    release();
    if (asleep) messages.wait('the consumer');
  }
  release();
  return messages.waits;
}

async function inThread(shared: Shared): Promise<number> {
  const worker = new Worker(new URL(import.meta.url), { workerData: shared });
  try {
    return await new Promise<number>((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
  } finally {
    await worker.terminate();
  }
}

async function exchange(options: Pick<Shared, 'messages' | 'sleepWords' | 'lateRelease'>, slots: number) {
  const ring = new Uint8Array(new SharedArrayBuffer(ringBytesFor(slots, slotSize)));
  const counter = () => new Int32Array(new SharedArrayBuffer(4));
  const shared = { ...options, ring, toConsumer: counter(), toProducer: counter() };
  const [full, asleep] = await Promise.all([
    inThread({ ...shared, role: 'producer' }),
    inThread({ ...shared, role: 'consumer' }),
  ]);
  assert.ok(full > 0, 'the producer never met a full ring');
  assert.ok(asleep > 0, 'the consumer never slept');
}

if (isMainThread) {
  describe('ring between two threads', () => {
    it('loses no message and no wake-up with sleep words', () =>
      exchange({ messages: 300_000, sleepWords: true, lateRelease: false }, 7));

    it('loses none when slots are given back after the sleep was announced', () =>
      exchange({ messages: 150_000, sleepWords: true, lateRelease: true }, 7));

    it('loses none without sleep words', () =>
      exchange({ messages: 100_000, sleepWords: false, lateRelease: true }, 7));

    it('loses none in the smallest ring', () =>
      exchange({ messages: 30_000, sleepWords: true, lateRelease: false }, 1));
  });
} else {
  const shared = workerData as Shared;
  parentPort!.postMessage(shared.role === 'producer' ? produce(shared) : consume(shared));
}
