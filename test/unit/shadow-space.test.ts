import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type BounceSlot, BounceSpace } from '../../src/bridge/shadow/bounce-space.ts';

const page = 4096;
const area = 1;

test('rings come first and are aligned, then requests, and nothing overlaps', () => {
  const memory = new Uint8Array(64 * page);
  const space = new BounceSpace(memory, area, 3 * page, 2);
  const slots = [space.ring(100, 16), space.ring(2000, 4096), space.take(0, 5000)!, space.take(1, 33)!];
  for (const [i, slot] of slots.entries()) slot.bytes.fill(i + 1);
  for (const [i, slot] of slots.entries())
    assert.ok(
      slot.bytes.every((byte) => byte === i + 1),
      `slot ${i}`,
    );
  assert.equal(slots[1]!.busAddress % 4096n, 0n);
  assert.equal(slots[1]!.busAddress >> 48n, 1n);
  const { hi, lo, length } = slots[2]!.range(10, 20);
  assert.deepEqual([hi, length], [1 << 16, 20]);
  assert.equal(slots[2]!.bytes.byteOffset + 10, lo, 'an address is the offset in the memory');
  assert.ok(lo >= 3 * page);
  assert.throws(() => space.ring(3 * page, 16), /the rings fit/);
});

test('a single queue has all of it, several have a part each and half in common', () => {
  assert.equal(new BounceSpace(new Uint8Array(64 * page), area, page, 1).largest, 63 * page);
  const several = new BounceSpace(new Uint8Array(65 * page), area, page, 4);
  assert.equal(several.largest, 32 * page, 'half in common');
  assert.equal(several.take(2, 32 * page + 1), undefined);
});

test('a queue that takes all there is leaves the others their part', () => {
  const space = new BounceSpace(new Uint8Array(64 * page), area, 0, 4);
  const taken: BounceSlot[] = [];
  for (let slot = space.take(0, page); slot !== undefined; slot = space.take(0, page)) taken.push(slot);
  assert.equal(taken.length, 8 + 32);
  for (const queue of [1, 2, 3]) assert.ok(space.take(queue, 8 * page) !== undefined, `queue ${queue} has its part`);
  assert.equal(space.slots, taken.length + 3);
});

test('what waits for the common part gets it in order, and one that leaves the line holds nobody up', () => {
  const space = new BounceSpace(new Uint8Array(64 * page), area, 0, 4);
  const all = space.take(0, 32 * page)!;
  assert.equal(space.take(1, 20 * page), undefined, 'too much for its own part: it waits');
  assert.equal(space.take(2, 9 * page), undefined);
  all.free();
  assert.equal(space.take(2, 9 * page), undefined, 'queue 1 comes first');
  assert.ok(space.take(2, 8 * page) !== undefined, 'its own part is always there');
  const first = space.take(1, 20 * page)!;
  assert.ok(space.take(2, 9 * page) !== undefined);
  assert.equal(space.take(3, 20 * page), undefined);
  assert.equal(space.take(1, 20 * page), undefined);
  first.free();
  space.leave(3);
  assert.ok(space.take(1, 20 * page) !== undefined);
});
