import assert from 'node:assert/strict';
import { test } from 'node:test';
import { limits } from '../../src/kit/limits.ts';
import type { Closable } from '../../src/kit/scope.ts';
import { Mapping } from '../../src/libc/mapping.ts';
import {
  type GrantMapper,
  type GrantSharer,
  grantPageBytes,
  type HandedPages,
  HypervisorFault,
  type SharedPages,
} from '../../src/ports/hypervisor.ts';
import { granted, type HypervisorBench, type MakeBench, refused, withBench } from '../support/hypervisor-bench.ts';

interface Grants {
  readonly bench: HypervisorBench;
  readonly sharer: GrantSharer;
  readonly mapper: GrantMapper;
  own<T extends Closable>(resource: T): T;
  share(pages: number): SharedPages;
  map(references: ArrayLike<number>, access?: 'read' | 'write'): Uint8Array;
  refuse(references: ArrayLike<number>): HypervisorFault;
}

const pageOf = (bytes: Uint8Array, page: number): Uint8Array =>
  bytes.subarray(page * grantPageBytes, (page + 1) * grantPageBytes);

export function grantCases(make: MakeBench): void {
  const withGrants = (run: (grants: Grants) => void): Promise<void> =>
    withBench(make, (bench, own) => {
      const { guest, service } = bench;
      const sharer = own(guest.hypervisor.openGrantSharer());
      const mapper = own(service.hypervisor.openGrantMapper());
      run({
        bench,
        sharer,
        mapper,
        own,
        share: (pages) => own(sharer.share(service.domid, pages)),
        map: (references, access = 'write') =>
          own(granted(mapper.map(guest.domid, Uint32Array.from(references), access))).bytes,
        refuse: (references) => refused(mapper.map(guest.domid, Uint32Array.from(references), 'write')),
      });
    });
  memoryCases(withGrants);
  faultCases(withGrants);
  lifeCases(withGrants);
  handOverCases(withGrants);
}

type WithGrants = (run: (grants: Grants) => void) => Promise<void>;

function memoryCases(withGrants: WithGrants): void {
  test('a page is zeroed and shared both ways, atomics included', () =>
    withGrants(({ share, map }) => {
      const page = share(1);
      assert.equal(page.references.length, 1);
      assert.deepEqual(page.bytes, new Uint8Array(grantPageBytes));
      const mapped = map(page.references);
      assert.equal(mapped.length, grantPageBytes);
      mapped[0] = 1;
      page.bytes[grantPageBytes - 1] = 2;
      assert.deepEqual([page.bytes[0], mapped[grantPageBytes - 1]], [1, 2]);
      const words = new Uint32Array(page.bytes.buffer, 8, 1);
      const seen = new Uint32Array(mapped.buffer, 8, 1);
      assert.equal(Atomics.add(seen, 0, 0xffff_ffff), 0);
      assert.equal(Atomics.exchange(words, 0, 5), 0xffff_ffff);
      assert.equal(Atomics.load(seen, 0), 5);
    }));

  test('pages appear side by side in the order of the references', () =>
    withGrants(({ share, map }) => {
      const [one, other] = [share(5), share(3)];
      for (let page = 0; page < 5; page++) pageOf(one.bytes, page).fill(10 + page);
      for (let page = 0; page < 3; page++) pageOf(other.bytes, page).fill(20 + page);
      const order = [other.references[2]!, one.references[4]!, one.references[0]!, other.references[0]!];
      const mapped = map(order);
      assert.equal(mapped.length, 4 * grantPageBytes);
      for (const [page, value] of [22, 14, 10, 20].entries()) {
        assert.deepEqual(pageOf(mapped, page), new Uint8Array(grantPageBytes).fill(value));
      }
      pageOf(mapped, 1)[7] = 99;
      assert.equal(pageOf(one.bytes, 4)[7], 99);
    }));

  test('hundreds of pages are one view', () =>
    withGrants(({ share, map }) => {
      const pages = 256;
      const shared = share(pages);
      assert.equal(new Set(shared.references).size, pages);
      const mapped = map(shared.references);
      const [from, to] = [new Uint32Array(shared.bytes.buffer), new Uint32Array(mapped.buffer, mapped.byteOffset)];
      for (let page = 0; page < pages; page++) from[page * 1024 + 1023] = page + 1;
      for (let page = 0; page < pages; page++) assert.equal(to[page * 1024 + 1023], page + 1);
    }));

  test('a page may be mapped read-only, and more than once', () =>
    withGrants(({ share, map }) => {
      const page = share(1);
      const views = [map(page.references, 'read'), map(page.references), map(page.references, 'read')];
      page.bytes[3] = 33;
      views[1]![4] = 44;
      for (const view of views) assert.deepEqual([view[3], view[4]], [33, 44]);
    }));
}

