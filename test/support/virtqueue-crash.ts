import assert from 'node:assert/strict';
import { type InflightLog, inflightBytes, openInflightLog } from '../../src/virtio/inflight.ts';
import { PackedInflightLog } from '../../src/virtio/packed/inflight.ts';
import { isUsed, RingPosition } from '../../src/virtio/packed/ring.ts';
import type { Chain, DeviceQueue } from '../../src/virtio/queue.ts';
import { openDriverQueue, type RingDriverQueue } from '../../src/virtio/rings.ts';
import { readU16, readU32 } from '../../src/wire/bytes.ts';
import { dataRange, expectValue, makeRings, openDevice, Prng, type RingKind, type Rings } from './virtqueue-pair.ts';

class Killed extends Error {}

/** A device process that can be killed after any store, a driver that lives on, and the log between two lives. */
class Scene {
  readonly kind: RingKind;
  readonly size: number;
  readonly rings: Rings;
  readonly logBytes: Uint8Array;
  readonly random: Prng;
  readonly total: number;
  driver: RingDriverQueue;
  device!: DeviceQueue;
  /** Stores until the process is killed. */
  readonly killAfter: number[];
  storesLeft: number;
  executing: Chain[] = [];
  /** The next ids that a pop of this life must give, when it is a life after a kill. */
  expected: number[] = [];
  added = 0;
  readonly idOfToken = new Map<number, number>();
  /** Writable bytes by id. */
  readonly room = new Map<number, number>();
  readonly completed = new Set<number>();
  readonly taken = new Set<number>();
  kills = 0;
  executedTwice = 0;
  largestBatch = 0;

  constructor(kind: RingKind, seed: number, total: number, killAfter: readonly number[]) {
    this.kind = kind;
    this.random = new Prng(seed);
    this.size = kind.layout === 'packed' ? 2 + this.random.below(8) : 1 << (1 + this.random.below(3));
    this.total = total;
    this.rings = makeRings(this.size, { ...kind, eventIdx: true });
    this.driver = openDriverQueue(this.rings.driverSetup);
    this.logBytes = new Uint8Array(inflightBytes(kind.layout, this.size)).fill(this.random.chance(0.5) ? 0 : 0xff);
    this.killAfter = [...killAfter];
    this.storesLeft = this.killAfter.shift() ?? Number.POSITIVE_INFINITY;
  }

  log(): InflightLog {
    return openInflightLog(this.kind.layout, this.logBytes, this.size, () => {
      this.storesLeft -= 1;
      if (this.storesLeft === 0) throw new Killed();
    });
  }

  /** Ids that the driver can see as completed, whether it has looked or not. */
  published(): Set<number> {
    const ids = new Set(this.completed);
    for (const token of visibleTokens(this.rings, this.driver)) {
      const id = this.idOfToken.get(token);
      assert.ok(id !== undefined && !ids.has(id), 'a chain is published once');
      ids.add(id);
    }
    return ids;
  }

  driverTurn(): void {
    const { random, driver } = this;
    while (this.added < this.total && random.chance(0.7)) {
      const id = this.added;
      // The length of the readable part tells the id.
      const cut = this.size > 2 && id > 0 && random.chance(0.4) ? 1 : 0;
      const readable = cut === 0 ? [dataRange(0, 1 + id)] : [dataRange(0, cut), dataRange(cut, 1 + id - cut)];
      const room = random.chance(0.7) ? 4 : 0;
      const token = driver.add(readable, room === 0 ? [] : [dataRange(4096, room)]);
      if (token === undefined) break;
      assert.ok(!this.idOfToken.has(token));
      this.idOfToken.set(token, id);
      this.room.set(id, room);
      this.added += 1;
    }
    driver.kick();
    for (let used = driver.next(); used !== undefined; used = driver.next()) {
      const { token, writtenBytes } = expectValue(used);
      const id = this.idOfToken.get(token);
      assert.ok(id !== undefined && !this.completed.has(id), 'completed once');
      assert.equal(writtenBytes, Math.min(id % 5, this.room.get(id)!));
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
      assert.equal(device.push(chain, Math.min((chain.readableBytes - 1) % 5, chain.writableBytes)), undefined);
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
    if (this.random.chance(0.5)) this.driver = openDriverQueue(this.rings.driverSetup, this.driver.save());
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
    assert.equal(inFlight(openInflightLog(this.kind.layout, this.logBytes, this.size), this.driver), 0);
  }
}

/** Tokens of the completed chains that the driver will find, worked out from the ring. */
function visibleTokens({ driverSetup, setup }: Rings, driver: RingDriverQueue): number[] {
  const { desc, device } = driverSetup.memory;
  const state = driver.save();
  const tokens: number[] = [];
  if (state.layout === 'split') {
    const count = (readU16(device, 2) - state.usedNext) & 0xffff;
    assert.ok(count <= setup.size);
    for (let i = 0; i < count; i++) tokens.push(readU32(device, 4 + 8 * ((state.usedNext + i) & (setup.size - 1))));
    return tokens;
  }
  const at = new RingPosition(setup.size, state.used.index, state.used.wrap);
  while (isUsed(readU16(desc, at.index * 16 + 14), at.wrap)) {
    const token = readU16(desc, at.index * 16 + 12);
    assert.ok(tokens.length < setup.size && state.counts[token]! > 0);
    tokens.push(token);
    at.advance(state.counts[token]!);
  }
  return tokens;
}

/** Chains that a log holds after its queue was closed. */
function inFlight(log: InflightLog, driver: RingDriverQueue): number {
  const state = driver.save();
  if (log instanceof PackedInflightLog) {
    const found = log.recover(() => assert.fail('nothing is uncertain'));
    return 'inconsistent' in found ? assert.fail(found.inconsistent) : found.chains.length;
  }
  const found = log.recover(state.layout === 'split' ? state.usedNext : assert.fail());
  return Array.isArray(found) ? found.length : assert.fail(found.inconsistent);
}

/** 1, 2, 3 ... until a run needs no kill at that point. @returns totals over the runs */
export function killEverywhere(
  kind: RingKind,
  seed: number,
  then: readonly number[],
): { kills: number; twice: number; batch: number } {
  const sum = { kills: 0, twice: 0, batch: 0 };
  for (let at = 1; ; at++) {
    const scene = new Scene(kind, seed, 20, [at, ...then]);
    scene.run();
    sum.kills += scene.kills;
    sum.twice += scene.executedTwice;
    sum.batch = Math.max(sum.batch, scene.largestBatch);
    if (scene.kills === 0) return sum;
    assert.ok(at < 10_000);
  }
}
