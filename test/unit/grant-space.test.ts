import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { MappedGrants } from '../../src/device/grant-space.ts';
import { limits } from '../../src/kit/limits.ts';
import {
  asDomid,
  type Domid,
  type GrantMapper,
  type GrantMapping,
  HypervisorFault,
} from '../../src/ports/hypervisor.ts';
import { type Access, type Lease, TranslateFault } from '../../src/ports/memory.ts';
import { grantAddressHi, grantAddressLo } from '../../src/virtio-msg/xen-bus.ts';
import { FakeClock } from '../support/bridge-fakes.ts';
import { SeededRandom } from '../support/random.ts';

const domid = asDomid(7)!;
const pageBytes = 4096;

/** Maps every reference but those that are bad; byte 0 of a page holds the low byte of its reference. */
class CountingMapper implements GrantMapper {
  readonly open = new Set<object>();
  readonly bad = new Set<number>();
  readonly log: string[] = [];
  errno = 'EINVAL';
  pages = 0;

  handOver(): never {
    return assert.fail('single grants stay here');
  }

  map(of: Domid, references: Uint32Array, access: Access): GrantMapping | HypervisorFault {
    assert.equal(of, domid);
    this.log.push(`${access} ${references[0]}+${references.length}`);
    if (references.some((reference) => this.bad.has(reference))) {
      return new HypervisorFault('map', this.errno, of, references[0]!, references.length);
    }
    const bytes = new Uint8Array(references.length * pageBytes);
    const count = references.length;
    for (const [i, reference] of references.entries()) bytes[i * pageBytes] = reference & 0xff;
    const mapping = {
      bytes,
      close: () => {
        assert.ok(this.open.delete(mapping), 'a mapping is closed once');
        this.pages -= count;
      },
    };
    this.open.add(mapping);
    this.pages += count;
    return mapping;
  }

  close(): void {}
}

class Rig {
  readonly mapper = new CountingMapper();
  readonly clock = new FakeClock();
  readonly texts: string[] = [];
  readonly space: MappedGrants;

  constructor(persistent: boolean) {
    const { mapper, clock } = this;
    this.space = new MappedGrants({ mapper, domid, persistent, clock, diagnosed: (text) => this.texts.push(text) });
  }

  translate(reference: number, offset: number, length: number, access: Access = 'write', out: Uint8Array[] = []) {
    const [hi, lo] = [grantAddressHi(reference), grantAddressLo(reference, offset)];
    return this.space.translate(hi, lo, length, access, out);
  }

  lease(reference: number, length = 1, access: Access = 'write'): Lease {
    const lease = this.translate(reference, 0, length, access);
    assert.ok(!(lease instanceof TranslateFault), lease instanceof TranslateFault ? lease.reason : '');
    return lease;
  }

  fault(reference: number, offset: number, length: number, access: Access = 'write'): string {
    const fault = this.translate(reference, offset, length, access);
    assert.ok(fault instanceof TranslateFault);
    return fault.reason;
  }

  releases: number[] = [];
  release(first: number, count: number): void {
    this.space.release(first, count, (result) => this.releases.push(result));
  }
}

