import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { openDriverQueue } from '../../src/virtio/rings.ts';
import { writeU32 } from '../../src/wire/bytes.ts';
import {
  DATA_AREA,
  dataRange,
  drain,
  expectValue,
  indirectTable,
  makePair,
  makeRings,
  type Pair,
  packedDescriptor,
  type RingOptions,
} from '../support/virtqueue-pair.ts';

const pairOf = (size: number, options: RingOptions = {}): Pair => makePair(size, { ...options, layout: 'packed' });

describe('packed queue, driver half', () => {
  it('zeroes its memory and fills the ring as specified', () => {
    const rings = makeRings(5, { layout: 'packed' });
    const { desc, driver: events, device } = rings.driverSetup.memory;
    for (const part of [desc, events, device]) part.fill(0xee);
    const driver = openDriverQueue(rings.driverSetup);
    assert.ok([desc, events, device].every((part) => part.every((byte) => byte === 0)));
    const pair = { ...pairOf(5), driverSetup: rings.driverSetup };
    const first = driver.add([dataRange(1, 2)], [dataRange(3, 4), dataRange(5, 6)])!;
    const second = driver.add([dataRange(7, 8)], [])!;
    assert.notEqual(first, second);
    assert.equal(packedDescriptor(pair, 0)[4], 0, 'the first descriptor of a batch is not available before the kick');
    assert.equal(driver.notificationData, 0x8000_0004);
    driver.kick();
    const hi = DATA_AREA << 16;
    assert.deepEqual(
      [0, 1, 2, 3].map((i) => packedDescriptor(pair, i)),
      [
        [1, hi, 2, first, 0x81],
        [3, hi, 4, first, 0x83],
        [5, hi, 6, first, 0x82],
        [7, hi, 8, second, 0x80],
      ],
    );
    assert.equal(driver.add([dataRange(0, 1), dataRange(0, 1)], []), undefined, 'one descriptor is left');
    driver.add([dataRange(0, 1)], []);
    assert.equal(driver.freeDescriptors, 0);
    assert.equal(driver.add([dataRange(0, 1)], []), undefined);
    assert.equal(driver.kick(), true);
    assert.equal(driver.kick(), false, 'nothing new');
    // 2.9: position 0 of the second lap, whose wrap counter is 0.
    assert.equal(driver.notificationData, 0);
  });

  it('says where the next chain goes, with the wrap counter in bit 31', () => {
    const { driver, device } = pairOf(3);
    const seen: number[] = [];
    for (let i = 0; i < 7; i++) {
      seen.push(driver.notificationData);
      driver.add([dataRange(0, 1)], []);
      driver.kick();
      device.push(expectValue(device.pop()), 0);
      device.publish();
      expectValue(driver.next());
    }
    const wrap = 0x8000_0000;
    assert.deepEqual(seen, [wrap, wrap + 1, wrap + 2, 0, 1, 2, wrap]);
  });

  it('continues on its ring memory from a saved state', () => {
    const pair = pairOf(4, { eventIdx: true });
    const { device } = pair;
    const first = pair.driver.add([dataRange(0, 1)], [dataRange(8, 4)])!;
    pair.driver.kick();
    const hidden = pair.driver.add([dataRange(1, 1)], [])!;
    device.enableKicks();
    const driver = openDriverQueue(pair.driverSetup, structuredClone(pair.driver.save()));
    assert.equal(driver.freeDescriptors, 1);
    const [a] = drain(pair);
    assert.equal(device.enableKicks(), false);
    device.push(a!, 3);
    device.publish();
    assert.deepEqual(driver.next(), { token: first, writtenBytes: 3 });
    assert.equal(driver.kick(), true);
    const [b] = drain(pair);
    device.push(b!, 0);
    device.publish();
    assert.deepEqual(driver.next(), { token: hidden, writtenBytes: 0 });
    assert.equal(driver.freeDescriptors, 4);
    const again = openDriverQueue(pair.driverSetup, driver.save());
    assert.equal(again.kick(), true, 'an earlier notification may be lost');
    assert.equal(again.kick(), false);
  });

  it('does not look at the length of a used descriptor without WRITE', () => {
    const pair = pairOf(2);
    pair.driver.add([], [dataRange(0, 4)]);
    pair.driver.kick();
    pair.device.push(expectValue(pair.device.pop()), 0);
    pair.device.publish();
    writeU32(pair.driverSetup.memory.desc, 8, 77);
    assert.equal(expectValue(pair.driver.next()).writtenBytes, 0);
  });

  it('refuses what its own side does wrong', () => {
    const { driverSetup } = makeRings(4, { layout: 'packed' });
    const driver = openDriverQueue(driverSetup);
    const pair = { ...pairOf(4), driver };
    assert.throws(() => driver.add([], []));
    assert.throws(() => driver.add([dataRange(0, 0)], []));
    assert.throws(() => driver.add(new Array(5).fill(dataRange(0, 1)), []));
    assert.throws(() => driver.add([dataRange(0, 1)], [], { indirect: indirectTable(pair, 0, 4) }), 'not negotiated');
    assert.throws(() => openDriverQueue({ ...driverSetup, size: 3 }));
    assert.throws(() => openDriverQueue({ ...driverSetup, descAddr: 8n }));
    assert.throws(() => openDriverQueue(driverSetup, makePair(4).driver.save()), 'the state of a split queue');
  });
});
