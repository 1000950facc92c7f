import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { QueueFault } from '../../src/virtio/queue.ts';
import { openDriverQueue } from '../../src/virtio/rings.ts';
import { writeU16, writeU32 } from '../../src/wire/bytes.ts';
import { dataRange, makeRings, Prng } from '../support/virtqueue-pair.ts';

describe('hostile devices', () => {
  it('never make a driver believe in a completion that cannot be', () => {
    const random = new Prng(31);
    const outcomes = new Map<string, number>();
    const rings = makeRings(8, { eventIdx: true });
    const { device, desc } = rings.driverSetup.memory;
    for (let run = 0; run < 30_000; run++) {
      const driver = openDriverQueue(rings.driverSetup);
      /** Token -> writable bytes, of chains that the device was shown. */
      const exposed = new Map<number, number>();
      const hidden = new Map<number, number>();
      let claimed = 0;
      for (let turn = 0; turn < 12; turn++) {
        const room = random.below(3) * 100;
        const token = driver.add([dataRange(0, 8)], room === 0 ? [] : [dataRange(64, room)]);
        if (token !== undefined) hidden.set(token, room);
        if (random.chance(0.6)) {
          driver.kick();
          for (const [shown, bytes] of hidden) exposed.set(shown, bytes);
          hidden.clear();
        }
        // Links in shared memory are the device's to spoil; they must not matter.
        if (random.chance(0.3)) for (let i = 0; i < 8; i++) desc[random.below(desc.length)] = random.u32();
        const honest = [...exposed.keys()];
        if (honest.length > 0 && random.chance(0.6)) {
          const id = random.chance(0.9) ? random.pick(honest) : random.pick([7, 8, 0xffff, 0x1_0000, random.u32()]);
          const length = random.chance(0.9) ? 0 : random.pick([100, 200, 201, 0xffff_ffff]);
          writeU32(device, 4 + 8 * (claimed % 8), id);
          writeU32(device, 8 + 8 * (claimed % 8), length);
          claimed += 1;
          writeU16(device, 2, claimed);
        }
        if (random.chance(0.03)) writeU16(device, 2, random.u32());
        const used = driver.next();
        if (used instanceof QueueFault) {
          outcomes.set(used.reason, (outcomes.get(used.reason) ?? 0) + 1);
          assert.equal(driver.next(), used, 'a fault is final');
          break;
        }
        outcomes.set('used', (outcomes.get('used') ?? 0) + (used === undefined ? 0 : 1));
        if (used === undefined) continue;
        assert.ok(exposed.has(used.token), 'the token is outstanding');
        assert.ok(used.writtenBytes <= exposed.get(used.token)!, 'the length is possible');
        exposed.delete(used.token);
        assert.equal(driver.freeDescriptors + chainEntries(exposed) + chainEntries(hidden), 8);
      }
    }
    rings.memory.assertCanaries();
    for (const reason of ['used', 'used-index', 'used-id', 'used-length']) {
      assert.ok((outcomes.get(reason) ?? 0) > 1000, `${reason}: ${outcomes.get(reason)}`);
    }
  });
});

function chainEntries(chains: ReadonlyMap<number, number>): number {
  let entries = 0;
  for (const room of chains.values()) entries += room === 0 ? 1 : 2;
  return entries;
}
