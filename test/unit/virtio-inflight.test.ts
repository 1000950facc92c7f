import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { InflightLog, inflightBytes } from '../../src/virtio/inflight.ts';
import { type Chain, type DeviceQueue, QueueFault } from '../../src/virtio/queue.ts';
import { openSplitDeviceQueue } from '../../src/virtio/split/device-queue.ts';
import { openSplitDriverQueue, type SplitDriverQueue } from '../../src/virtio/split/driver-queue.ts';
import { readU16, readU32, readU64, writeU16, writeU32 } from '../../src/wire/bytes.ts';
import {
  dataRange,
  expectValue,
  makePair,
  makeRings,
  openDevice,
  Prng,
  type Rings,
} from '../support/virtqueue-pair.ts';

class Killed extends Error {}

/** A device process that can be killed after any store, a driver that lives on, and the log between two lives. */
class Scene {
  readonly size: number;
  readonly rings: Rings;
  readonly logBytes: Uint8Array;
  readonly random: Prng;
  readonly total: number;
  driver: SplitDriverQueue;
  device!: DeviceQueue;
  /** Stores until the process is killed. */
  readonly killAfter: number[];
  storesLeft: number;
  executing: Chain[] = [];
  /** The next ids that a pop of this life must give, when it is a life after a kill. */
  expected: number[] = [];
  added = 0;
  readonly idOfToken = new Map<number, number>();
  readonly completed = new Set<number>();
  readonly taken = new Set<number>();
  kills = 0;
  executedTwice = 0;
  largestBatch = 0;

  constructor(seed: number, total: number, killAfter: readonly number[]) {
    this.random = new Prng(seed);
    this.size = 1 << (1 + this.random.below(3));
    this.total = total;
    this.rings = makeRings(this.size, { eventIdx: true });
    this.driver = openSplitDriverQueue(this.rings.driverSetup);
    this.logBytes = new Uint8Array(inflightBytes(this.size)).fill(this.random.chance(0.5) ? 0 : 0xff);
    this.killAfter = [...killAfter];
    this.storesLeft = this.killAfter.shift() ?? Number.POSITIVE_INFINITY;
  }

  log(): InflightLog {
    return new InflightLog(this.logBytes, this.size, () => {
      this.storesLeft -= 1;
      if (this.storesLeft === 0) throw new Killed();
    });
  }

  /** Ids that the driver can see as completed, whether it has looked or not. */
  published(): Set<number> {
    const { device } = this.rings.driverSetup.memory;
    const ids = new Set(this.completed);
    const from = this.driver.save().usedNext;
    const count = (readU16(device, 2) - from) & 0xffff;
    assert.ok(count <= this.size);
    for (let i = 0; i < count; i++) {
      const at = 4 + 8 * ((from + i) & (this.size - 1));
      const id = this.idOfToken.get(readU32(device, at));
      assert.ok(id !== undefined && !ids.has(id), 'a chain is published once');
      ids.add(id);
    }
    return ids;
  }

  driverTurn(): void {
    const { random, driver } = this;
    while (this.added < this.total && random.chance(0.7)) {
      const id = this.added;
      const token = driver.add([dataRange(0, 1 + id)], [dataRange(4096, 4)]);
      if (token === undefined) break;
      // The length of the readable part tells the id.
      assert.ok(!this.idOfToken.has(token));
      this.idOfToken.set(token, id);
      this.added += 1;
    }
    driver.kick();
    for (let used = driver.next(); used !== undefined; used = driver.next()) {
      const { token, writtenBytes } = expectValue(used);
      const id = this.idOfToken.get(token);
      assert.ok(id !== undefined && !this.completed.has(id), 'completed once');
      assert.equal(writtenBytes, id % 5);
      this.completed.add(id);
      this.idOfToken.delete(token);
      if (random.chance(0.3)) break;
    }
  }

