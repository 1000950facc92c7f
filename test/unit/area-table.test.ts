import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { AreaTable } from '../../src/device/area-table.ts';
import { limits } from '../../src/kit/limits.ts';
import { type Access, type Lease, TranslateFault } from '../../src/ports/memory.ts';
import { splitU64 } from '../../src/wire/bytes.ts';
import { FakeClock, FakeMemory } from '../support/bridge-fakes.ts';

class Rig {
  readonly clock = new FakeClock();
  readonly table = new AreaTable(this.clock);
  readonly revoked: string[] = [];

  add(area: number, length = 4096, readOnly = false): FakeMemory {
    assert.equal(this.table.check(area, length), undefined);
    const memory = new FakeMemory(Uint8Array.from({ length }, (_, i) => i & 0xff));
    this.table.add(area, memory, readOnly);
    return memory;
  }

  user(name: string) {
    const space = this.table.spaceFor({ onRevoked: (area) => this.revoked.push(`${name} ${area}`) });
    return {
      translate: (address: bigint, length: number, access: Access = 'read', out: Uint8Array[] = []) => {
        const { hi, lo } = splitU64(address);
        return space.translate(hi, lo, length, access, out);
      },
      lease: (address: bigint, length = 16): Lease => {
        const { hi, lo } = splitU64(address);
        const lease = space.translate(hi, lo, length, 'read', []);
        assert.ok(!(lease instanceof TranslateFault), 'the address is good');
        return lease;
      },
    };
  }

  counts(): number[] {
    return [this.table.regions, this.table.regionBytes, this.table.regionsDraining];
  }
}

const at = (area: number, offset: number): bigint => (BigInt(area) << 48n) | BigInt(offset);

describe('area table: addresses', () => {
  test('an address is area << 48 | offset; the bytes are those of the region, without a copy', () => {
    const rig = new Rig();
    const memory = rig.add(1);
    const top = rig.add(0x7fff);
    const out: Uint8Array[] = [];
    const user = rig.user('a');
    assert.ok(!(user.translate(at(1, 5), 3, 'read', out) instanceof TranslateFault));
    assert.ok(!(user.translate(at(0x7fff, 0), 4096, 'write', out) instanceof TranslateFault));
    assert.deepEqual([...(out[0] ?? [])], [5, 6, 7]);
    assert.equal(out[0]?.buffer, memory.bytes.buffer);
    assert.equal(out[1]?.buffer, top.bytes.buffer);
  });

  test('nothing outside a region is reached', () => {
    const rig = new Rig();
    rig.add(1);
    rig.add(2);
    const user = rig.user('a');
    const out: Uint8Array[] = [];
    const bad: [bigint, number][] = [
      [at(1, 4096), 1],
      [at(1, 4095), 2],
      [at(1, 0), 4097],
      [at(1, 0), 0xffffffff],
      [at(1, 0), 0],
      [at(1, 0x7fffffff), 1],
      [at(1, 0x80000000), 1],
      [at(1, 0xffffffff), 1],
      [at(1, 0x1_0000_0000), 1],
      [at(1, 0xffff_ffff_ffff), 1],
      [at(1, 0xffff_ffff_ffff), 2],
      [at(3, 0), 1],
      [at(0, 0), 1],
      [0n, 1],
      [at(0x8000, 0), 1],
      [at(0x8001, 0), 1],
      [at(0xffff, 0), 1],
      [0xffff_ffff_ffff_ffffn, 1],
      [1n << 63n, 1],
    ];
    for (const [address, length] of bad) {
      assert.ok(user.translate(address, length, 'read', out) instanceof TranslateFault, `0x${address.toString(16)}`);
    }
    assert.deepEqual(out, []);
    assert.ok(!(user.translate(at(1, 4095), 1) instanceof TranslateFault));
  });

  test('a read-only region is not written', () => {
    const rig = new Rig();
    rig.add(1, 4096, true);
    const user = rig.user('a');
    const out: Uint8Array[] = [];
    const fault = user.translate(at(1, 0), 1, 'write', out);
    assert.ok(fault instanceof TranslateFault);
    assert.match(fault.reason, /read-only/);
    assert.deepEqual(out, []);
    assert.ok(!(user.translate(at(1, 0), 1, 'read') instanceof TranslateFault));
  });
});

