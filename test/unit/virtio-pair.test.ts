import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { type Chain, type IndirectTable, QueueFault } from '../../src/virtio/queue.ts';
import { readU32, writeU32 } from '../../src/wire/bytes.ts';
import {
  dataRange,
  expectValue,
  makePair,
  type Pair,
  Prng,
  type RingKind,
  ringKinds,
} from '../support/virtqueue-pair.ts';

interface World extends Pair {
  readonly random: Prng;
  readonly indirect: boolean;
  readonly slots: number[];
  /** Token -> what the driver expects back. */
  readonly outstanding: Map<number, { slot: number; id: number; writable: number }>;
  readonly executing: Chain[];
  readonly tables: IndirectTable[];
  driverAsleep: boolean;
  deviceAsleep: boolean;
  nextId: number;
  completed: number;
  kicks: number;
  kicksSaved: number;
  interrupts: number;
  interruptsSaved: number;
  sleeps: number;
}

const SLOT_BYTES = 256;
/** Room in each slot for an indirect table, behind the buffers. */
const TABLE_AT = 128;

/** Bytes of the readable part: the id, then filler. The device answers the id + 1 at the start of the writable part. */
function makeWorld(kind: RingKind, seed: number): World {
  const random = new Prng(seed);
  const power = random.below(9);
  const size = kind.layout === 'packed' && random.chance(0.7) ? 1 + random.below(1 << power) : 1 << power;
  const indirect = random.chance(0.5);
  const slots = Array.from({ length: size }, (_, index) => index);
  const pair = makePair(size, {
    ...kind,
    indirect,
    eventIdx: random.chance(0.5),
    dataBytes: size * SLOT_BYTES,
    data: random.chance(0.3) ? { pieceBytes: 24 } : {},
  });
  const scattered = pair.data.pieces.length > 1;
  return {
    ...pair,
    random,
    indirect: indirect && !scattered,
    slots,
    outstanding: new Map(),
    executing: [],
    tables: scattered
      ? []
      : slots.map((slot) => {
          const at = slot * SLOT_BYTES + TABLE_AT;
          const { hi, lo } = dataRange(at, 1);
          return { words: new Uint32Array(pair.data.bytes.buffer, pair.data.bytes.byteOffset + at, 32), hi, lo };
        }),
    driverAsleep: false,
    deviceAsleep: false,
    nextId: 0,
    completed: 0,
    kicks: 0,
    kicksSaved: 0,
    interrupts: 0,
    interruptsSaved: 0,
    sleeps: 0,
  };
}

function poke(world: World, offset: number, value: number): void {
  const word = new Uint8Array(4);
  writeU32(word, 0, value);
  for (let i = 0; i < 4; i++) {
    const at = offset + i;
    world.data.pieces[Math.floor(at / world.data.pieceBytes)]![at % world.data.pieceBytes] = word[i]!;
  }
}

function peek(world: World, offset: number): number {
  const word = Uint8Array.from({ length: 4 }, (_, i) => {
    const at = offset + i;
    return world.data.pieces[Math.floor(at / world.data.pieceBytes)]![at % world.data.pieceBytes]!;
  });
  return readU32(word, 0);
}

function gather(parts: readonly Uint8Array[]): Uint8Array {
  return Uint8Array.from(parts.flatMap((part) => [...part]));
}

function driverAdds(world: World): void {
  const { random, driver } = world;
  for (let burst = 1 + random.below(8); burst > 0 && world.slots.length > 0; burst--) {
    const slot = world.slots[world.slots.length - 1]!;
    const base = slot * SLOT_BYTES;
    const id = world.nextId;
    // The id is cut in two at a random place, so that buffers have odd lengths.
    const cut = random.below(4);
    const readable = cut === 0 ? [dataRange(base, 8)] : [dataRange(base, cut), dataRange(base + cut, 8 - cut)];
    const room = random.below(4) * 4;
    const writable = room === 0 ? [] : [dataRange(base + 32, 4), ...(room > 4 ? [dataRange(base + 64, room - 4)] : [])];
    const table = world.indirect && random.chance(0.6) ? { indirect: world.tables[slot]! } : {};
    if (table.indirect === undefined && readable.length + writable.length > driver.size) continue;
    poke(world, base, id);
    poke(world, base + 4, ~id >>> 0);
    poke(world, base + 32, 0);
    const free = driver.freeDescriptors;
    const token = driver.add(readable, writable, table);
    if (token === undefined) {
      assert.ok(free < readable.length + writable.length, 'only a lack of descriptors refuses a chain');
      break;
    }
    assert.ok(!world.outstanding.has(token), 'a token is unique');
    world.slots.pop();
    world.outstanding.set(token, { slot, id, writable: room });
    world.nextId += 1;
  }
  const wanted = driver.kick();
  if (wanted) world.kicks += 1;
  else world.kicksSaved += 1;
  if (wanted) world.deviceAsleep = false;
}

function driverTakes(world: World): void {
  for (let left = 1 + world.random.below(16); left > 0; left--) {
    const used = world.driver.next();
    if (used === undefined) return;
    const { token, writtenBytes } = expectValue(used);
    const expected = world.outstanding.get(token);
    assert.ok(expected !== undefined, 'the token is outstanding');
    assert.equal(writtenBytes, expected.writable === 0 ? 0 : 4);
    if (writtenBytes > 0) assert.equal(peek(world, expected.slot * SLOT_BYTES + 32), (expected.id + 1) >>> 0);
    world.outstanding.delete(token);
    world.slots.push(expected.slot);
    world.completed += 1;
  }
}