function faultCases(withGrants: WithGrants): void {
  test('a reference that is not granted is refused by name', () =>
    withGrants(({ refuse, bench }) => {
      const fault = refuse([60_000]);
      assert.match(fault.call, /^xengnttab_map/);
      assert.deepEqual(
        { ...fault },
        { call: fault.call, errno: 'EINVAL', domid: bench.guest.domid, first: 60_000, count: 1 },
      );
    }));

  test('one bad reference refuses all, and the good ones can be mapped afterwards', () =>
    withGrants(({ share, map, refuse }) => {
      const { references, bytes } = share(2);
      const fault = refuse([references[0]!, 60_000, references[1]!]);
      assert.deepEqual([fault.errno, fault.first, fault.count], ['EINVAL', references[0], 3]);
      bytes[0] = 1;
      assert.equal(map(references)[0], 1);
    }));

  test('references at the ends of the number range are refused', () =>
    withGrants(({ refuse }) => {
      for (const reference of [0xffff_ffff, 0x8000_0000, 0x7fff_ffff, 0x10_0000]) {
        assert.equal(refuse([reference]).errno, 'EINVAL');
      }
    }));

  test('an ended grant is refused', () =>
    withGrants(({ share, refuse }) => {
      const page = share(1);
      const references = page.references.slice();
      page.close();
      assert.equal(refuse(references).errno, 'EINVAL');
    }));

  test('a domain that is not there is refused', () =>
    withGrants(({ mapper }) => {
      const nobody = 0x7000 as never;
      const fault = refused(mapper.map(nobody, Uint32Array.of(9), 'write'));
      assert.deepEqual([fault.errno, fault.domid], ['EINVAL', nobody]);
    }));

  test('no references, and more than the limit, are a bug of the caller', () =>
    withGrants(({ mapper, sharer, bench }) => {
      const { guest, service } = bench;
      const many = limits.grantMapMaxPages + 1;
      assert.throws(() => mapper.map(guest.domid, new Uint32Array(0), 'write'));
      assert.throws(() => mapper.map(guest.domid, new Uint32Array(many), 'write'));
      assert.throws(() => sharer.share(service.domid, 0));
      assert.throws(() => sharer.share(service.domid, many));
    }));
}

function lifeCases(withGrants: WithGrants): void {
  test('views are empty after close', () =>
    withGrants(({ share, mapper, bench }) => {
      const page = share(1);
      const mapping = granted(mapper.map(bench.guest.domid, page.references, 'write'));
      const views = [new Uint32Array(mapping.bytes.buffer), mapping.bytes.subarray(8)];
      mapping.close();
      mapping.close();
      for (const view of [mapping.bytes, ...views]) assert.equal(view.length, 0);
      page.close();
      assert.equal(page.bytes.length, 0);
    }));

  test('a mapping outlives the share, and what is shared next is other memory', () =>
    withGrants(({ share, map }) => {
      const page = share(1);
      page.bytes[0] = 7;
      const mapped = map(page.references);
      page.close();
      const next = share(1);
      assert.deepEqual([mapped[0], next.bytes[0]], [7, 0]);
      next.bytes.fill(1);
      assert.equal(mapped[0], 7);
    }));

  test('a page that comes again is zeroed', () =>
    withGrants(({ sharer, bench }) => {
      for (let round = 0; round < 20; round++) {
        const pages = sharer.share(bench.service.domid, 4);
        assert.ok(pages.bytes.every((byte) => byte === 0));
        pages.bytes.fill(0xff);
        pages.close();
      }
    }));

  test('closing a mapper or a sharer closes what it made', () =>
    withGrants(({ share, map, mapper, sharer }) => {
      const page = share(2);
      const mapped = map(page.references);
      mapper.close();
      assert.equal(mapped.length, 0);
      sharer.close();
      assert.equal(page.bytes.length, 0);
    }));
}

