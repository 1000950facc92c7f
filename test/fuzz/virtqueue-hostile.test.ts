import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { limits } from '../../src/kit/limits.ts';
import type { Access, Lease, TranslateFault } from '../../src/ports/memory.ts';
import { feature } from '../../src/virtio/features.ts';
import { type Chain, QueueFault, type QueueSetup } from '../../src/virtio/queue.ts';
import { openDeviceQueue } from '../../src/virtio/rings.ts';
import { splitRingBytes } from '../../src/virtio/split/ring.ts';
import { writeU16, writeU32 } from '../../src/wire/bytes.ts';
import { TestArea, TestMemory } from '../support/virtqueue-memory.ts';
import { deviceReasons, type OracleState, type Prediction, predictPop } from '../support/virtqueue-oracle.ts';
import { makeRings, Prng, RING_AREA, type Rings } from '../support/virtqueue-pair.ts';

const DATA = 2;
const READ_ONLY = 3;
const SCATTERED = 4;
const HUGE = 9;
/** More than any descriptor table: nothing is really there to read. */
const HUGE_MIN_BYTES = 0x10000;
const DATA_BYTES = 1024;
const TABLES_AT = 512;
const TABLES = 4;
const TABLE_ENTRIES = 8;

/** Adds an area of 2^33 bytes of which nothing is really there, and lets the guest act while a chain is read. */
class HostileMemory extends TestMemory {
  onTranslate: (() => void) | undefined;
  readonly #nothing = new Uint8Array(1);