function deviceTakes(world: World): boolean {
  let any = false;
  for (let left = 1 + world.random.below(16); left > 0; left--) {
    const chain = world.device.pop();
    if (chain === undefined) break;
    any = true;
    world.executing.push(expectValue(chain));
  }
  return any;
}

function deviceCompletes(world: World): void {
  const { random, device, executing } = world;
  for (let left = random.below(executing.length + 1); left > 0; left--) {
    const chain = executing.splice(random.below(executing.length), 1)[0]!;
    const request = gather(chain.readable);
    assert.equal(request.length, chain.readableBytes);
    assert.equal(readU32(request, 4), ~readU32(request, 0) >>> 0, 'the request arrived whole');
    const answer = new Uint8Array(4);
    writeU32(answer, 0, readU32(request, 0) + 1);
    let at = 0;
    for (const part of chain.writable) for (let i = 0; i < part.length && at < 4; i++) part[i] = answer[at++]!;
    assert.equal(device.push(chain, chain.writableBytes === 0 ? 0 : 4), undefined);
  }
  device.publish();
  const wanted = device.needsInterrupt();
  if (wanted) world.interrupts += 1;
  else world.interruptsSaved += 1;
  if (wanted) world.driverAsleep = false;
}

function step(world: World): void {
  const { random, driver, device } = world;
  const canDriver = !world.driverAsleep;
  const canDevice = !world.deviceAsleep || world.executing.length > 0;
  assert.ok(canDriver || canDevice, 'a wake-up was lost: both sides sleep');
  if (canDriver && (!canDevice || random.chance(0.5))) {
    if (random.chance(0.3)) driver.suppressInterrupts();
    if (random.chance(0.6)) driverAdds(world);
    driverTakes(world);
    if (random.chance(0.4) && world.outstanding.size > 0 && !driver.enableInterrupts()) {
      world.driverAsleep = true;
      world.sleeps += 1;
    }
    return;
  }
  if (!world.deviceAsleep) {
    if (random.chance(0.3)) device.suppressKicks();
    if (!deviceTakes(world) && random.chance(0.7) && !device.enableKicks()) world.deviceAsleep = true;
  }
  if (random.chance(0.7)) deviceCompletes(world);
}

function run(world: World, chains: number): void {
  while (world.completed < chains) step(world);
  // Everything that is under way comes to an end without another chain being added.
  while (world.outstanding.size > 0) {
    driverTakes(world);
    deviceTakes(world);
    deviceCompletes(world);
  }
  assert.equal(world.device.inFlight, 0);
  assert.equal(world.driver.freeDescriptors, world.driver.size);
  world.device.close();
  assert.equal(world.memory.openLeases, 0);
  world.memory.assertCanaries();
}

function wrapAround(kind: RingKind, eventIdx: boolean): void {
  const size = kind.layout === 'packed' ? 61 : 64;
  const { driver, device, memory } = makePair(size, { ...kind, eventIdx });
  const random = new Prng(7);
  const executing: Chain[] = [];
  const request = [dataRange(0, 16)];
  const answer = [dataRange(64, 8)];
  let done = 0;
  let asleep = false;
  while (done < 4 * 65536 - 100) {
    while (random.chance(0.9) && driver.add(request, answer) !== undefined);
    if (driver.kick()) asleep = false;
    if (!asleep) {
      for (let chain = device.pop(); chain !== undefined; chain = device.pop()) executing.push(expectValue(chain));
      asleep = !device.enableKicks();
    }
    for (let left = random.below(executing.length + 1); left > 0; left--) {
      const last = executing.pop()!;
      const at = random.below(executing.length + 1);
      const chosen = executing[at] ?? last;
      if (chosen !== last) executing[at] = last;
      device.push(chosen, 8);
    }
    device.publish();
    const quiet = !device.needsInterrupt();
    const before = done;
    for (let used = driver.next(); used !== undefined; used = driver.next()) {
      assert.ok(!(used instanceof QueueFault));
      done += 1;
    }
    if (done > before) assert.ok(!quiet, 'a driver that waits is told');
    assert.equal(driver.enableInterrupts(), false);
  }
  for (const chain of executing) device.abandon(chain);
  device.close();
  assert.equal(memory.openLeases, 0);
}

for (const kind of ringKinds) {
  describe(`both halves of a queue, ${kind.name}`, () => {
    it('agree under any interleaving and never lose a wake-up', () => {
      const totals = { kicks: 0, kicksSaved: 0, interrupts: 0, interruptsSaved: 0, sleeps: 0 };
      for (let seed = 1; seed <= 120; seed++) {
        const world = makeWorld(kind, seed);
        run(world, 300);
        for (const key of Object.keys(totals) as Array<keyof typeof totals>) totals[key] += world[key];
      }
      for (const [name, count] of Object.entries(totals)) assert.ok(count > 500, `${name}: ${count}`);
    });

    for (const eventIdx of [false, true]) {
      it(`wrap their indices (event-idx ${eventIdx ? 'on' : 'off'})`, () => wrapAround(kind, eventIdx));
    }
  });
}
