import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { type RegionWatcher, SharedMemory, type SharedRegion } from '../../src/device/shared-memory.ts';
import type { GrantSpace } from '../../src/ports/bus.ts';
import { TranslateFault } from '../../src/ports/memory.ts';
import { FakeClock, FakeMemory, FakeResources } from '../support/bridge-fakes.ts';

const user = { onRevoked: () => {} };
const add = { peer: 0, area: 1, flags: 0, reference: 5, domain: 0, offset: 0n, length: 8192n };

class XenLikeResources extends FakeResources {
  readonly asked: string[] = [];
  readonly domains: number[] = [];
  readonly grants: GrantSpace = {
    translate: (hi, lo, length, access) => {
      this.asked.push(`${hi.toString(16)} ${lo.toString(16)} ${length} ${access}`);
      return { release: () => {} };
    },
    release: () => {},
    snapshot: () => ({ persistent: false, hits: 0, misses: 0, evictions: 0, faults: 0, mappedPages: 0 }),
    close: () => {},
  };

  override openRegion(reference: number, offset: bigint, length: bigint, _readOnly?: boolean, domain = 0) {
    this.domains.push(domain);
    return super.openRegion(reference, offset, length);
  }
}

class Watcher implements RegionWatcher {
  readonly log: string[] = [];
  result = 0;

  regionAdded({ area, readOnly, memory, foreign }: SharedRegion, done: (result: number) => void): void {
    const what = foreign === undefined ? memory.bytes.length : Object.values(foreign).join(' ');
    this.log.push(`+${area} ${readOnly ? 'ro' : 'rw'} ${what}`);
    done(this.result);
  }

  regionRemoved(area: number, done: (result: number) => void): void {
    this.log.push(`-${area}`);
    done(this.result);
  }
}

function rig(byPeer = false) {
  const resources = new XenLikeResources();
  const memory = new SharedMemory(resources, new FakeClock(), byPeer);
  const results: number[] = [];
  const done = (result: number): void => void results.push(result);
  return {
    resources,
    memory,
    results,
    add: (changes: Partial<typeof add> = {}): number => {
      memory.add({ ...add, ...changes }, done);
      return results.at(-1)!;
    },
    remove: (area: number): number => {
      memory.remove({ peer: 0, area, reserved: 0 }, done);
      return results.at(-1)!;
    },
    fault: (hi: number, lo = 0, peer = 0): string => {
      const fault = memory.spaceFor(peer, user).translate(hi, lo, 16, 'read', []);
      assert.ok(fault instanceof TranslateFault);
      return fault.reason;
    },
  };
}

describe('shared memory on Xen: addresses', () => {
  test('bit 63 is a grant, all else an area', () => {
    const r = rig();
    r.resources.memories.set(5, new FakeMemory(new Uint8Array(8192)));
    assert.equal(r.add(), 0);
    const space = r.memory.spaceFor(0, user);
    const out: Uint8Array[] = [];
    assert.ok(!(space.translate(0x1_0000, 8, 16, 'write', out) instanceof TranslateFault));
    assert.ok(!(space.translate(0x8000_0001, 0x1234, 16, 'write', out) instanceof TranslateFault));
    assert.deepEqual([out.length, r.resources.asked], [1, ['80000001 1234 16 write']]);
    assert.match(r.fault(0x2_0000), /no region has area id 2/);
  });

  test('a driver that shares nothing is told what is missing', () => {
    assert.match(rig().fault(0x4, 0x1000), /shares no pool and 0x0000000400001000 is no grant address: .*REGION_ADD/);
  });

  test('without grants, and for devices that another domain serves, bit 63 is refused in words', () => {
    const loopback = new SharedMemory(new FakeResources(), new FakeClock(), false);
    const fault = loopback.spaceFor(0, user).translate(0x8000_0000, 0, 1, 'read', []);
    assert.ok(fault instanceof TranslateFault && /names a grant: this bus has none/.test(fault.reason));
    assert.match(rig(true).fault(0x8000_0000, 0, 3), /use pools only/);
  });
});

describe('shared memory on Xen: regions of another domain', () => {
  test('are named to those who pass them on, and not mapped', () => {
    const r = rig();
    assert.equal(r.add({ domain: 9 }), 95, 'nobody passes it on');
    const watcher = new Watcher();
    r.memory.watch(watcher);
    assert.equal(r.add({ domain: 9, flags: 1 }), 0);
    assert.equal(r.add(), 17, 'the area is in use');
    assert.equal(r.add({ domain: 8 }), 17);
    assert.match(r.fault(0x1_0000), /area 1, which is granted to domain 9 only/);
    const late = new Watcher();
    r.memory.watch(late);
    assert.deepEqual([watcher.log, late.log], [['+1 ro 9 5 8192'], ['+1 ro 9 5 8192']]);
    assert.equal(r.remove(1), 0);
    assert.equal(r.remove(1), 2);
    assert.deepEqual([watcher.log.at(-1), r.resources.domains], ['-1', []]);
  });

  test('one that is refused leaves its area free', () => {
    const r = rig();
    const watcher = new Watcher();
    watcher.result = 12;
    r.memory.watch(watcher);
    assert.equal(r.add({ domain: 9 }), 12);
    watcher.result = 0;
    assert.equal(r.add({ domain: 9 }), 0);
  });

  test('fields are checked, and how many there are', () => {
    const r = rig();
    r.memory.watch(new Watcher());
    assert.equal(r.add({ domain: 0x7ff0 }), 22);
    assert.equal(r.add({ domain: 9, reference: 0 }), 22);
    assert.equal(r.add({ domain: 9, offset: 4096n }), 22);
    assert.equal(r.add({ domain: 9, length: 100n }), 22);
    for (let area = 1; area <= 64; area++) assert.equal(r.add({ domain: 9, area }), 0);
    assert.equal(r.add({ domain: 9, area: 65 }), 28);
  });

  test('the side that serves devices maps the memory of the domain that is named', () => {
    const r = rig(true);
    r.resources.memories.set(5, new FakeMemory(new Uint8Array(8192)));
    assert.equal(r.add({ peer: 2, domain: 9 }), 0);
    assert.deepEqual(r.resources.domains, [9]);
  });
});
