import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { inflightBytes, openInflightLog } from '../../src/virtio/inflight.ts';
import { QueueFault } from '../../src/virtio/queue.ts';
import { openDeviceQueue, openDriverQueue } from '../../src/virtio/rings.ts';
import { readU16, readU32, readU64, writeU16, writeU32 } from '../../src/wire/bytes.ts';
import { killEverywhere } from '../support/virtqueue-crash.ts';
import {
  DATA_AREA,
  dataRange,
  expectValue,
  makePair,
  makeRings,
  openDevice,
  type Rings,
  ringKinds,
} from '../support/virtqueue-pair.ts';

for (const kind of ringKinds) {
  describe(`in-flight log, ${kind.name}`, () => {
    it('completes every chain once, whichever store a kill follows', () => {
      let kills = 0;
      let twice = 0;
      let batch = 0;
      for (let seed = 1; seed <= 20; seed++) {
        const sum = killEverywhere(kind, seed, []);
        kills += sum.kills;
        twice += sum.twice;
        batch = Math.max(batch, sum.batch);
      }
      assert.ok(kills > 3000, `${kills} kills`);
      assert.ok(twice > 1000, `${twice} chains continued`);
      assert.ok(batch >= 4, `batches up to ${batch}`);
    });

    it('stands further kills, also during recovery', () => {
      for (let again = 1; again <= 12; again++) {
        for (let seed = 40; seed <= 41; seed++) killEverywhere(kind, seed, [again, again, 1, 2, 3, again]);
      }
    });

    it('says that an interrupt is due after a restart', () => {
      const rings = makeRings(4, { ...kind, eventIdx: true });
      const driver = openDriverQueue(rings.driverSetup);
      const bytes = new Uint8Array(inflightBytes(kind.layout, 4));
      const first = openDevice(rings, openInflightLog(kind.layout, bytes, 4));
      driver.add([dataRange(0, 1)], []);
      driver.kick();
      assert.equal(driver.enableInterrupts(), false);
      first.push(expectValue(first.pop()), 0);
      first.publish();
      const second = openDevice(rings, openInflightLog(kind.layout, bytes, 4));
      assert.equal(second.needsInterrupt(), true);
      assert.equal(second.needsInterrupt(), false);
      assert.equal(second.pop(), undefined);
    });
  });
}

describe('in-flight log of a split queue', () => {
  it('has the layout of the vhost-user protocol', () => {
    const rings = makeRings(4);
    const driver = openDriverQueue(rings.driverSetup);
    const bytes = new Uint8Array(inflightBytes('split', 4)).fill(0xaa);
    assert.equal(bytes.length, 16 + 4 * 16);
    const log = openInflightLog('split', bytes, 4);
    assert.equal(log.resumable, false);
    const device = openDevice(rings, log);
    assert.equal(log.resumable, true);
    assert.deepEqual([readU64(bytes, 0), readU16(bytes, 8), readU16(bytes, 10)], [0n, 1, 4]);
    for (let i = 0; i < 3; i++) driver.add([dataRange(i, 1)], []);
    driver.kick();
    const chains = [0, 1, 2].map(() => expectValue(device.pop()));
    assert.deepEqual(
      [0, 1, 2, 3].map((i) => bytes[16 + i * 16]),
      [1, 1, 1, 0],
    );
    assert.deepEqual(
      [0, 1, 2].map((i) => readU64(bytes, 16 + i * 16 + 8)),
      [0n, 1n, 2n],
    );
    device.push(chains[2]!, 0);
    device.push(chains[0]!, 0);
    assert.deepEqual([readU16(bytes, 12), readU16(bytes, 16 + 6), bytes[16], bytes[48]], [0, 2, 1, 1]);
    assert.equal(readU16(bytes, 14), 0);
    device.publish();
    assert.deepEqual([readU16(bytes, 14), bytes[16], bytes[32], bytes[48]], [2, 0, 1, 0]);
    device.abandon(chains[1]!);
    assert.equal(bytes[32], 1, 'an abandoned chain stays in the log');
    log.reset();
    assert.equal(log.resumable, false);
  });

  it('reads the descriptors of a chain in flight again, and judges them again', () => {
    const { driver, memory, setup, rings, driverSetup } = makePair(4);
    const bytes = new Uint8Array(inflightBytes('split', 4));
    const first = openDevice({ memory, setup } as Rings, openInflightLog('split', bytes, 4));
    driver.add([dataRange(0, 1)], []);
    driver.kick();
    first.abandon(expectValue(first.pop()));
    first.close();
    writeU32(rings.bytes, 4, 0x7fff_0000);
    // The driver may also change the available ring: it is not read for chains in flight.
    writeU16(driverSetup.memory.driver, 4, 3);
    const second = openDevice({ memory, setup } as Rings, openInflightLog('split', bytes, 4));
    assert.equal(second.enableKicks(), true, 'a chain to continue counts as available');
    const fault = second.pop();
    assert.ok(fault instanceof QueueFault);
    assert.equal(fault.reason, 'address');
    second.close();
  });

  it('refuses to offer a head in flight again after a restart', () => {
    const { driver, memory, setup, driverSetup } = makePair(4);
    const bytes = new Uint8Array(inflightBytes('split', 4));
    const first = openDevice({ memory, setup } as Rings, openInflightLog('split', bytes, 4));
    const head = driver.add([dataRange(0, 1)], []);
    driver.kick();
    expectValue(first.pop());
    const second = openDevice({ memory, setup } as Rings, openInflightLog('split', bytes, 4));
    expectValue(second.pop());
    writeU16(driverSetup.memory.driver, 4 + 2, head!);
    writeU16(driverSetup.memory.driver, 2, 2);
    const fault = second.pop();
    assert.ok(fault instanceof QueueFault);
    assert.equal(fault.reason, 'head-in-flight');
  });

  for (const [what, spoil] of [
    ['used.idx far ahead', (_log: Uint8Array, used: Uint8Array) => writeU16(used, 2, 9)],
    [
      'a list that leaves the table',
      (log: Uint8Array, used: Uint8Array) => {
        writeU16(log, 12, 77);
        writeU16(used, 2, 1);
      },
    ],
  ] as const) {
    it(`faults, without a lease, on ${what}`, () => {
      const rings = makeRings(4);
      const bytes = new Uint8Array(inflightBytes('split', 4));
      openDevice(rings, openInflightLog('split', bytes, 4)).close();
      spoil(bytes, rings.driverSetup.memory.device);
      const fault = openDeviceQueue(rings.setup, rings.memory, openInflightLog('split', bytes, 4));
      assert.ok(fault instanceof QueueFault);
      assert.equal(fault.reason, 'log-inconsistent');
      assert.equal(rings.memory.openLeases, 0);
    });
  }
});

