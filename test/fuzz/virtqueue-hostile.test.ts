import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { limits } from '../../src/kit/limits.ts';
import { feature } from '../../src/virtio/features.ts';
import { ringAlign, ringBytes } from '../../src/virtio/geometry.ts';
import { type Chain, QueueFault, type QueueSetup } from '../../src/virtio/queue.ts';
import { openDeviceQueue } from '../../src/virtio/rings.ts';
import {
  announce,
  DATA,
  fillWith,
  HUGE,
  HUGE_MIN_BYTES,
  makeWorld,
  mutate,
  READ_ONLY,
  SCATTERED,
  type World,
  writeValid,
} from '../support/virtqueue-guests.ts';
import type { TestMemory } from '../support/virtqueue-memory.ts';
import { deviceReasons, Oracle, type Prediction } from '../support/virtqueue-oracle.ts';
import { Prng, RING_AREA, type RingKind, ringKinds } from '../support/virtqueue-pair.ts';

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
  const { kind, random, memory, rings, data } = world;
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
    if (random.chance(0.1)) announce(world);
    for (let n = random.below(4); n >= 0; n--) mutate(world);
  }

  const queue = openDeviceQueue(setup, memory);
  assert.ok(!(queue instanceof QueueFault));
  const held: Chain[] = [];
  const oracle = new Oracle({ memory, setup, inOrder: kind.inOrder, hugeArea: HUGE, hugeMinBytes: HUGE_MIN_BYTES });
  for (let turns = 0; turns < 3 * setup.size + 4; turns++) {
    const expected = oracle.predictPop();
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
      oracle.popped(expected);
      held.push(actual);
    }
    if (held.length > 0 && random.chance(0.5)) {
      const chain = held.splice(random.below(held.length), 1)[0]!;
      if (!valid) for (const part of chain.writable) part.fill(random.u32());
      assert.equal(queue.push(chain, chain.writableBytes), undefined);
      queue.publish();
      queue.needsInterrupt();
      oracle.pushed(chain.head);
    }
    if (!valid && random.chance(0.2)) mutate(world);
    if (random.chance(0.2)) queue.enableKicks();
  }
  assert.equal(queue.inFlight, held.length);
  for (const chain of held) queue.abandon(chain);
  queue.close();
  assert.equal(memory.openLeases, 0, 'no lease is left');
}

const sizesOf = (kind: RingKind): number[] => (kind.layout === 'packed' ? [1, 2, 3, 5, 8, 16] : [1, 2, 4, 8, 16]);

function manyGuests(kind: RingKind, guests: number): void {
  const random = new Prng(2024);
  const outcomes = new Map<string, number>();
  const count = (outcome: string): void => void outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
  const worlds = sizesOf(kind).map((size) => makeWorld(kind, size, random));
  for (let guest = 0; guest < guests; guest++) oneGuest(random.pick(worlds), count);
  for (const world of worlds) world.memory.assertCanaries();
  for (const reason of ['chain', 'none', ...deviceReasons(kind.layout)]) {
    assert.ok((outcomes.get(reason) ?? 0) > 100, `${reason}: ${outcomes.get(reason)} times`);
  }
  assert.ok(outcomes.get('chain')! > guests / 2);
}

/** The guest changes memory at every translation. */
function changingGuests(kind: RingKind): void {
  const random = new Prng(99);
  const world = makeWorld(kind, 8, random);
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
}

function misplacedRings(kind: RingKind): void {
  const random = new Prng(5);
  const world = makeWorld(kind, 8, random);
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
    assert.equal(reason, naiveOpen(kind, world.memory, setup));
    outcomes.set(reason, (outcomes.get(reason) ?? 0) + 1);
    if (!(queue instanceof QueueFault)) queue.close();
    assert.equal(world.memory.openLeases, 0);
  }
  for (const reason of ['open', 'queue-size', 'ring-alignment', 'ring-memory']) {
    assert.ok((outcomes.get(reason) ?? 0) > 500, `${reason}: ${outcomes.get(reason)}`);
  }
  world.memory.assertCanaries();
}

for (const kind of ringKinds) {
  describe(`hostile drivers, ${kind.name}`, () => {
    it('get exactly the verdict of a naive reader, over 100,000 guests', () => manyGuests(kind, 100_000));
    it('cannot break out by changing memory while a chain is read', () => changingGuests(kind));
    it('cannot open a queue that does not lie in one piece of memory', () => misplacedRings(kind));
  });
}

/** The verdict on a set-up, part by part. */
function naiveOpen({ layout }: RingKind, memory: TestMemory, setup: QueueSetup): string {
  const powers = Array.from({ length: 11 }, (_, i) => 2 ** i);
  const { size } = setup;
  const possible = layout === 'packed' ? size >= 1 && size <= limits.queueSizeMax : powers.includes(size);
  if (!possible) return 'queue-size';
  const bytes = ringBytes(layout, size);
  const align = ringAlign(layout);
  const verdicts = [
    [setup.descAddr, bytes.desc, BigInt(align.desc), layout === 'packed' ? 'write' : 'read'] as const,
    [setup.driverAddr, bytes.driver, BigInt(align.driver), 'read'] as const,
    [setup.deviceAddr, bytes.device, BigInt(align.device), 'write'] as const,
  ].map(([address, length, step, access]) => {
    if (address % step !== 0n) return 'ring-alignment';
    const area = memory.areas.get(Number(address >> 48n));
    const offset = Number(address & 0xffff_ffff_ffffn);
    if (area === undefined || offset + length > area.size || !area.access.includes(access)) return 'ring-memory';
    const [from, to] = [Math.floor(offset / area.pieceBytes), Math.floor((offset + length - 1) / area.pieceBytes)];
    if (from !== to) return 'ring-memory';
    const host = area.pieces[from]!.byteOffset + (offset % area.pieceBytes);
    return host % Math.min(4, Number(step)) === 0 ? 'open' : 'ring-memory';
  });
  return verdicts.find((verdict) => verdict !== 'open') ?? 'open';
}