describe('area table: limits', () => {
  test('area ids and sizes out of range are EINVAL, a used id is EEXIST', () => {
    const { table } = new Rig();
    for (const area of [0, 0x8000, 0xffff, -1]) assert.equal(table.check(area, 4096), 'EINVAL');
    assert.equal(table.check(1, 0), 'EINVAL');
    assert.equal(table.check(1, limits.regionMaxBytes), undefined);
    assert.equal(table.check(1, limits.regionMaxBytes + 1), 'EINVAL');
    table.add(1, new FakeMemory(new Uint8Array(1)), false);
    assert.equal(table.check(1, 4096), 'EEXIST');
  });

  test('the number of regions is bounded, those that still drain included', () => {
    const rig = new Rig();
    for (let area = 1; area <= limits.regionsPerBus; area++) rig.add(area, 16);
    assert.equal(rig.table.check(1000, 16), 'ENOSPC');
    const lease = rig.user('a').lease(at(1, 0));
    rig.table.remove(1, () => {});
    assert.equal(rig.table.check(1000, 16), 'ENOSPC');
    assert.equal(rig.table.check(1, 16), 'EEXIST', 'the id rests as well');
    lease.release();
    assert.equal(rig.table.check(1000, 16), undefined);
    assert.equal(rig.table.check(1, 16), undefined);
  });

  test('the bytes are bounded in total', () => {
    const rig = new Rig();
    // Only `length` counts, so the memory need not exist.
    const huge = (): FakeMemory => new FakeMemory({ length: limits.regionMaxBytes } as Uint8Array);
    const fits = limits.regionTotalMaxBytes / limits.regionMaxBytes;
    for (let area = 1; area <= fits; area++) rig.table.add(area, huge(), false);
    assert.equal(rig.table.check(100, 1), 'ENOSPC');
    rig.table.remove(1, () => {});
    assert.equal(rig.table.check(100, limits.regionMaxBytes), undefined);
    rig.table.clear();
    assert.deepEqual(rig.counts(), [0, 0, 0]);
  });
});

describe('area table: removal', () => {
  test('an unused region goes at once; an unknown one is ENOENT', () => {
    const rig = new Rig();
    const memory = rig.add(1);
    const done: unknown[] = [];
    rig.table.remove(1, (error) => done.push(error));
    rig.table.remove(1, (error) => done.push(error));
    assert.deepEqual(done, [undefined, 'ENOENT']);
    assert.ok(memory.closed);
    assert.deepEqual(rig.counts(), [0, 0, 0]);
    assert.equal(rig.clock.timers, 0);
  });

  test('a region in use is closed for new users at once, and unmapped with the last lease, not earlier', () => {
    const rig = new Rig();
    const memory = rig.add(1);
    const [a, b] = [rig.user('a'), rig.user('b')];
    const leases = [a.lease(at(1, 0)), a.lease(at(1, 64)), b.lease(at(1, 0))];
    const done: unknown[] = [];
    rig.table.remove(1, (error) => done.push(error));
    assert.ok(a.translate(at(1, 0), 1) instanceof TranslateFault);
    assert.deepEqual(rig.counts(), [0, 4096, 1]);
    for (const lease of leases) {
      assert.equal(memory.closed, false);
      assert.deepEqual(done, []);
      lease.release();
      lease.release();
    }
    assert.ok(memory.closed);
    assert.deepEqual(done, [undefined]);
    assert.deepEqual([rig.counts(), rig.clock.timers, rig.revoked], [[0, 0, 0], 0, []]);
  });

  test('after a bounded wait the answer is EBUSY and those who still use it are told, each once', () => {
    const rig = new Rig();
    const memory = rig.add(1);
    const [a, b, c] = [rig.user('a'), rig.user('b'), rig.user('c')];
    const leases = [a.lease(at(1, 0)), a.lease(at(1, 8)), b.lease(at(1, 0)), c.lease(at(1, 0))];
    const done: unknown[] = [];
    rig.table.remove(1, (error) => done.push(error));
    leases[3]?.release();
    rig.clock.advance(limits.regionRemovalTimeoutMs - 1);
    assert.deepEqual(done, []);
    rig.clock.advance(1);
    assert.deepEqual([done, rig.revoked], [['EBUSY'], ['a 1', 'b 1']]);
    assert.equal(memory.closed, false);
    for (const lease of leases) lease.release();
    assert.ok(memory.closed);
    assert.deepEqual([done, rig.counts()], [['EBUSY'], [0, 0, 0]]);
  });

  test('a user that lets go when told does not confuse the others', () => {
    const clock = new FakeClock();
    const table = new AreaTable(clock);
    const memory = new FakeMemory(new Uint8Array(64));
    table.add(1, memory, false);
    const told: string[] = [];
    const leases: Lease[] = [];
    for (const name of ['a', 'b']) {
      const space = table.spaceFor({
        onRevoked: () => {
          told.push(name);
          for (const lease of leases) lease.release();
        },
      });
      leases.push(space.translate(0x10000, 0, 1, 'read', []) as Lease);
    }
    table.remove(1, () => {});
    clock.advance(limits.regionRemovalTimeoutMs);
    assert.deepEqual(told, ['a', 'b']);
    assert.ok(memory.closed);
  });

  test('clear takes everything, and each region goes with its last lease', () => {
    const rig = new Rig();
    const free = rig.add(1);
    const used = rig.add(2);
    const removed = rig.add(3);
    const user = rig.user('a');
    const leases = [user.lease(at(2, 0)), user.lease(at(3, 0))];
    const done: unknown[] = [];
    rig.table.remove(3, (error) => done.push(error));
    rig.table.clear();
    assert.deepEqual([free.closed, used.closed, removed.closed], [true, false, false]);
    assert.deepEqual(rig.counts(), [0, 8192, 2]);
    assert.ok(user.translate(at(2, 0), 1) instanceof TranslateFault);
    for (const lease of leases) lease.release();
    assert.deepEqual([used.closed, removed.closed, done], [true, true, [undefined]]);
    assert.deepEqual([rig.counts(), rig.clock.timers], [[0, 0, 0], 0]);
  });
});