const openLog = (bytes: Uint8Array) => openInflightLog('packed', bytes, 4);

describe('in-flight log of a packed queue', () => {
  it('has the layout of the vhost-user protocol', () => {
    const rings = makeRings(4, { layout: 'packed' });
    const driver = openDriverQueue(rings.driverSetup);
    const bytes = new Uint8Array(inflightBytes('packed', 4)).fill(0xaa);
    assert.equal(bytes.length, 32 + 4 * 32);
    const log = openLog(bytes);
    assert.equal(log.resumable, false);
    const device = openDevice(rings, log);
    assert.equal(log.resumable, true);
    const head = () => [12, 14, 16, 18].map((at) => readU16(bytes, at)).concat(bytes[20]!, bytes[21]!);
    assert.deepEqual([readU64(bytes, 0), readU16(bytes, 8), readU16(bytes, 10)], [0n, 1, 4]);
    assert.deepEqual(head(), [0, 0, 0, 0, 1, 1]);
    driver.add([dataRange(5, 1)], [dataRange(6, 2)]);
    driver.add([dataRange(7, 3)], []);
    driver.kick();
    const chains = [0, 1].map(() => expectValue(device.pop()));
    const entry = (i: number) => {
      const at = 32 + i * 32;
      const [next, last, num] = [2, 4, 6].map((offset) => readU16(bytes, at + offset));
      return { inflight: bytes[at], next, last, num, counter: readU64(bytes, at + 8) };
    };
    assert.deepEqual(entry(0), { inflight: 1, next: 1, last: 1, num: 2, counter: 0n });
    assert.deepEqual(entry(2), { inflight: 1, next: 3, last: 2, num: 1, counter: 1n });
    assert.deepEqual(head(), [3, 3, 0, 0, 1, 1]);
    const { desc } = rings.driverSetup.memory;
    for (const i of [0, 1, 2]) {
      const at = 32 + i * 32;
      assert.deepEqual(bytes.slice(at + 24, at + 32), desc.slice(i * 16, i * 16 + 8), 'address');
      assert.equal(readU32(bytes, at + 20), readU32(desc, i * 16 + 8), 'length');
      assert.equal(readU32(bytes, at + 16), readU32(desc, i * 16 + 12), 'id and flags');
    }
    device.push(chains[1]!, 0);
    device.push(chains[0]!, 2);
    assert.deepEqual(head(), [3, 3, 0, 0, 1, 1], 'nothing is certain before the batch is published');
    device.publish();
    assert.deepEqual(head(), [0, 0, 3, 3, 1, 1]);
    assert.deepEqual([entry(0).inflight, entry(2).inflight, entry(1).next, entry(2).next], [0, 0, 2, 3]);
    driver.next();
    driver.next();
    driver.add([dataRange(0, 1), dataRange(1, 1)], []);
    driver.kick();
    device.push(expectValue(device.pop()), 0);
    device.publish();
    assert.deepEqual(head().slice(2), [1, 1, 0, 0], 'the ring begins anew');
    log.reset();
    assert.equal(log.resumable, false);
  });

  it("keeps the descriptors: those in the ring are gone, or are the driver's to change", () => {
    const pair = makePair(4, { layout: 'packed' });
    const bytes = new Uint8Array(inflightBytes('packed', 4));
    const first = openDevice(pair, openLog(bytes));
    const tokens = [1, 2, 3].map((length) => pair.driver.add([dataRange(0, length)], []));
    pair.driver.kick();
    const chains = [0, 1, 2].map(() => expectValue(first.pop()));
    first.push(chains[2]!, 0);
    first.publish();
    // The used descriptor took the place of the first one; the driver spoils the others.
    pair.driverSetup.memory.desc.fill(0xff, 16, 48);
    const second = openDevice(pair, openLog(bytes));
    assert.equal(second.enableKicks(), true, 'a chain to continue counts as available');
    const again = [0, 1].map(() => expectValue(second.pop()));
    assert.deepEqual(
      again.map(({ head, readableBytes }) => [head, readableBytes]),
      [
        [tokens[0], 1],
        [tokens[1], 2],
      ],
    );
    for (const chain of again) second.push(chain, 0);
    second.publish();
    const used = [0, 1, 2].map(() => expectValue(pair.driver.next()).token);
    assert.deepEqual(used, [tokens[2], tokens[0], tokens[1]]);
  });

  it('judges a chain in flight again', () => {
    const pair = makePair(4, { layout: 'packed' });
    const bytes = new Uint8Array(inflightBytes('packed', 4));
    const first = openDevice(pair, openLog(bytes));
    pair.driver.add([dataRange(0, 1)], []);
    pair.driver.kick();
    first.abandon(expectValue(first.pop()));
    first.close();
    pair.memory.areas.delete(DATA_AREA);
    const second = openDevice(pair, openLog(bytes));
    const fault = second.pop();
    assert.ok(fault instanceof QueueFault);
    assert.equal(fault.reason, 'address');
  });

  it('refuses to offer a buffer id in flight again after a restart', () => {
    const pair = makePair(4, { layout: 'packed' });
    const bytes = new Uint8Array(inflightBytes('packed', 4));
    const first = openDevice(pair, openLog(bytes));
    pair.driver.add([dataRange(0, 1)], []);
    pair.driver.kick();
    expectValue(first.pop());
    const second = openDevice(pair, openLog(bytes));
    const { desc } = pair.driverSetup.memory;
    desc.copyWithin(16, 0, 16);
    expectValue(second.pop());
    const fault = second.pop();
    assert.ok(fault instanceof QueueFault);
    assert.equal(fault.reason, 'head-in-flight');
  });

  for (const [what, spoil] of [
    ['a position outside the ring', (log: Uint8Array) => writeU16(log, 18, 4)],
    ['a wrap counter of 2', (log: Uint8Array) => log.fill(2, 21, 22)],
    ['a free list that leaves the table', (log: Uint8Array) => writeU16(log, 14, 77)],
    ['a free list with a loop', (log: Uint8Array) => writeU16(log, 32 + 3 * 32 + 2, 2)],
    ['a chain of no entries', (log: Uint8Array) => writeU16(log, 32 + 6, 0)],
    ['a chain that ends elsewhere', (log: Uint8Array) => writeU16(log, 32 + 4, 1)],
    ['a chain of free entries', (log: Uint8Array) => writeU16(log, 32 + 6, 2)],
    ['an entry that nobody has', (log: Uint8Array) => log.fill(0, 32, 33)],
  ] as const) {
    it(`faults, without a lease, on ${what}`, () => {
      const pair = makePair(4, { layout: 'packed' });
      const bytes = new Uint8Array(inflightBytes('packed', 4));
      const first = openDevice(pair, openLog(bytes));
      pair.driver.add([dataRange(0, 1)], []);
      pair.driver.kick();
      first.abandon(expectValue(first.pop()));
      first.close();
      pair.device.close();
      assert.equal(pair.memory.openLeases, 0);
      spoil(bytes);
      const fault = openDeviceQueue(pair.setup, pair.memory, openLog(bytes));
      assert.ok(fault instanceof QueueFault);
      assert.equal(fault.reason, 'log-inconsistent');
      assert.equal(pair.memory.openLeases, 0);
    });
  }
});