  deviceTurn(): void {
    const { random, device } = this;
    for (let left = random.below(4); left > 0; left--) {
      const before = this.published();
      const chain = device.pop();
      if (chain === undefined) break;
      const taken = expectValue(chain);
      const id = taken.readableBytes - 1;
      assert.ok(!before.has(id), 'what was published is not executed again');
      const expected = this.expected.shift();
      if (expected !== undefined) assert.equal(id, expected, 'chains in flight come first, in their order');
      if (this.taken.has(id)) this.executedTwice += 1;
      this.taken.add(id);
      this.executing.push(taken);
    }
    let batch = 0;
    while (this.executing.length > 0 && random.chance(0.6)) {
      const chain = this.executing.splice(random.below(this.executing.length), 1)[0]!;
      assert.equal(device.push(chain, (chain.readableBytes - 1) % 5), undefined);
      batch += 1;
    }
    this.largestBatch = Math.max(this.largestBatch, batch);
    if (random.chance(0.7)) device.publish();
  }

  open(): void {
    const { rings } = this;
    this.device = openDevice(rings, this.log());
  }

  killed(): void {
    this.kills += 1;
    this.storesLeft = this.killAfter.shift() ?? Number.POSITIVE_INFINITY;
    // The kernel takes back what the process held.
    this.rings.memory.openLeases = 0;
    this.executing = [];
    // Chains are taken in the order of their ids, so those below the last one taken and unpublished are in flight.
    const published = this.published();
    this.expected = [];
    for (let id = 0; id < this.added; id++) if (!published.has(id)) this.expected.push(id);
    if (this.random.chance(0.5)) this.driver = openSplitDriverQueue(this.rings.driverSetup, this.driver.save());
  }

  run(): void {
    let open = false;
    while (this.completed.size < this.total) {
      try {
        if (!open) this.open();
        open = true;
        this.driverTurn();
        this.deviceTurn();
      } catch (error) {
        if (!(error instanceof Killed)) throw error;
        open = false;
        this.killed();
      }
    }
    this.device.publish();
    this.device.close();
    assert.equal(this.device.inFlight, 0);
    assert.equal(this.rings.memory.openLeases, 0);
    assert.deepEqual(new InflightLog(this.logBytes, this.size).recover(this.driver.save().usedNext), []);
  }
}

/** 1, 2, 3 ... until a run needs no kill at that point. @returns totals over the runs */
function killEverywhere(seed: number, then: readonly number[]): { kills: number; twice: number; batch: number } {
  const sum = { kills: 0, twice: 0, batch: 0 };
  for (let at = 1; ; at++) {
    const scene = new Scene(seed, 20, [at, ...then]);
    scene.run();
    sum.kills += scene.kills;
    sum.twice += scene.executedTwice;
    sum.batch = Math.max(sum.batch, scene.largestBatch);
    if (scene.kills === 0) return sum;
    assert.ok(at < 10_000);
  }
}

