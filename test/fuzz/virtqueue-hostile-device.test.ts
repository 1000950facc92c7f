import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { QueueFault } from '../../src/virtio/queue.ts';
import { openDriverQueue } from '../../src/virtio/rings.ts';
import { writeU16, writeU32 } from '../../src/wire/bytes.ts';
import { dataRange, makeRings, Prng, type RingKind, type Rings, ringKinds } from '../support/virtqueue-pair.ts';

const SIZE = 8;

/** A chain from the driver's side. */
interface Sent {
  readonly room: number;
  readonly entries: number;
}

/** Writes used elements where an honest device would. */
class Claims {
  readonly #layout: RingKind['layout'];
  readonly #rings: Rings;
  /** Split: elements; packed: descriptors. */
  #position = 0;

  constructor(layout: RingKind['layout'], rings: Rings) {
    this.#layout = layout;
    this.#rings = rings;
  }

  /** @param entries by how many descriptors a packed ring goes on */
  use(id: number, length: number, entries: number): void {
    const { desc, device } = this.#rings.driverSetup.memory;
    const at = this.#position % SIZE;
    if (this.#layout === 'split') {
      writeU32(device, 4 + 8 * at, id);
      writeU32(device, 8 + 8 * at, length);
      this.#position += 1;
      writeU16(device, 2, this.#position);
      return;
    }
    writeU32(desc, at * 16 + 8, length);
    writeU16(desc, at * 16 + 12, id);
    writeU16(desc, at * 16 + 14, (length > 0 ? 2 : 0) | (Math.floor(this.#position / SIZE) % 2 === 0 ? 0x8080 : 0));
    this.#position += entries;
  }

  spoil(random: Prng): void {
    const { desc, device } = this.#rings.driverSetup.memory;
    if (this.#layout === 'split') writeU16(device, 2, random.u32());
    else writeU16(desc, random.below(SIZE) * 16 + 14, random.pick([0x8080, 0, random.u32()]));
  }
}

const entriesOf = (chains: ReadonlyMap<number, Sent>): number => {
  let sum = 0;
  for (const { entries } of chains.values()) sum += entries;
  return sum;
};

/** One hostile device from set-up to its first fault. */
function oneDevice(kind: RingKind, rings: Rings, random: Prng, count: (outcome: string) => void): void {
  const { desc } = rings.driverSetup.memory;
  const driver = openDriverQueue(rings.driverSetup);
  const claims = new Claims(kind.layout, rings);
  /** By token: chains that the device was shown, oldest first, and those that it was not. */
  const exposed = new Map<number, Sent>();
  const hidden = new Map<number, Sent>();
  const claimed = new Set<number>();
  for (let turn = 0; turn < 12; turn++) {
    const room = random.below(3) * 100;
    const token = driver.add([dataRange(0, 8)], room === 0 ? [] : [dataRange(64, room)]);
    if (token !== undefined) hidden.set(token, { room, entries: room === 0 ? 1 : 2 });
    if (random.chance(0.6)) {
      driver.kick();
      for (const [shown, chain] of hidden) exposed.set(shown, chain);
      hidden.clear();
    }
    // Links in shared memory are the device's to spoil; they must not matter.
    if (random.chance(0.3)) for (let i = 0; i < 8; i++) desc[random.below(desc.length)] = random.u32();
    const honest = [...exposed.keys()].filter((id) => !claimed.has(id));
    if (honest.length > 0 && random.chance(0.6)) {
      const good = kind.inOrder && random.chance(0.7) ? honest[0]! : random.pick(honest);
      const id = random.chance(0.9) ? good : random.pick([7, 8, 0xffff, 0x1_0000, random.u32()]);
      const length = random.chance(0.9) ? 0 : random.pick([100, 200, 201, 0xffff_ffff]);
      claimed.add(id);
      claims.use(id, length, exposed.get(id)?.entries ?? 1);
    }
    if (random.chance(0.03)) claims.spoil(random);
    const used = driver.next();
    if (used instanceof QueueFault) {
      count(used.reason);
      assert.equal(driver.next(), used, 'a fault is final');
      return;
    }
    if (used === undefined) continue;
    count('used');
    assert.ok(exposed.has(used.token), 'the token is outstanding');
    assert.ok(used.writtenBytes <= exposed.get(used.token)!.room, 'the length is possible');
    if (kind.inOrder) assert.equal(used.token, exposed.keys().next().value, 'the oldest comes first');
    exposed.delete(used.token);
    claimed.delete(used.token);
    assert.equal(driver.freeDescriptors + entriesOf(exposed) + entriesOf(hidden), SIZE);
  }
}

for (const kind of ringKinds) {
  describe(`hostile devices, ${kind.name}`, () => {
    it('never make a driver believe in a completion that cannot be', () => {
      const random = new Prng(31);
      const outcomes = new Map<string, number>();
      const rings = makeRings(SIZE, { ...kind, eventIdx: true });
      for (let run = 0; run < 30_000; run++) {
        oneDevice(kind, rings, random, (outcome) => outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1));
      }
      rings.memory.assertCanaries();
      // A packed ring has no index that could be wrong.
      const index = kind.layout === 'split' ? ['used-index'] : [];
      for (const reason of ['used', 'used-id', 'used-length', ...index]) {
        assert.ok((outcomes.get(reason) ?? 0) > 1000, `${reason}: ${outcomes.get(reason)}`);
      }
    });
  });
}
