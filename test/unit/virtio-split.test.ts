import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { limits } from '../../src/kit/limits.ts';
import { QueueFault } from '../../src/virtio/queue.ts';
import { openDeviceQueue, openDriverQueue } from '../../src/virtio/rings.ts';
import { passesEvent } from '../../src/virtio/split/ring.ts';
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
} from '../support/virtqueue-pair.ts';

const lengths = (parts: readonly Uint8Array[]): number[] => parts.map((part) => part.length);

function faultOf(pair: Pair): string {
  const fault = pair.device.pop();
  assert.ok(fault instanceof QueueFault);
  assert.equal(pair.device.fault, fault);
  assert.equal(pair.device.pop(), fault);
  return fault.reason;
}

describe('split queue, device half', () => {
  it('hands out the memory of a chain and returns it with a length', () => {
    const pair = makePair(8);
    const { driver, device, data, memory } = pair;
    const rings = memory.openLeases;
    data.bytes.set([1, 2, 3], 100);
    const token = driver.add([dataRange(100, 3), dataRange(200, 5)], [dataRange(300, 7)]);
    assert.equal(device.pop(), undefined, 'not visible before the kick');
    assert.equal(driver.kick(), true);
    const chain = expectValue(device.pop());
    assert.deepEqual([lengths(chain.readable), lengths(chain.writable)], [[3, 5], [7]]);
    assert.deepEqual([chain.readableBytes, chain.writableBytes], [8, 7]);
    assert.deepEqual([...chain.readable[0]!], [1, 2, 3]);
    chain.writable[0]!.fill(9);
    assert.deepEqual([device.inFlight, memory.openLeases], [1, rings + 3]);
    assert.equal(device.push(chain, 7), undefined);
    assert.deepEqual([device.inFlight, memory.openLeases], [0, rings]);
    assert.equal(driver.next(), undefined, 'not visible before publish');
    device.publish();
    assert.deepEqual(driver.next(), { token, writtenBytes: 7 });
    assert.deepEqual([...data.bytes.subarray(299, 308)], [0, 9, 9, 9, 9, 9, 9, 9, 0]);
    assert.equal(driver.freeDescriptors, 8);
  });

  it('keeps bit 31 of lengths and addresses, and the high half of an address', () => {
    const pair = makePair(2);
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

  it('reads an indirect table, also when it is scattered or follows other descriptors', () => {
    for (const pieceBytes of [65536, 20]) {
      const pair = makePair(4, { indirect: true, data: { pieceBytes } });
      const words = new Uint32Array(12);
      const { hi, lo } = dataRange(512, 1);
      pair.driver.add([dataRange(0, 10), dataRange(10, 6)], [dataRange(64, 4)], { indirect: { words, hi, lo } });
      const flat = new Uint8Array(words.buffer);
      for (const [i, byte] of flat.entries()) {
        pair.data.pieces[Math.floor((512 + i) / pieceBytes)]![(512 + i) % pieceBytes] = byte;
      }
      assert.equal(pair.driver.freeDescriptors, 3);
      pair.driver.kick();
      const rings = pair.memory.openLeases;
      const chain = expectValue(pair.device.pop());
      assert.deepEqual([chain.readableBytes, chain.writableBytes], [16, 4]);
      assert.equal(pair.memory.openLeases, rings + 3, 'the table itself is not held');

      // 2.7.5.3.2: normal descriptors, then one that refers to a table; its WRITE flag means nothing.
      const { desc, driver } = pair.driverSetup.memory;
      desc.copyWithin(2 * 16, 0, 16);
      writeU16(desc, 2 * 16 + 12, 4 | 2);
      writeU32(desc, 16, 700);
      writeU32(desc, 20, DATA_AREA << 16);
      writeU32(desc, 24, 3);
      writeU16(desc, 28, 1);
      writeU16(desc, 30, 2);
      writeU16(driver, 6, 1);
      writeU16(driver, 2, 2);
      assert.equal(expectValue(pair.device.pop()).readableBytes, 19);
    }
  });

  it('takes a chain of the longest permitted length through a table, and no longer one', () => {
    const pair = makePair(4, { indirect: true, dataBytes: 65536 });
    const buffers = Array.from({ length: limits.chainDescriptorsMax - 1 }, (_, i) => dataRange(i, 1));
    pair.driver.add(buffers, [], { indirect: indirectTable(pair, 16384, buffers.length) });
    pair.driver.kick();
    assert.equal(expectValue(pair.device.pop()).readable.length, buffers.length);
    const more = [...buffers, dataRange(0, 1)];
    pair.driver.add(more, [], { indirect: indirectTable(pair, 32768, more.length) });
    pair.driver.kick();
    assert.equal(faultOf(pair), 'chain-length');
  });

  it('treats a buffer of length 0 as absent', () => {
    const pair = makePair(4);
    pair.driver.add([dataRange(0, 4), dataRange(8, 4)], [dataRange(16, 4)]);
    writeU32(pair.driverSetup.memory.desc, 16 + 8, 0);
    writeU32(pair.driverSetup.memory.desc, 16 + 4, 0xffff_ffff);
    pair.driver.kick();
    const chain = expectValue(pair.device.pop());
    assert.deepEqual([lengths(chain.readable), lengths(chain.writable)], [[4], [4]]);
  });

  it('ends a loop', () => {
    const pair = makePair(4);
    pair.driver.add([dataRange(0, 1), dataRange(1, 1)], []);
    writeU16(pair.driverSetup.memory.desc, 16 + 12, 1);
    writeU16(pair.driverSetup.memory.desc, 16 + 14, 0);
    pair.driver.kick();
    const rings = pair.memory.openLeases;
    assert.equal(faultOf(pair), 'chain-length');
    assert.equal(pair.memory.openLeases, rings, 'a fault holds nothing');
  });

  it('lets chains end after a fault of a later one, without a store to the ring', () => {
    const pair = makePair(4);
    const { driver, device } = pair;
    driver.add([dataRange(0, 1)], []);
    driver.add([dataRange(1, 1)], []);
    driver.kick();
    const [first, second] = drain(pair);
    device.push(first!, 0);
    writeU16(pair.driverSetup.memory.driver, 2, 77);
    assert.equal(faultOf(pair), 'avail-index');
    assert.equal(device.push(second!, 0), device.fault);
    device.publish();
    assert.equal(readU16(pair.driverSetup.memory.device, 2), 1);
    assert.equal(device.enableKicks(), false);
    device.close();
    assert.equal(pair.memory.openLeases, 0);
  });

  it('can be reset while chains are in flight', () => {
    const pair = makePair(8);
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
    const { driver, device } = makePair(4);
    driver.add([], [dataRange(0, 4)]);
    driver.kick();
    const chain = expectValue(device.pop());
    assert.throws(() => makePair(4).device.push(chain, 0));
    device.push(chain, 4);
    assert.throws(() => device.push(chain, 4), 'pushed twice');
    driver.add([], [dataRange(0, 4)]);
    driver.kick();
    const next = device.pop();
    assert.ok(!(next instanceof QueueFault) && next !== undefined);
    assert.throws(() => device.push(next, 5), 'more than there is room for');
  });

  it('does not take a head back before the driver can see it', () => {
    const pair = makePair(2);
    const head = pair.driver.add([dataRange(0, 1)], [])!;
    pair.driver.kick();
    pair.device.push(expectValue(pair.device.pop()), 0);
    writeU16(pair.driverSetup.memory.driver, 4 + 2, head);
    writeU16(pair.driverSetup.memory.driver, 2, 2);
    assert.equal(faultOf(pair), 'head-in-flight');
  });

  it('refuses ring memory that host accesses cannot reach aligned', () => {
    const rings = makeRings(4);
    const odd = new TestArea(7, 512, { pieceBytes: 130 });
    rings.memory.add(odd);
    const open = (changed: object): string => {
      const queue = openDeviceQueue({ ...rings.setup, ...changed }, rings.memory);
      return queue instanceof QueueFault ? queue.reason : 'open';
    };
    assert.equal(open({}), 'open');
    assert.equal(open({ descAddr: odd.address(48) }), 'open');
    assert.equal(open({ descAddr: odd.address(96) }), 'ring-memory', 'in two pieces');
    assert.equal(open({ descAddr: odd.address(144) }), 'ring-memory', 'not aligned in host memory');
    assert.equal(open({ driverAddr: odd.address(1) }), 'ring-alignment');
    assert.equal(open({ size: 2 * limits.queueSizeMax }), 'queue-size');
    // The event word behind the used ring must be there too.
    assert.equal(open({ deviceAddr: rings.rings.address(rings.rings.size - 6 - 8 * 4 + 4) }), 'ring-memory');
  });
});

describe('split queue, driver half', () => {
  it('zeroes its memory, fills the tables as specified, and reuses descriptors', () => {
    const rings = makeRings(4);
    const { desc, driver: avail, device } = rings.driverSetup.memory;
    for (const part of [desc, avail, device]) part.fill(0xee);
    const driver = openDriverQueue(rings.driverSetup);
    assert.ok([desc, avail, device].every((part) => part.every((byte) => byte === 0)));
    const head = driver.add([dataRange(1, 2)], [dataRange(3, 4), dataRange(5, 6)])!;
    const words = Array.from({ length: 3 }, (_, i) => [
      readU32(desc, i * 16),
      readU32(desc, i * 16 + 4),
      readU32(desc, i * 16 + 8),
      readU16(desc, i * 16 + 12),
      readU16(desc, i * 16 + 14),
    ]);
    const hi = DATA_AREA << 16;
    assert.deepEqual(words, [
      [1, hi, 2, 1, 1],
      [3, hi, 4, 3, 2],
      [5, hi, 6, 2, 0],
    ]);
    assert.equal(driver.add([dataRange(0, 1), dataRange(0, 1)], []), undefined, 'one descriptor is left');
    const other = driver.add([dataRange(0, 1)], [])!;
    assert.deepEqual([head, other, driver.freeDescriptors], [0, 3, 0]);
    assert.equal(driver.add([dataRange(0, 1)], []), undefined);
    driver.kick();
    assert.equal(driver.kick(), false, 'nothing new');
    assert.deepEqual([readU16(avail, 2), readU16(avail, 4), readU16(avail, 6)], [2, 0, 3]);
  });

  it('continues on its ring memory from a saved state', () => {
    const pair = makePair(4, { eventIdx: true });
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

  it('refuses what its own side does wrong', () => {
    const rings = makeRings(4);
    const { driverSetup } = rings;
    const driver = openDriverQueue(driverSetup);
    const pair = { ...makePair(4), driver };
    assert.throws(() => driver.add([], []));
    assert.throws(() => driver.add([dataRange(0, 0)], []));
    assert.throws(() => driver.add(new Array(5).fill(dataRange(0, 1)), []));
    assert.throws(() => driver.add([dataRange(0, 1)], [], { indirect: indirectTable(pair, 0, 4) }), 'not negotiated');
    assert.throws(() => openDriverQueue({ ...driverSetup, size: 3 }));
    assert.throws(() => openDriverQueue({ ...driverSetup, size: 8 }));
    assert.throws(() => openDriverQueue({ ...driverSetup, descAddr: 8n }));
  });
});

describe('notification suppression', () => {
  it('compares indices modulo 2^16', () => {
    assert.equal(passesEvent(0, 1, 1), true);
    assert.equal(passesEvent(1, 1, 1), false);
    assert.equal(passesEvent(0xffff, 0, 1), true);
    assert.equal(passesEvent(0xfffe, 1, 3), true);
    assert.equal(passesEvent(0xfffe, 1, 2), false);
    assert.equal(passesEvent(5, 5, 0xffff), false);
    assert.equal(passesEvent(5, 5, 0x10000), true);
  });

  for (const eventIdx of [false, true]) {
    it(`stays silent while the peer works (event-idx ${eventIdx ? 'on' : 'off'})`, () => {
      const pair = makePair(8, { eventIdx });
      const { driver, device } = pair;
      const { driver: avail, device: used } = pair.driverSetup.memory;
      driver.add([dataRange(0, 1)], []);
      assert.equal(driver.kick(), true, 'a device that has said nothing is told');
      device.suppressKicks();
      driver.add([dataRange(0, 1)], []);
      assert.equal(driver.kick(), false);
      const chains = drain(pair);
      assert.equal(device.enableKicks(), false);
      driver.add([dataRange(0, 1)], []);
      assert.equal(driver.kick(), true);
      assert.equal(device.enableKicks(), true, 'a chain is there: do not sleep');

      driver.suppressInterrupts();
      if (eventIdx) assert.equal(driver.enableInterrupts(), false);
      device.push(chains[0]!, 0);
      device.publish();
      assert.equal(device.needsInterrupt(), eventIdx);
      device.push(chains[1]!, 0);
      device.publish();
      assert.equal(device.needsInterrupt(), false, 'the driver was told and has not asked again');
      assert.equal(driver.enableInterrupts(), true);
      driver.next();
      driver.next();
      assert.equal(driver.enableInterrupts(), false);
      device.push(drain(pair)[0]!, 0);
      assert.equal(device.needsInterrupt(), false, 'nothing is published');
      device.publish();
      assert.equal(device.needsInterrupt(), true);
      assert.equal(device.needsInterrupt(), false);
      // 2.7.7.1, 2.7.10.2: flags stay 0 with EVENT_IDX.
      driver.suppressInterrupts();
      device.suppressKicks();
      const flag = eventIdx ? 0 : 1;
      assert.deepEqual([readU16(avail, 0), readU16(used, 0)], [flag, flag]);
    });
  }

  it('ignores the other way of suppression', () => {
    const crude = makePair(4, { eventIdx: false });
    crude.driver.add([dataRange(0, 1)], []);
    crude.driver.kick();
    writeU16(crude.driverSetup.memory.driver, 4 + 2 * 4, 0x7777);
    crude.device.push(drain(crude)[0]!, 0);
    crude.device.publish();
    assert.equal(crude.device.needsInterrupt(), true);
    const fine = makePair(4, { eventIdx: true });
    fine.driver.add([dataRange(0, 1)], []);
    fine.driver.kick();
    writeU16(fine.driverSetup.memory.driver, 0, 1);
    fine.device.push(drain(fine)[0]!, 0);
    fine.device.publish();
    assert.equal(fine.device.needsInterrupt(), true);
  });

  it('decides about an interrupt by what is published, not by what is pushed', () => {
    for (const [event, wanted] of [
      [0, true],
      [1, false],
    ] as const) {
      const pair = makePair(4, { eventIdx: true });
      for (let i = 0; i < 2; i++) pair.driver.add([dataRange(i, 1)], []);
      pair.driver.kick();
      const [first, second] = drain(pair);
      pair.device.push(first!, 0);
      pair.device.publish();
      pair.device.push(second!, 0);
      writeU16(pair.driverSetup.memory.driver, 4 + 2 * 4, event);
      assert.equal(pair.device.needsInterrupt(), wanted);
    }
  });

  it('interrupts when more chains than indices were published since the last decision', () => {
    const { driver, device } = makePair(256, { eventIdx: true });
    assert.equal(driver.enableInterrupts(), false);
    // The index comes round to where it was: only the count tells.
    for (let done = 0; done < 0x10000; done++) {
      driver.add([dataRange(0, 1)], []);
      driver.kick();
      device.push(expectValue(device.pop()), 0);
      device.publish();
      expectValue(driver.next());
    }
    assert.equal(device.needsInterrupt(), true);
  });
});
