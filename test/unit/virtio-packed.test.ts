import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { limits } from '../../src/kit/limits.ts';
import { RingPosition, wantsEvent } from '../../src/virtio/packed/ring.ts';
import { QueueFault } from '../../src/virtio/queue.ts';
import { openDeviceQueue } from '../../src/virtio/rings.ts';
import { readU16, readU32, writeU16, writeU32 } from '../../src/wire/bytes.ts';
import { TestArea } from '../support/virtqueue-memory.ts';
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

const lengths = (parts: readonly Uint8Array[]): number[] => parts.map((part) => part.length);
const pairOf = (size: number, options: RingOptions = {}): Pair => makePair(size, { ...options, layout: 'packed' });

function faultOf(pair: Pair): string {
  const fault = pair.device.pop();
  assert.ok(fault instanceof QueueFault);
  assert.equal(pair.device.fault, fault);
  assert.equal(pair.device.pop(), fault);
  return fault.reason;
}

describe('packed queue, device half', () => {
  it('hands out the memory of a chain and returns it with a length', () => {
    const pair = pairOf(7);
    const { driver, device, data, memory } = pair;
    const rings = memory.openLeases;
    data.bytes.set([1, 2, 3], 100);
    const token = driver.add([dataRange(100, 3), dataRange(200, 5)], [dataRange(300, 7)]);
    assert.equal(device.pop(), undefined, 'not visible before the kick');
    assert.equal(driver.kick(), true);
    const chain = expectValue(device.pop());
    assert.deepEqual([lengths(chain.readable), lengths(chain.writable)], [[3, 5], [7]]);
    assert.deepEqual([...chain.readable[0]!], [1, 2, 3]);
    chain.writable[0]!.fill(9);
    assert.deepEqual([device.inFlight, memory.openLeases], [1, rings + 3]);
    assert.equal(device.push(chain, 7), undefined);
    assert.deepEqual([device.inFlight, memory.openLeases], [0, rings]);
    assert.equal(driver.next(), undefined, 'not visible before publish');
    device.publish();
    assert.deepEqual(driver.next(), { token, writtenBytes: 7 });
    assert.deepEqual([...data.bytes.subarray(299, 308)], [0, 9, 9, 9, 9, 9, 9, 9, 0]);
    assert.equal(driver.freeDescriptors, 7);
  });

  it('writes used descriptors as specified, the first flags of a batch last', () => {
    const pair = pairOf(5);
    const { driver, device } = pair;
    const a = driver.add([dataRange(0, 1), dataRange(1, 1)], [])!;
    const b = driver.add([], [dataRange(2, 4)])!;
    const c = driver.add([dataRange(3, 1)], [])!;
    driver.kick();
    const [first, second, third] = drain(pair);
    const before = [0, 1, 2, 3, 4].map((i) => packedDescriptor(pair, i));
    device.push(second!, 3);
    device.push(first!, 0);
    assert.deepEqual(
      [0, 1, 2, 3, 4].map((i) => packedDescriptor(pair, i)),
      before,
      'push shows nothing',
    );
    device.publish();
    assert.deepEqual(packedDescriptor(pair, 0).slice(2), [3, b, 0x8082], 'written, so WRITE');
    assert.deepEqual(packedDescriptor(pair, 1).slice(2), [0, a, 0x8080], 'nothing written');
    assert.deepEqual(packedDescriptor(pair, 3), before[3], 'the second chain skips as many descriptors as it had');
    assert.equal(expectValue(driver.next()).token, b);
    assert.equal(expectValue(driver.next()).token, a);
    assert.equal(driver.next(), undefined);
    device.push(third!, 0);
    device.publish();
    assert.deepEqual(packedDescriptor(pair, 3).slice(2), [0, c, 0x8080]);
    assert.equal(expectValue(driver.next()).token, c);
    // The second lap: both flags change their meaning.
    const tokens = [1, 2].map((length) => driver.add([dataRange(0, length)], []));
    assert.equal(driver.kick(), true);
    assert.deepEqual([packedDescriptor(pair, 4)[4], packedDescriptor(pair, 0)[4]], [0x80, 0x8000]);
    for (const chain of drain(pair)) device.push(chain, 0);
    device.publish();
    assert.deepEqual([packedDescriptor(pair, 4)[4], packedDescriptor(pair, 0)[4]], [0x8080, 0]);
    assert.deepEqual(
      [0, 1].map(() => expectValue(driver.next()).token),
      tokens,
    );
  });

  it('keeps bit 31 of lengths and addresses, and the high half of an address', () => {
    const pair = pairOf(2);
    const asked: Array<[number, number, number]> = [];
    const { translate } = pair.memory;
    pair.memory.translate = (hi, lo, length, access, out) => {
      asked.push([hi, lo, length]);
      return translate.call(pair.memory, DATA_AREA << 16, 0, 1, access, out);
    };
    pair.driver.add([{ hi: 0x8000_0001, lo: 0x8000_0002, length: 0x8000_0003 }], []);
    pair.driver.kick();
    assert.equal(expectValue(pair.device.pop()).readableBytes, 0x8000_0003);
    assert.deepEqual(asked, [[0x8000_0001, 0x8000_0002, 0x8000_0003]]);
  });

  it('takes any buffer id, and one of them at a time', () => {
    const pair = pairOf(3);
    const { desc } = pair.driverSetup.memory;
    for (let i = 0; i < 3; i++) pair.driver.add([dataRange(i, 1)], []);
    pair.driver.kick();
    writeU16(desc, 12, 0xffff);
    writeU16(desc, 16 + 12, 0x8000);
    writeU16(desc, 32 + 12, 0xffff);
    const [first, second] = [0, 1].map(() => expectValue(pair.device.pop()));
    assert.deepEqual([first!.head, second!.head], [0xffff, 0x8000]);
    assert.equal(faultOf(pair), 'head-in-flight');
  });

  it('takes an id back only when the driver can see that it is used', () => {
    const pair = pairOf(3);
    for (let i = 0; i < 2; i++) pair.driver.add([dataRange(i, 1)], []);
    pair.driver.kick();
    writeU16(pair.driverSetup.memory.desc, 16 + 12, readU16(pair.driverSetup.memory.desc, 12));
    pair.device.push(expectValue(pair.device.pop()), 0);
    assert.equal(faultOf(pair), 'head-in-flight');
  });

  it('reads an indirect table, of which only WRITE counts', () => {
    for (const pieceBytes of [65536, 20]) {
      const pair = pairOf(2, { indirect: true, data: { pieceBytes } });
      const words = new Uint32Array(12);
      const { hi, lo } = dataRange(512, 1);
      pair.driver.add([dataRange(0, 10), dataRange(10, 6)], [dataRange(64, 4)], { indirect: { words, hi, lo } });
      words[3] = words[3]! | 0xfffd_1234;
      words[7] = words[7]! | 0x0005_ffff;
      for (const [i, byte] of new Uint8Array(words.buffer).entries()) {
        pair.data.pieces[Math.floor((512 + i) / pieceBytes)]![(512 + i) % pieceBytes] = byte;
      }
      assert.equal(pair.driver.freeDescriptors, 1);
      assert.deepEqual(packedDescriptor(pair, 0).slice(0, 4), [lo, hi, 48, 0]);
      pair.driver.kick();
      const rings = pair.memory.openLeases;
      const chain = expectValue(pair.device.pop());
      assert.deepEqual([chain.readableBytes, chain.writableBytes], [16, 4]);
      assert.equal(pair.memory.openLeases - rings, 3, 'the table itself is not held');
    }
  });

  it('refuses an indirect table that is linked, on either side', () => {
    for (const indirectAt of [0, 1]) {
      const pair = pairOf(4, { indirect: true });
      pair.driver.add([dataRange(0, 16), dataRange(16, 16)], []);
      pair.driver.kick();
      const { desc } = pair.driverSetup.memory;
      writeU16(desc, indirectAt * 16 + 14, readU16(desc, indirectAt * 16 + 14) | 4);
      assert.equal(faultOf(pair), 'indirect-with-next');
    }
  });

  it('takes a chain of the longest permitted length through a table, and no longer one', () => {
    const pair = pairOf(4, { indirect: true });
    const buffers = Array.from({ length: limits.chainDescriptorsMax - 1 }, (_, i) => dataRange(i, 1));
    pair.driver.add(buffers, [], { indirect: indirectTable(pair, 16384, buffers.length) });
    pair.driver.kick();
    assert.equal(expectValue(pair.device.pop()).readable.length, buffers.length);
    const more = [...buffers, dataRange(0, 1)];
    pair.driver.add(more, [], { indirect: indirectTable(pair, 32768, more.length) });
    pair.driver.kick();
    assert.equal(faultOf(pair), 'chain-length');
  });

  it('takes a chain that goes over the end of the ring, and one that fills it', () => {
    const pair = pairOf(3);
    const { driver, device } = pair;
    driver.add([dataRange(0, 1), dataRange(1, 1)], []);
    driver.kick();
    device.push(expectValue(device.pop()), 0);
    device.publish();
    driver.next();
    driver.add([dataRange(0, 1), dataRange(1, 1)], [dataRange(2, 3)]);
    assert.equal(driver.freeDescriptors, 0);
    driver.kick();
    const chain = expectValue(device.pop());
    assert.deepEqual([lengths(chain.readable), lengths(chain.writable)], [[1, 1], [3]]);
    assert.equal(device.pop(), undefined);
    device.push(chain, 3);
    device.publish();
    assert.equal(expectValue(driver.next()).writtenBytes, 3);
    assert.equal(driver.freeDescriptors, 3);
  });

  it('ends a chain that does not', () => {
    const pair = pairOf(4);
    pair.driver.add([dataRange(0, 1)], []);
    pair.driver.add([dataRange(0, 1), dataRange(1, 1)], []);
    pair.driver.kick();
    writeU16(pair.driverSetup.memory.desc, 2 * 16 + 14, 0x81);
    writeU16(pair.driverSetup.memory.desc, 3 * 16 + 14, 0x81);
    expectValue(pair.device.pop());
    const rings = pair.memory.openLeases;
    assert.equal(faultOf(pair), 'chain-length', 'it would run into a chain in flight');
    assert.equal(pair.memory.openLeases, rings, 'a fault holds nothing');
  });

  it('refuses a descriptor that is available while all are in flight', () => {
    const pair = pairOf(2);
    for (let i = 0; i < 2; i++) pair.driver.add([dataRange(i, 1)], []);
    pair.driver.kick();
    drain(pair);
    writeU16(pair.driverSetup.memory.desc, 14, 0x8000);
    assert.equal(faultOf(pair), 'avail-index');
  });

  it('lets chains end after a fault of a later one, without a store to the ring', () => {
    const pair = pairOf(3);
    const { driver, device } = pair;
    for (let i = 0; i < 3; i++) driver.add([dataRange(i, 1)], []);
    driver.kick();
    writeU32(pair.driverSetup.memory.desc, 2 * 16 + 4, 0x7fff_0000);
    const [first, second] = [0, 1].map(() => expectValue(device.pop()));
    device.push(first!, 0);
    assert.equal(faultOf(pair), 'address');
    assert.equal(device.push(second!, 0), device.fault);
    device.publish();
    assert.deepEqual([packedDescriptor(pair, 0)[4], packedDescriptor(pair, 1)[4]], [0x8080, 0x80]);
    assert.equal(device.enableKicks(), false);
    device.close();
    assert.equal(pair.memory.openLeases, 0);
  });

  it('can be reset while chains are in flight', () => {
    const pair = pairOf(8);
    const { driver, device, memory } = pair;
    for (let i = 0; i < 3; i++) driver.add([dataRange(i, 1)], [dataRange(64, 8)]);
    driver.kick();
    const [a, b, c] = drain(pair);
    device.push(a!, 0);
    device.close();
    device.close();
    assert.equal(memory.openLeases, 4, 'two chains of two buffers');
    assert.equal(device.pop(), undefined);
    assert.equal(device.enableKicks(), false);
    device.suppressKicks();
    assert.equal(device.push(b!, 8), undefined, 'a late completion is dropped');
    device.publish();
    assert.equal(device.needsInterrupt(), false);
    assert.equal(driver.next(), undefined);
    device.abandon(c!);
    assert.deepEqual([device.inFlight, memory.openLeases], [0, 0]);
  });

  it('stops on wrong use by its own side', () => {
    const { driver, device } = pairOf(4);
    driver.add([], [dataRange(0, 4)]);
    driver.kick();
    const chain = expectValue(device.pop());
    assert.throws(() => pairOf(4).device.push(chain, 0));
    device.push(chain, 4);
    assert.throws(() => device.push(chain, 4), 'pushed twice');
    driver.add([], [dataRange(0, 4)]);
    driver.kick();
    const next = expectValue(device.pop());
    assert.throws(() => device.push(next, 5), 'more than there is room for');
  });

  it('refuses ring memory that cannot be used', () => {
    const rings = makeRings(5, { layout: 'packed' });
    rings.memory.add(new TestArea(7, 512, { access: ['read'] }));
    const readOnly = rings.memory.areas.get(7)!;
    const open = (changed: object): string => {
      const queue = openDeviceQueue({ ...rings.setup, ...changed }, rings.memory);
      return queue instanceof QueueFault ? queue.reason : 'open';
    };
    assert.equal(open({}), 'open');
    assert.equal(open({ driverAddr: readOnly.address(4) }), 'open');
    assert.equal(open({ descAddr: readOnly.address(0) }), 'ring-memory', 'used descriptors are written there');
    assert.equal(open({ driverAddr: readOnly.address(2) }), 'ring-alignment');
    assert.equal(open({ descAddr: rings.rings.address(8) }), 'ring-alignment');
    assert.equal(open({ size: limits.queueSizeMax + 1 }), 'queue-size');
    assert.equal(open({ size: 0 }), 'queue-size');
  });
});