/** Maps what was handed over as a program does that knows nothing of Xen. */
const mapPlainly = ({ fd, offset }: HandedPages, pages: number): Mapping =>
  Mapping.map(fd, Number(offset), pages * grantPageBytes, { writable: true });

function handOverCases(withGrants: WithGrants): void {
  test('pages that are handed over appear through a plain mmap, both ways', () =>
    withGrants(({ share, own, mapper, bench }) => {
      const pages = 64;
      const { bytes, references } = share(pages);
      for (let page = 0; page < pages; page++) pageOf(bytes, page).fill(page + 1);
      const handed = own(granted(mapper.handOver(bench.guest.domid, references)));
      const mapped = own(mapPlainly(handed, pages)).bytes;
      assert.equal(mapped.length, pages * grantPageBytes);
      for (let page = 0; page < pages; page++) {
        assert.deepEqual(pageOf(mapped, page), new Uint8Array(grantPageBytes).fill(page + 1));
      }
      pageOf(mapped, 40)[7] = 99;
      pageOf(bytes, 3)[8] = 98;
      assert.deepEqual([pageOf(bytes, 40)[7], pageOf(mapped, 3)[8]], [99, 98]);
    }));

  test('pages are handed over again and again, beside a mapping and each other', () =>
    withGrants(({ share, map, own, mapper, bench }) => {
      const { bytes, references } = share(2);
      const here = map(references);
      const views = [1, 2, 3].map(() => mapPlainly(own(granted(mapper.handOver(bench.guest.domid, references))), 2));
      for (const view of views) own(view);
      views[1]!.bytes[5] = 55;
      for (const seen of [bytes, here, ...views.map((view) => view.bytes)]) assert.equal(seen[5], 55);
    }));

  test('what was mapped stays when the descriptor is closed', () =>
    withGrants(({ share, own, mapper, bench }) => {
      const { bytes, references } = share(1);
      const handed = granted(mapper.handOver(bench.guest.domid, references));
      const mapped = own(mapPlainly(handed, 1)).bytes;
      handed.close();
      bytes[0] = 7;
      mapped[1] = 8;
      assert.deepEqual([mapped[0], bytes[1]], [7, 8]);
    }));

  test('what was handed over outlives the share, and what is shared next is other memory', () =>
    withGrants(({ share, own, mapper, bench }) => {
      const page = share(1);
      page.bytes[0] = 7;
      const mapped = own(mapPlainly(own(granted(mapper.handOver(bench.guest.domid, page.references))), 1)).bytes;
      page.close();
      const next = share(1);
      assert.deepEqual([mapped[0], next.bytes[0]], [7, 0]);
      next.bytes.fill(1);
      assert.equal(mapped[0], 7);
    }));

  test('bad references are refused, at once or when they are mapped', () =>
    withGrants(({ share, own, mapper, bench }) => {
      const { references } = share(2);
      for (const bad of [[60_000], [references[0]!, 60_000, references[1]!], [0xffff_ffff]]) {
        const handed = mapper.handOver(bench.guest.domid, Uint32Array.from(bad));
        if (handed instanceof HypervisorFault) assert.deepEqual([handed.first, handed.count], [bad[0], bad.length]);
        else assert.throws(() => mapPlainly(own(handed), bad.length), { code: 'system-call' });
      }
      const good = own(granted(mapper.handOver(bench.guest.domid, references)));
      assert.equal(own(mapPlainly(good, 2)).bytes.length, 2 * grantPageBytes);
    }));
}