describe('grant space: addresses', () => {
  test('a descriptor covers as many consecutive references as its bytes touch', () => {
    const rig = new Rig(false);
    const cases: readonly (readonly [number, number, number])[] = [
      [0, 1, 1],
      [0, 4096, 1],
      [0, 4097, 2],
      [4095, 1, 1],
      [4095, 2, 2],
      [1, 8192, 3],
    ];
    for (const [offset, length, pages] of cases) {
      const out: Uint8Array[] = [];
      const lease = rig.translate(0x12_3456, offset, length, 'read', out) as Lease;
      assert.equal(rig.mapper.log.at(-1), `read ${0x12_3456}+${pages}`);
      assert.deepEqual([out.length, out[0]!.length, out[0]!.byteOffset], [1, length, offset]);
      lease.release();
      lease.release();
      assert.equal(rig.mapper.open.size, 0);
    }
  });

  test('references use all 32 bits', () => {
    const rig = new Rig(false);
    const out: Uint8Array[] = [];
    for (const reference of [1, 0xf_ffff, 0x10_0000, 0x8000_0000, 0xffff_ffff]) {
      (rig.translate(reference, 7, 1, 'write', out) as Lease).release();
      assert.equal(rig.mapper.log.at(-1), `write ${reference}+1`);
    }
  });

  test('what no grant can be is a fault, and is not mapped', () => {
    const rig = new Rig(true);
    assert.match(rig.fault(0, 0, 1), /grant reference 0 of domain 7 names no grant/);
    assert.match(rig.fault(0xffff_ffff, 0, 4097), /references have 32 bits/);
    assert.match(rig.fault(1, 0, limits.grantRunMaxPages * pageBytes + 1), /names 1026 grants .* at most 1025/);
    assert.match(rig.fault(1, 4095, 0xffff_ffff), /at most 1025/);
    const fault = rig.space.translate(0xffff_ffff, 0, 1, 'read', []);
    assert.ok(fault instanceof TranslateFault && /32 bits/.test(fault.reason));
    assert.deepEqual([rig.mapper.log, rig.space.snapshot().faults], [[], 5]);
  });

  test('a reference that does not map: which one, whose, the errno and what to check', () => {
    const rig = new Rig(false);
    rig.mapper.bad.add(105);
    const text = rig.fault(100, 0, 9 * pageBytes, 'read');
    assert.match(
      text,
      /^grant reference 105 of domain 7 \(page 6 of 9\) cannot be mapped for reading: map gives EINVAL; check that domain 7 granted it/,
    );
    assert.deepEqual([rig.texts, rig.mapper.open.size], [[text], 0]);
    rig.mapper.errno = 'ENOMEM';
    const calls = rig.mapper.log.length;
    assert.match(rig.fault(105, 0, 1), /map gives ENOMEM; the side that maps is short of memory/);
    assert.equal(rig.mapper.log.length, calls + 1, 'there is no bad one to look for');
  });

  test('pages in use are bounded', () => {
    const rig = new Rig(false);
    const leases: Lease[] = [];
    const run = 1024;
    for (let i = 0; i < limits.grantMappedMaxPages / run; i++) leases.push(rig.lease(1 + i * run, run * pageBytes));
    assert.match(rig.fault(9_999_999, 0, 1), /more than 16384 pages of domain 7/);
    leases.pop()!.release();
    leases.push(rig.lease(9_999_999));
    for (const lease of leases) lease.release();
    assert.deepEqual([rig.mapper.pages, rig.space.snapshot().mappedPages], [0, 0]);
  });
});

describe('grant space: kept mappings', () => {
  test('the same or a shorter run is found again, for the same access or less', () => {
    const rig = new Rig(true);
    rig.lease(10, 3 * pageBytes).release();
    rig.lease(10, 2 * pageBytes).release();
    rig.lease(10, 100, 'read').release();
    assert.deepEqual(rig.mapper.log, ['write 10+3']);
    rig.lease(20, 1, 'read').release();
    rig.lease(20, 1, 'write').release();
    rig.lease(10, 4 * pageBytes).release();
    assert.deepEqual(rig.mapper.log, ['write 10+3', 'read 20+1', 'write 20+1', 'write 10+4']);
    const { hits, misses, mappedPages } = rig.space.snapshot();
    assert.deepEqual([hits, misses, mappedPages], [2, 4, 6]);
    assert.equal(rig.mapper.pages, 6, 'the shorter one is unmapped');
  });

  test('a run that is replaced while it is used stays until it is not', () => {
    const rig = new Rig(true);
    const short = rig.lease(10, 1);
    rig.lease(10, 2 * pageBytes).release();
    assert.equal(rig.mapper.pages, 3);
    short.release();
    assert.equal(rig.mapper.pages, 2);
  });

  test('beyond the bound the least recently used one goes, and none that is in use', () => {
    const rig = new Rig(true);
    const used = rig.lease(1_000_000);
    for (let i = 1; i < limits.grantCacheMaxPages; i++) rig.lease(i).release();
    rig.lease(1).release();
    assert.equal(rig.mapper.pages, limits.grantCacheMaxPages);
    rig.lease(2_000_000).release();
    assert.deepEqual([rig.mapper.pages, rig.space.snapshot().evictions], [limits.grantCacheMaxPages, 1]);
    const misses = rig.space.snapshot().misses;
    rig.lease(1).release();
    assert.equal(rig.space.snapshot().misses, misses, 'it was used of late');
    rig.lease(2).release();
    assert.equal(rig.space.snapshot().misses, misses + 1, 'it was the oldest');
    used.release();
    rig.lease(1_000_000).release();
    assert.equal(rig.space.snapshot().misses, misses + 1, 'it was in use');
  });

  test('what does not fit beside those in use is mapped for one descriptor', () => {
    const rig = new Rig(true);
    const leases = Array.from({ length: limits.grantCacheMaxPages }, (_, i) => rig.lease(1 + i));
    rig.lease(1_000_000).release();
    assert.equal(rig.mapper.pages, limits.grantCacheMaxPages);
    for (const lease of leases) lease.release();
    assert.equal(rig.mapper.pages, limits.grantCacheMaxPages);
    rig.space.close();
    assert.equal(rig.mapper.pages, 0);
  });
});