describe('in-flight log', () => {
  it('completes every chain once, whichever store a kill follows', () => {
    let kills = 0;
    let twice = 0;
    let batch = 0;
    for (let seed = 1; seed <= 20; seed++) {
      const sum = killEverywhere(seed, []);
      kills += sum.kills;
      twice += sum.twice;
      batch = Math.max(batch, sum.batch);
    }
    assert.ok(kills > 3000, `${kills} kills`);
    assert.ok(twice > 1000, `${twice} chains continued`);
    assert.ok(batch >= 4, `batches up to ${batch}`);
  });

  it('stands further kills, also during recovery', () => {
    for (let again = 1; again <= 12; again++) {
      for (let seed = 40; seed <= 43; seed++) killEverywhere(seed, [again, again, 1, 2, 3, again]);
    }
  });

  it('has the layout of the vhost-user protocol', () => {
    const rings = makeRings(4);
    const driver = openSplitDriverQueue(rings.driverSetup);
    const bytes = new Uint8Array(inflightBytes(4)).fill(0xaa);
    assert.equal(bytes.length, 16 + 4 * 16);
    const log = new InflightLog(bytes, 4);
    assert.equal(log.resumable, false);
    const device = openDevice(rings, log);
    assert.equal(log.resumable, true);
    assert.deepEqual([readU64(bytes, 0), readU16(bytes, 8), readU16(bytes, 10)], [0n, 1, 4]);
    for (let i = 0; i < 3; i++) driver.add([dataRange(i, 1)], []);
    driver.kick();
    const chains = [0, 1, 2].map(() => expectValue(device.pop()));
    assert.deepEqual(
      [0, 1, 2, 3].map((i) => bytes[16 + i * 16]),
      [1, 1, 1, 0],
    );
    assert.deepEqual(
      [0, 1, 2].map((i) => readU64(bytes, 16 + i * 16 + 8)),
      [0n, 1n, 2n],
    );
    device.push(chains[2]!, 0);
    device.push(chains[0]!, 0);
    assert.deepEqual([readU16(bytes, 12), readU16(bytes, 16 + 6), bytes[16], bytes[48]], [0, 2, 1, 1]);
    assert.equal(readU16(bytes, 14), 0);
    device.publish();
    assert.deepEqual([readU16(bytes, 14), bytes[16], bytes[32], bytes[48]], [2, 0, 1, 0]);
    device.abandon(chains[1]!);
    assert.equal(bytes[32], 1, 'an abandoned chain stays in the log');
    log.reset();
    assert.equal(log.resumable, false);
  });

  it('says that an interrupt is due after a restart', () => {
    const rings = makeRings(4, { eventIdx: true });
    const driver = openSplitDriverQueue(rings.driverSetup);
    const bytes = new Uint8Array(inflightBytes(4));
    const first = openDevice(rings, new InflightLog(bytes, 4));
    driver.add([dataRange(0, 1)], []);
    driver.kick();
    assert.equal(driver.enableInterrupts(), false);
    first.push(expectValue(first.pop()), 0);
    first.publish();
    const second = openDevice(rings, new InflightLog(bytes, 4));
    assert.equal(second.needsInterrupt(), true);
    assert.equal(second.needsInterrupt(), false);
    assert.equal(second.pop(), undefined);
  });

  it('reads the descriptors of a chain in flight again, and judges them again', () => {
    const { driver, memory, setup, rings, driverSetup } = makePair(4);
    const bytes = new Uint8Array(inflightBytes(4));
    const first = openDevice({ memory, setup } as Rings, new InflightLog(bytes, 4));
    driver.add([dataRange(0, 1)], []);
    driver.kick();
    first.abandon(expectValue(first.pop()));
    first.close();
    writeU32(rings.bytes, 4, 0x7fff_0000);
    // The driver may also change the available ring: it is not read for chains in flight.
    writeU16(driverSetup.memory.driver, 4, 3);
    const second = openDevice({ memory, setup } as Rings, new InflightLog(bytes, 4));
    assert.equal(second.enableKicks(), true, 'a chain to continue counts as available');
    const fault = second.pop();
    assert.ok(fault instanceof QueueFault);
    assert.equal(fault.reason, 'address');
    second.close();
  });

  it('refuses to offer a head in flight again after a restart', () => {
    const { driver, memory, setup, driverSetup } = makePair(4);
    const bytes = new Uint8Array(inflightBytes(4));
    const first = openDevice({ memory, setup } as Rings, new InflightLog(bytes, 4));
    const head = driver.add([dataRange(0, 1)], []);
    driver.kick();
    expectValue(first.pop());
    const second = openDevice({ memory, setup } as Rings, new InflightLog(bytes, 4));
    expectValue(second.pop());
    writeU16(driverSetup.memory.driver, 4 + 2, head!);
    writeU16(driverSetup.memory.driver, 2, 2);
    const fault = second.pop();
    assert.ok(fault instanceof QueueFault);
    assert.equal(fault.reason, 'head-in-flight');
  });

  for (const [what, spoil] of [
    ['used.idx far ahead', (_log: Uint8Array, used: Uint8Array) => writeU16(used, 2, 9)],
    [
      'a list that leaves the table',
      (log: Uint8Array, used: Uint8Array) => {
        writeU16(log, 12, 77);
        writeU16(used, 2, 1);
      },
    ],
  ] as const) {
    it(`faults, without a lease, on ${what}`, () => {
      const rings = makeRings(4);
      const bytes = new Uint8Array(inflightBytes(4));
      openDevice(rings, new InflightLog(bytes, 4)).close();
      spoil(bytes, rings.driverSetup.memory.device);
      const fault = openSplitDeviceQueue(rings.setup, rings.memory, new InflightLog(bytes, 4));
      assert.ok(fault instanceof QueueFault);
      assert.equal(fault.reason, 'log-inconsistent');
      assert.equal(rings.memory.openLeases, 0);
    });
  }
});
