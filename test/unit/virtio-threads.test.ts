import assert from 'node:assert/strict';
import { once } from 'node:events';
import { describe, it } from 'node:test';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { FeatureSet } from '../../src/virtio/features.ts';
import type { DeviceQueue, DriverRingMemory } from '../../src/virtio/queue.ts';
import { openDriverQueue } from '../../src/virtio/rings.ts';
import { readU32, writeU32 } from '../../src/wire/bytes.ts';
import {
  dataRange,
  expectValue,
  makeRings,
  openDevice,
  Prng,
  type RingKind,
  ringKinds,
} from '../support/virtqueue-pair.ts';

const SIZE = 16;
const SLOT_BYTES = 64;
/** Only reached when a wake-up is lost. */
const HANG_MS = 20_000;

interface Shared {
  readonly chains: number;
  readonly featureBits: readonly number[];
  readonly memory: DriverRingMemory;
  readonly data: Uint8Array;
  readonly kick: Int32Array;
  readonly interrupt: Int32Array;
}

/** A counter to wait on, as an eventfd is. */
class Doorbell {
  readonly #count: Int32Array;
  #seen = 0;
  rung = 0;

  constructor(count: Int32Array) {
    this.#count = count;
  }

  ring(): void {
    this.rung += 1;
    Atomics.add(this.#count, 0, 1);
    Atomics.notify(this.#count, 0);
  }

  wait(who: string): void {
    assert.notEqual(Atomics.wait(this.#count, 0, this.#seen, HANG_MS), 'timed-out', `${who} was not woken`);
    this.#seen = Atomics.load(this.#count, 0);
  }
}

function drive(shared: Shared): void {
  const { chains, memory, data } = shared;
  const addresses = { descAddr: 0n, driverAddr: 0n, deviceAddr: 0n };
  const features = FeatureSet.of(...shared.featureBits);
  const queue = openDriverQueue({ size: SIZE, features, memory, ...addresses });
  const kick = new Doorbell(shared.kick);
  const interrupt = new Doorbell(shared.interrupt);
  const random = new Prng(1);
  const slots = Array.from({ length: SIZE / 2 }, (_, i) => i * SLOT_BYTES);
  const outstanding = new Map<number, { slot: number; id: number }>();
  parentPort!.postMessage('ready');
  for (let id = 0, done = 0; done < chains; ) {
    for (let burst = random.below(SIZE); burst > 0 && slots.length > 0 && id < chains; burst--) {
      const slot = slots.pop()!;
      writeU32(data, slot, id);
      const token = queue.add([dataRange(slot, 4)], [dataRange(slot + 32, 4)])!;
      outstanding.set(token, { slot, id });
      id += 1;
    }
    if (queue.kick()) kick.ring();
    for (let used = queue.next(); used !== undefined; used = queue.next()) {
      const { slot, id: sent } = outstanding.get(expectValue(used).token)!;
      assert.equal(readU32(data, slot + 32), sent + 1, 'the answer came before the used element');
      outstanding.delete(expectValue(used).token);
      slots.push(slot);
      done += 1;
    }
    if (outstanding.size > 0 && !queue.enableInterrupts()) interrupt.wait('the driver');
    queue.suppressInterrupts();
  }
}

function serve(queue: DeviceQueue, chains: number, kick: Doorbell, interrupt: Doorbell): void {
  for (let done = 0; done < chains; ) {
    queue.suppressKicks();
    for (let chain = queue.pop(); chain !== undefined; chain = queue.pop()) {
      const { readable, writable } = expectValue(chain);
      writeU32(writable[0]!, 0, readU32(readable[0]!, 0) + 1);
      assert.equal(queue.push(expectValue(chain), 4), undefined);
      queue.publish();
      if (queue.needsInterrupt()) interrupt.ring();
      done += 1;
    }
    if (done < chains && !queue.enableKicks()) kick.wait('the device');
  }
}

async function run(kind: RingKind, eventIdx: boolean, chains: number): Promise<void> {
  const rings = makeRings(SIZE, {
    ...kind,
    eventIdx,
    dataBytes: SIZE * SLOT_BYTES,
    allocate: (bytes) => new SharedArrayBuffer(bytes),
  });
  const shared: Shared = {
    chains,
    featureBits: rings.setup.features.bits(),
    memory: rings.driverSetup.memory,
    data: rings.data.bytes,
    kick: new Int32Array(new SharedArrayBuffer(4)),
    interrupt: new Int32Array(new SharedArrayBuffer(4)),
  };
  const worker = new Worker(new URL(import.meta.url), { workerData: shared });
  const ended = once(worker, 'exit');
  try {
    await once(worker, 'message');
    const interrupt = new Doorbell(shared.interrupt);
    serve(openDevice(rings), chains, new Doorbell(shared.kick), interrupt);
    assert.deepEqual(await ended, [0]);
    assert.ok(interrupt.rung > 0 && interrupt.rung <= chains);
  } finally {
    await worker.terminate();
  }
}

if (isMainThread) {
  for (const kind of ringKinds) {
    describe(`both halves of a queue on two threads, ${kind.name}`, () => {
      for (const eventIdx of [false, true]) {
        const setting = `event-idx ${eventIdx ? 'on' : 'off'}`;
        it(`exchange chains and wake each other (${setting})`, () => run(kind, eventIdx, 70_000));
      }
    });
  }
} else {
  drive(workerData as Shared);
}