describe('notification suppression of packed queues', () => {
  it('compares positions with their wrap counters', () => {
    const at = (index: number, wrap: number): number => (2 << 16) | index | (wrap << 15);
    const wants = (event: number, index: number, wrap: number, count: number): boolean =>
      wantsEvent(event, true, 5, new RingPosition(5, index, wrap), count);
    assert.equal(wants(at(0, 1), 1, 1, 1), true);
    assert.equal(wants(at(1, 1), 1, 1, 1), false, 'the next one, not yet');
    assert.equal(wants(at(4, 1), 0, 0, 1), true, 'the last one of a lap');
    assert.equal(wants(at(4, 0), 0, 0, 1), false, 'the same place, a lap later');
    assert.equal(wants(at(3, 1), 1, 0, 3), true);
    assert.equal(wants(at(2, 1), 1, 0, 3), false);
    assert.equal(wants(at(0, 0), 1, 0, 3), true);
    assert.equal(wants(at(3, 0), 2, 1, 4), true, 'from the second lap into the first');
    assert.equal(wants(at(1, 1), 1, 1, 10), true, 'everything has passed');
  });

  it('treats what is not permitted as a wish to be told', () => {
    const position = new RingPosition(5);
    const wants = (event: number, eventIdx: boolean): boolean => wantsEvent(event, eventIdx, 5, position, 1);
    assert.equal(wants(0, false), true);
    assert.equal(wants(1 << 16, false), false);
    assert.equal(wants(1 << 16, true), false);
    assert.equal(wants((2 << 16) | 3, false), true, 'DESC without EVENT_IDX');
    assert.equal(wants((2 << 16) | 7, true), true, 'a position outside the ring');
    assert.equal(wants(3 << 16, true), true, 'a value that is reserved');
    assert.equal(wants(0xfffd_0000, true), false, 'reserved bits do not count');
  });

  for (const eventIdx of [false, true]) {
    it(`stays silent while the peer works (event-idx ${eventIdx ? 'on' : 'off'})`, () => {
      const pair = pairOf(6, { eventIdx });
      const { driver, device } = pair;
      const { driver: ours, device: theirs } = pair.driverSetup.memory;
      driver.add([dataRange(0, 1)], []);
      assert.equal(driver.kick(), true, 'a device that has said nothing is told');
      device.suppressKicks();
      assert.equal(readU32(theirs, 0), 1 << 16);
      driver.add([dataRange(0, 1)], []);
      assert.equal(driver.kick(), false);
      const chains = drain(pair);
      assert.equal(device.enableKicks(), false);
      assert.equal(readU32(theirs, 0), eventIdx ? (2 << 16) | 0x8002 : 0);
      driver.add([dataRange(0, 1)], []);
      assert.equal(driver.kick(), true);
      assert.equal(device.enableKicks(), true, 'a chain is there: do not sleep');
      driver.suppressInterrupts();
      for (const chain of chains) device.push(chain, 0);
      assert.equal(device.needsInterrupt(), false, 'nothing is published');
      device.publish();
      assert.equal(device.needsInterrupt(), false);
      assert.equal(driver.enableInterrupts(), true, 'a chain is there: do not sleep');
      driver.next();
      driver.next();
      assert.equal(driver.enableInterrupts(), false);
      assert.equal(readU32(ours, 0), eventIdx ? (2 << 16) | 0x8002 : 0);
      device.push(drain(pair)[0]!, 0);
      device.publish();
      assert.equal(device.needsInterrupt(), true);
      assert.equal(device.needsInterrupt(), false);
    });
  }

  it('interrupts when an event position lies among descriptors that were skipped', () => {
    const pair = pairOf(4, { eventIdx: true });
    pair.driver.add([dataRange(0, 1), dataRange(1, 1), dataRange(2, 1)], []);
    pair.driver.kick();
    writeU32(pair.driverSetup.memory.driver, 0, (2 << 16) | 0x8002);
    pair.device.push(drain(pair)[0]!, 0);
    pair.device.publish();
    assert.equal(pair.device.needsInterrupt(), true);
  });
});
