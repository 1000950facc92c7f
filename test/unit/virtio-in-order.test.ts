import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { RingLayout } from '../../src/virtio/geometry.ts';
import { QueueFault } from '../../src/virtio/queue.ts';
import { openDriverQueue } from '../../src/virtio/rings.ts';
import { readU16, writeU16, writeU32 } from '../../src/wire/bytes.ts';
import { dataRange, expectValue, makePair, type Pair } from '../support/virtqueue-pair.ts';

const layouts: readonly RingLayout[] = ['split', 'packed'];

/** Writes one used element for a batch, the way a device may with IN_ORDER. */
function useBatch(pair: Pair, layout: RingLayout, at: number, last: number, length: number, usedIdx: number): void {
  const { desc, device } = pair.driverSetup.memory;
  if (layout === 'split') {
    writeU32(device, 4 + 8 * at, last);
    writeU32(device, 8 + 8 * at, length);
    writeU16(device, 2, usedIdx);
    return;
  }
  writeU32(desc, at * 16 + 8, length);
  writeU16(desc, at * 16 + 12, last);
  writeU16(desc, at * 16 + 14, 0x8080 | (length > 0 ? 2 : 0));
}

for (const layout of layouts) {
  describe(`${layout} queue with IN_ORDER`, () => {
    const pairOf = (size: number): Pair => makePair(size, { layout, inOrder: true, eventIdx: true });

    it('hands chains back in the order in which they came, whatever the order of push', () => {
      const { driver, device, memory } = pairOf(4);
      const rings = memory.openLeases;
      const tokens = [1, 2, 3].map((room) => driver.add([dataRange(0, 1)].slice(1), [dataRange(0, room)]));
      driver.kick();
      const [a, b, c] = [0, 1, 2].map(() => expectValue(device.pop()));
      device.push(c!, 3);
      device.push(b!, 1);
      device.publish();
      assert.equal(driver.next(), undefined, 'the first one is missing');
      assert.equal(device.needsInterrupt(), false);
      assert.equal(device.inFlight, 1);
      device.push(a!, 0);
      assert.equal(memory.openLeases, rings);
      device.publish();
      assert.equal(device.needsInterrupt(), true);
      const used = [0, 1, 2].map(() => expectValue(driver.next()));
      assert.deepEqual(
        used,
        [0, 1, 3].map((writtenBytes, i) => ({ token: tokens[i], writtenBytes })),
      );
      assert.equal(driver.freeDescriptors, 4);
    });

    it('understands one used element for a batch: what it skips was used completely', () => {
      const pair = pairOf(8);
      const { driver } = pair;
      const tokens = [10, 20, 30, 40].map((room) => driver.add([dataRange(0, 1)], [dataRange(0, room)])!);
      driver.kick();
      useBatch(pair, layout, 0, tokens[2]!, 7, 3);
      assert.deepEqual(driver.next(), { token: tokens[0], writtenBytes: 10 });
      assert.equal(driver.enableInterrupts(), true, 'more of the batch is there');
      const again = openDriverQueue(pair.driverSetup, structuredClone(driver.save()));
      for (const each of [driver, again]) {
        assert.deepEqual(each.next(), { token: tokens[1], writtenBytes: 20 });
        assert.deepEqual(each.next(), { token: tokens[2], writtenBytes: 7 });
        assert.equal(each.next(), undefined);
        assert.equal(each.enableInterrupts(), false);
        assert.equal(each.freeDescriptors, 6);
      }
      // The next element comes behind all entries, or descriptors, of the batch.
      useBatch(pair, layout, layout === 'split' ? 3 : 6, tokens[3]!, 40, 4);
      assert.deepEqual(driver.next(), { token: tokens[3], writtenBytes: 40 });
      assert.equal(driver.freeDescriptors, 8);
    });

    it('refuses a batch that ends with a chain which the device has not got', () => {
      const pair = pairOf(8);
      const { driver } = pair;
      driver.add([], [dataRange(0, 1)]);
      driver.kick();
      const hidden = driver.add([], [dataRange(0, 1)])!;
      useBatch(pair, layout, 0, hidden, 0, 1);
      const fault = driver.next();
      assert.ok(fault instanceof QueueFault);
      assert.equal(fault.reason, 'used-id');
    });
  });
}

describe('split queue with IN_ORDER', () => {
  it('uses descriptors in the order of the table, also over its end', () => {
    const pair = makePair(4, { inOrder: true });
    const { driver, device } = pair;
    const { desc } = pair.driverSetup.memory;
    const heads: Array<number | undefined> = [];
    for (let i = 0; i < 4; i++) {
      heads.push(driver.add([dataRange(0, 1), dataRange(1, 1), dataRange(2, 1)], []));
      driver.kick();
      device.push(expectValue(device.pop()), 0);
      device.publish();
      expectValue(driver.next());
    }
    assert.deepEqual(heads, [0, 3, 2, 1]);
    // 2.7.5.2: next is the following entry, and 0 in the last one.
    assert.deepEqual(
      [1, 2, 3].map((i) => readU16(desc, i * 16 + 14)),
      [2, 3, 0],
    );
    driver.add([dataRange(0, 1), dataRange(1, 1)], []);
    assert.equal(readU16(desc, 14), 1);
  });

  it('refuses an element that names a chain which the index does not cover', () => {
    const pair = makePair(4, { inOrder: true });
    const tokens = [0, 1].map(() => pair.driver.add([], [dataRange(0, 1)])!);
    pair.driver.kick();
    useBatch(pair, 'split', 0, tokens[1]!, 0, 1);
    const fault = pair.driver.next();
    assert.ok(fault instanceof QueueFault);
    assert.equal(fault.reason, 'used-id');
  });

  it('says which value the available index will have', () => {
    const { driver } = makePair(4);
    assert.equal(driver.notificationData, 0);
    driver.add([], [dataRange(0, 1)]);
    assert.equal(driver.notificationData, 1);
  });
});