describe('grant space: releases', () => {
  test('every run that overlaps is unmapped, the others stay', () => {
    const rig = new Rig(true);
    for (const first of [10, 14, 20]) rig.lease(first, 4 * pageBytes).release();
    rig.lease(14, 1, 'read').release();
    rig.release(13, 2);
    assert.deepEqual([rig.releases, rig.mapper.pages], [[0], 4]);
    rig.release(1, 0xffff_ffff);
    assert.deepEqual([rig.releases, rig.mapper.pages], [[0, 0], 0]);
  });

  test('numbers that are none are EINVAL', () => {
    const rig = new Rig(true);
    rig.release(0, 1);
    rig.release(1, 0);
    rig.release(2, 0xffff_ffff);
    assert.deepEqual(rig.releases, [22, 22, 22]);
  });

  test('a run in use is waited for, also without persistent grants, and a new mapping is not', () => {
    for (const persistent of [true, false]) {
      const rig = new Rig(persistent);
      const lease = rig.lease(10);
      rig.release(10, 1);
      rig.release(10, 1);
      const later = rig.lease(10);
      assert.deepEqual([rig.releases, rig.mapper.pages], [[], 2]);
      lease.release();
      assert.deepEqual(rig.releases, [0, 0]);
      later.release();
      rig.space.close();
      assert.deepEqual([rig.mapper.pages, rig.clock.timers], [0, 0]);
    }
  });

  test('in bounded time, and no more than some at once', () => {
    const rig = new Rig(true);
    const lease = rig.lease(10);
    for (let i = 0; i <= limits.grantReleasesWaiting; i++) rig.release(10, 1);
    assert.deepEqual(rig.releases, [16]);
    rig.clock.advance(limits.regionRemovalTimeoutMs);
    assert.equal(rig.releases.length, limits.grantReleasesWaiting + 1);
    assert.ok(rig.releases.every((result) => result === 16));
    rig.release(10, 1);
    lease.release();
    assert.deepEqual([rig.releases.at(-1), rig.mapper.pages, rig.clock.timers], [0, 0, 0]);
  });
});

test('grant space: after close nothing is mapped any more, what is used goes with its lease', () => {
  const rig = new Rig(true);
  const lease = rig.lease(10);
  rig.lease(11).release();
  rig.release(10, 1);
  rig.space.close();
  rig.space.close();
  assert.deepEqual([rig.mapper.pages, rig.clock.timers], [1, 0]);
  assert.match(rig.fault(12, 0, 1), /the connection of domain 7 has ended/);
  lease.release();
  assert.deepEqual([rig.mapper.pages, rig.releases], [0, []]);
});

test('grant space: any order of calls keeps its books', () => {
  for (let seed = 1; seed <= 60; seed++) {
    const random = new SeededRandom(seed);
    const rig = new Rig(seed % 3 !== 0);
    const leases: Lease[] = [];
    let asked = 0;
    for (let i = 0; i < 400; i++) {
      const first = 1 + random.below(24);
      switch (random.below(6)) {
        case 0:
          rig.mapper.bad.add(1 + random.below(24));
          break;
        case 1:
          rig.mapper.bad.clear();
          break;
        case 2:
          asked += 1;
          rig.release(first, 1 + random.below(8));
          break;
        case 3:
          leases.splice(random.below(leases.length + 1), 1)[0]?.release();
          break;
        default: {
          const out: Uint8Array[] = [];
          const offset = random.below(pageBytes);
          const lease = rig.translate(
            first,
            offset,
            1 + random.below(3 * pageBytes),
            random.below(2) ? 'read' : 'write',
            out,
          );
          if (lease instanceof TranslateFault) break;
          leases.push(lease);
          const [part] = out;
          assert.equal(part!.buffer.byteLength >= part!.byteOffset + part!.length, true);
          assert.equal(new Uint8Array(part!.buffer)[0], first & 0xff, 'the right pages');
        }
      }
      assert.equal(rig.space.snapshot().mappedPages, rig.mapper.pages);
    }
    for (const lease of leases) lease.release();
    assert.equal(rig.releases.length, asked, 'every release is answered when nothing is in use');
    rig.release(1, 100);
    assert.deepEqual([rig.mapper.pages, rig.clock.timers], [0, 0]);
  }
});