  override translate(
    hi: number,
    lo: number,
    length: number,
    access: Access,
    out: Uint8Array[],
  ): Lease | TranslateFault {
    this.onTranslate?.();
    if (hi !== HUGE << 16 || length < HUGE_MIN_BYTES) return super.translate(hi, lo, length, access, out);
    out.push(this.#nothing);
    this.openLeases += 1;
    return {
      release: () => {
        this.openLeases -= 1;
      },
    };
  }
}

interface World extends Rings {
  readonly memory: HostileMemory;
  readonly random: Prng;
}

function makeWorld(size: number, random: Prng): World {
  const base = makeRings(size, { dataBytes: DATA_BYTES });
  const memory = new HostileMemory();
  memory.add(base.rings);
  memory.add(base.data);
  memory.add(new TestArea(READ_ONLY, 256, { access: ['read'] }));
  memory.add(new TestArea(SCATTERED, 300, { pieceBytes: 37 }));
  return { ...base, memory, random };
}

function writeDesc(to: Uint8Array, at: number, area: number, offset: number, len: number, flags: number, next: number) {
  writeU32(to, at, offset);
  writeU32(to, at + 4, area << 16);
  writeU32(to, at + 8, len);
  writeU16(to, at + 12, flags);
  writeU16(to, at + 14, next);
}

/** Writes valid descriptors at the places `at(0)`, `at(1)` ... */
function writeBuffers(world: World, to: Uint8Array, entries: readonly number[], base: number, tail: boolean): void {
  const { random } = world;
  const readable = random.below(entries.length + 1);
  for (const [i, entry] of entries.entries()) {
    const write = i >= readable;
    const area = write ? random.pick([DATA, SCATTERED]) : random.pick([DATA, READ_ONLY, SCATTERED]);
    const more = i + 1 < entries.length || tail;
    const next = i + 1 < entries.length ? entries[i + 1]! : entries.length;
    const flags = (more ? 1 : 0) | (write ? 2 : 0);
    const length = random.chance(0.05) ? 0 : 1 + random.below(48);
    writeDesc(to, base + entry * 16, area, random.below(200), length, flags, more ? next : random.below(4));
  }
}

/** Fills the rings with valid chains, as a good driver would. */
function writeValid(world: World, indirect: boolean): void {
  const { random, setup, driverSetup, data } = world;
  const { desc, driver } = driverSetup.memory;
  const free = Array.from({ length: setup.size }, (_, i) => i);
  for (let i = free.length - 1; i > 0; i--) {
    const j = random.below(i + 1);
    [free[i], free[j]] = [free[j]!, free[i]!];
  }
  let chains = 0;
  while (free.length > 0 && chains < TABLES && (chains === 0 || random.chance(0.7))) {
    const entries = free.splice(0, 1 + random.below(Math.min(4, free.length)));
    writeU16(driver, 4 + 2 * chains, entries[0]!);
    const useTable = indirect && random.chance(0.5);
    const direct = useTable ? entries.slice(0, -1) : entries;
    writeBuffers(world, desc, direct, 0, false);
    if (useTable) {
      const last = entries.at(-1)!;
      // Descriptors before a table stay readable, so that the order holds whatever the table starts with.
      for (const [i, entry] of direct.entries()) writeDesc(desc, entry * 16, DATA, 8 * i, 8, 1, entries[i + 1]!);
      const count = 1 + random.below(TABLE_ENTRIES);
      const at = TABLES_AT + chains * TABLE_ENTRIES * 16;
      const inside = Array.from({ length: count }, (_, i) => i);
      writeBuffers(world, data.bytes, inside, at, false);
      writeDesc(desc, last * 16, DATA, at, count * 16, 4 | (random.chance(0.2) ? 2 : 0), 0);
    }
    chains += 1;
  }
  writeU16(driver, 2, chains);
}

function mutate(world: World): void {
  const { random, setup, driverSetup, data } = world;
  const { desc, driver } = driverSetup.memory;
  const inTable = random.chance(0.3);
  const where = inTable ? data.bytes : desc;
  const at = inTable ? TABLES_AT + random.below(TABLES * TABLE_ENTRIES) * 16 : random.below(setup.size) * 16;
  const u16 = (offset: number, ...values: number[]): void => writeU16(where, at + offset, random.pick(values));
  const u32 = (offset: number, ...values: number[]): void => writeU32(where, at + offset, random.pick(values));
  const mutations: ReadonlyArray<() => void> = [
    () => u16(14, 0, 1, random.below(setup.size), setup.size, 7, 0xffff),
    () => u16(12, random.below(8)),
    () => u16(12, random.u32()),
    () => u32(8, 0, 1, 15, 17, 24, 64, 300, 0xffff_ffff, 0x8000_0000, random.u32()),
    () => u32(0, 0, 255, 299, DATA_BYTES - 1, DATA_BYTES, 0xffff_ffff, random.u32()),
    () => u32(4, random.u32(), ...[0, 1, 2, 3, 4, 5, HUGE, 0x7fff, 0xffff].map((area) => area << 16)),
    () => u32(4, random.u32()),
    () => writeU16(driver, 2, random.pick([0, setup.size, setup.size + 1, 0xffff, 0x8000, random.u32()])),
    () => writeU16(driver, 4 + 2 * random.below(setup.size), random.pick([0, 0, setup.size, 0xffff, random.u32()])),
    () => {
      // Two huge buffers in a row: each is fine, together they are too long.
      writeDesc(where, at, HUGE, 0, 0xffff_fff0, 1, random.below(setup.size));
      writeDesc(where, random.below(setup.size) * 16, HUGE, 0, 0x10000, 0, 0);
    },
    () => writeDesc(where, at, DATA, TABLES_AT, 16 * random.pick([1, 2, limits.chainDescriptorsMax + 1]), 4, 0),
    () => {
      const bytes = random.pick([world.rings.bytes, data.bytes]);
      for (let n = random.below(6); n >= 0; n--) bytes[random.below(bytes.length)] = random.u32();
    },
  ];
  random.pick(mutations)();
}

function fillWith(world: World, random: Prng): void {
  for (const area of [world.rings, world.data]) for (let i = 0; i < area.size; i++) area.bytes[i] = random.u32();
}

function assertInside(memory: TestMemory, chain: Chain): void {
  for (const [parts, bytes] of [
    [chain.readable, chain.readableBytes],
    [chain.writable, chain.writableBytes],
  ] as const) {
    let sum = 0;
    for (const part of parts) {
      assert.ok(part.length > 0, 'no empty segment');
      sum += part.length;
      if (part.length === 1 && part.buffer.byteLength === 1) return;
      const inside = [...memory.areas.values()].some((area) =>
        area.pieces.some(
          (piece) =>
            piece.buffer === part.buffer &&
            part.byteOffset >= piece.byteOffset &&
            part.byteOffset + part.length <= piece.byteOffset + piece.length,
        ),
      );
      assert.ok(inside, 'a segment lies in an area');
    }
    assert.equal(sum, bytes);
  }
}

function assertSame(expected: Prediction, actual: Chain | QueueFault | undefined): void {
  if (actual === undefined) assert.equal(expected.kind, 'none');
  else if (actual instanceof QueueFault) {
    assert.deepEqual([expected.kind, expected.kind === 'fault' ? expected.reason : ''], ['fault', actual.reason]);
  } else {
    assert.equal(expected.kind, 'chain', expected.kind === 'fault' ? `accepted in spite of ${expected.reason}` : '');
    if (expected.kind !== 'chain') return;
    assert.equal(actual.head, expected.head);
    assert.equal(actual.readableBytes, expected.readableBytes);
    assert.equal(actual.writableBytes, expected.writableBytes);
    assert.equal(actual.readable.length > 0, expected.readableBytes > 0);
  }
}

/** One hostile guest from set-up to reset. */
function oneGuest(world: World, count: (outcome: string) => void): void {
  const { random, memory, rings, data } = world;
  const bits = [
    ...(random.chance(0.7) ? [feature.INDIRECT_DESC] : []),
    ...(random.chance(0.5) ? [feature.EVENT_IDX] : []),
  ];
  const setup: QueueSetup = { ...world.setup, features: world.setup.features.with(...bits) };
  const indirect = setup.features.has(feature.INDIRECT_DESC);
  rings.bytes.fill(0);
  data.bytes.fill(0);
  const valid = random.chance(0.2);
  if (!valid && random.chance(0.05)) fillWith(world, random);
  else writeValid(world, indirect || (!valid && random.chance(0.1)));
  if (!valid) {
    if (random.chance(0.1)) writeU16(world.driverSetup.memory.driver, 2, random.below(setup.size + 1));
    for (let n = random.below(4); n >= 0; n--) mutate(world);
  }

  const queue = openDeviceQueue(setup, memory);
  assert.ok(!(queue instanceof QueueFault));
  const held: Chain[] = [];
  const owned = new Set<number>();
  const oracle: OracleState = {
    memory,
    setup,
    indirect,
    next: 0,
    known: 0,
    owned,
    hugeArea: HUGE,
    hugeMinBytes: HUGE_MIN_BYTES,
  };
  for (let turns = 0; turns < 3 * setup.size + 4; turns++) {
    const expected = predictPop(oracle);
    const actual = queue.pop();
    count(expected.kind === 'fault' ? expected.reason : expected.kind);
    assertSame(expected, actual);
    if (valid) assert.ok(!(actual instanceof QueueFault), 'a good driver is never refused');
    if (actual instanceof QueueFault) {
      assert.equal(queue.pop(), actual, 'a fault is final');
      break;
    }
    if (actual === undefined && random.chance(0.5)) break;
    if (actual !== undefined) {
      assertInside(memory, actual);
      oracle.next += 1;
      owned.add(actual.head);
      held.push(actual);
    }
    if (held.length > 0 && random.chance(0.5)) {
      const chain = held.splice(random.below(held.length), 1)[0]!;
      if (!valid) for (const part of chain.writable) part.fill(random.u32());
      assert.equal(queue.push(chain, chain.writableBytes), undefined);
      queue.publish();
      queue.needsInterrupt();
      owned.delete(chain.head);
    }
    if (!valid && random.chance(0.2)) mutate(world);
    if (random.chance(0.2)) queue.enableKicks();
  }
  assert.equal(queue.inFlight, held.length);
  for (const chain of held) queue.abandon(chain);
  queue.close();
  assert.equal(memory.openLeases, 0, 'no lease is left');
}

describe('hostile drivers', () => {
  it('get exactly the verdict of a naive reader, over 100,000 guests', () => {
    const random = new Prng(2024);
    const outcomes = new Map<string, number>();
    const count = (outcome: string): void => void outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
    const worlds = [1, 2, 4, 8, 16].map((size) => makeWorld(size, random));
    for (let guest = 0; guest < 100_000; guest++) oneGuest(random.pick(worlds), count);
    for (const world of worlds) world.memory.assertCanaries();
    for (const reason of ['chain', 'none', ...deviceReasons]) {
      assert.ok((outcomes.get(reason) ?? 0) > 200, `${reason}: ${outcomes.get(reason)} times`);
    }
    assert.ok(outcomes.get('chain')! > 50_000);
  });

  it('cannot break out by changing memory while a chain is read', () => {
    const random = new Prng(99);
    const world = makeWorld(8, random);
    let chains = 0;
    let faults = 0;
    for (let guest = 0; guest < 20_000; guest++) {
      const setup = { ...world.setup, features: world.setup.features.with(feature.INDIRECT_DESC) };
      world.rings.bytes.fill(0);
      world.memory.onTranslate = undefined;
      writeValid(world, true);
      const queue = openDeviceQueue(setup, world.memory);
      assert.ok(!(queue instanceof QueueFault));
      world.memory.onTranslate = () => mutate(world);
      for (let turns = 0; turns < 8; turns++) {
        const chain = queue.pop();
        if (chain === undefined) break;
        if (chain instanceof QueueFault) {
          faults += 1;
          break;
        }
        chains += 1;
        assertInside(world.memory, chain);
        for (const part of chain.writable) part.fill(random.u32());
        queue.push(chain, 0);
        queue.publish();
      }
      queue.close();
      assert.equal(world.memory.openLeases, 0);
    }
    world.memory.assertCanaries();
    assert.ok(chains > 5000 && faults > 5000, `${chains} chains, ${faults} faults`);
  });

  it('cannot open a queue that does not lie in one piece of memory', () => {
    const random = new Prng(5);
    const world = makeWorld(8, random);
    const outcomes = new Map<string, number>();
    for (let guest = 0; guest < 20_000; guest++) {
      const size = random.chance(0.8) ? 8 : random.pick([0, 1, 2, 3, 16, 1024, 2048, 65535, 0x8000_0000, random.u32()]);
      const anywhere = (): bigint =>
        (BigInt(random.pick([RING_AREA, RING_AREA, DATA, READ_ONLY, SCATTERED, 7, 0xffff])) << 48n) |
        BigInt(random.chance(0.8) ? random.below(160) * 4 : random.u32());
      const setup: QueueSetup = {
        ...world.setup,
        size,
        descAddr: random.chance(0.6) ? world.setup.descAddr : anywhere(),
        driverAddr: random.chance(0.6) ? world.setup.driverAddr : anywhere() | BigInt(random.below(2)),
        deviceAddr: random.chance(0.6) ? world.setup.deviceAddr : anywhere(),
      };
      const queue = openDeviceQueue(setup, world.memory);
      const reason = queue instanceof QueueFault ? queue.reason : 'open';
      assert.equal(reason, naiveOpen(world.memory, setup));
      outcomes.set(reason, (outcomes.get(reason) ?? 0) + 1);
      if (!(queue instanceof QueueFault)) queue.close();
      assert.equal(world.memory.openLeases, 0);
    }
    for (const reason of ['open', 'queue-size', 'ring-alignment', 'ring-memory']) {
      assert.ok((outcomes.get(reason) ?? 0) > 500, `${reason}: ${outcomes.get(reason)}`);
    }
    world.memory.assertCanaries();
  });
});

/** The verdict on a set-up, part by part. */
function naiveOpen(memory: TestMemory, setup: QueueSetup): string {
  const sizes = Array.from({ length: 11 }, (_, i) => 2 ** i);
  if (!sizes.includes(setup.size)) return 'queue-size';
  const bytes = splitRingBytes(setup.size);
  const verdicts = [
    [setup.descAddr, bytes.desc, 16n, 'read'] as const,
    [setup.driverAddr, bytes.driver, 2n, 'read'] as const,
    [setup.deviceAddr, bytes.device, 4n, 'write'] as const,
  ].map(([address, length, align, access]) => {
    if (address % align !== 0n) return 'ring-alignment';
    const area = memory.areas.get(Number(address >> 48n));
    const offset = Number(address & 0xffff_ffff_ffffn);
    if (area === undefined || offset + length > area.size || !area.access.includes(access)) return 'ring-memory';
    const [from, to] = [Math.floor(offset / area.pieceBytes), Math.floor((offset + length - 1) / area.pieceBytes)];
    if (from !== to) return 'ring-memory';
    const host = area.pieces[from]!.byteOffset + (offset % area.pieceBytes);
    return host % Math.min(4, Number(align)) === 0 ? 'open' : 'ring-memory';
  });
  return verdicts.find((verdict) => verdict !== 'open') ?? 'open';
}
