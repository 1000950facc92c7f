import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { GuestBuffer } from '../../src/guest/buffer.ts';
import { Changes } from '../../src/guest/changes.ts';
import { GrantArena } from '../../src/guest/grant-arena.ts';
import { XenShares } from '../../src/guest/xen-shares.ts';
import { systemClock } from '../../src/kit/clock.ts';
import { VmsgError } from '../../src/kit/errors.ts';
import { limits } from '../../src/kit/limits.ts';
import { asDomid, type SharedPages } from '../../src/ports/hypervisor.ts';
import { grantOfAddress, isGrantAddress } from '../../src/virtio-msg/xen-bus.ts';
import { HypervisorError } from '../../src/xen/errors.ts';

const isCode = (code: string, text: RegExp) => (error: unknown) =>
  error instanceof VmsgError && error.code === code && text.test(error.message);

/** A kernel that gives references as `next` says, and knows what each page holds. */
class Kernel {
  readonly open = new Map<Uint32Array, Uint8Array>();
  shares = 0;
  readonly #next: () => number;
  readonly #limit: number;

  constructor(next: () => number, limit = Number.POSITIVE_INFINITY) {
    this.#next = next;
    this.#limit = limit;
  }

  share = (pages: number): SharedPages => {
    const used = [...this.open.keys()].reduce((sum, { length }) => sum + length, 0);
    if (used + pages > this.#limit) throw new VmsgError('limit-reached', 'no more');
    this.shares += 1;
    const references = Uint32Array.from({ length: pages }, () => this.#next());
    const bytes = new Uint8Array(pages * 4096);
    this.open.set(references, bytes);
    return { bytes, references, close: () => void this.open.delete(references) };
  };

  /** What a device sees at a bus address. */
  at(hi: number, lo: number, length: number): Uint8Array {
    assert(isGrantAddress(hi));
    const seen = new Uint8Array(length);
    for (let i = 0; i < length; i++) {
      const offset = (lo & 4095) + i;
      const reference = grantOfAddress(hi, lo) + Math.floor(offset / 4096);
      for (const [references, bytes] of this.open) {
        const page = references.indexOf(reference);
        if (page >= 0) seen[i] = bytes[page * 4096 + (offset % 4096)]!;
      }
    }
    return seen;
  }
}

/** References from `first` on, with a gap after every `run` of them. */
function gapsAfter(run: number, first = 8): () => number {
  let given = 0;
  return () => first + given + Math.floor(given++ / run);
}

test('buffers of grants hold what a device sees at their addresses, whatever the runs', () => {
  const step = fc.record(
    { free: fc.boolean(), pick: fc.nat(), bytes: fc.integer({ min: 1, max: 3 * 4096 }), align: fc.nat({ max: 12 }) },
    { noNullPrototype: true },
  );
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 9 }), fc.array(step, { maxLength: 40 }), (run, steps) => {
      const kernel = new Kernel(gapsAfter(run, 0xfffe_0000));
      const arena = new GrantArena(kernel.share);
      const buffers: GuestBuffer[] = [];
      for (const [i, { free, pick, bytes, align }] of steps.entries()) {
        if (free && buffers.length > 0) buffers.splice(pick % buffers.length, 1)[0]?.free();
        else {
          const owner = {};
          const pages = Math.ceil(bytes / 4096);
          if (pages > run) {
            assert.throws(() => arena.alloc(bytes, 1, owner), isCode('limit-reached', /consecutive/));
            continue;
          }
          const buffer = arena.alloc(bytes, 2 ** align <= 4096 && pages < run ? 2 ** align : 1, owner);
          assert(buffer.isOf(owner) && !buffer.isOf(arena));
          buffer.bytes.fill(i + 1);
          buffers.push(buffer);
        }
      }
      for (const buffer of buffers) {
        const middle = buffer.range(buffer.length >> 1, buffer.length - (buffer.length >> 1));
        assert.deepEqual(kernel.at(buffer.hi, buffer.lo, buffer.length), new Uint8Array(buffer.bytes));
        assert.deepEqual(
          kernel.at(middle.hi, middle.lo, middle.length),
          new Uint8Array(buffer.bytes.subarray(buffer.length >> 1)),
        );
      }
      arena.close();
      assert.equal(kernel.open.size, 0);
    }),
    { seed: 31, numRuns: 60 },
  );
});

test('an address carries into its upper half', () => {
  const bytes = new Uint8Array(2 * 4096);
  const buffer = new GuestBuffer({ bytes, hi: 0x8000_0fff, lo: 0xffff_f800, owner: {}, release: () => {} });
  assert.deepEqual(buffer.range(0x7ff, 1), { hi: 0x8000_0fff, lo: 0xffff_ffff, length: 1 });
  assert.deepEqual(buffer.range(0x800, 1), { hi: 0x8000_1000, lo: 0, length: 1 });
  assert.deepEqual([buffer.slice(0x801, 4).hi, buffer.slice(0x801, 4).lo], [0x8000_1000, 1]);
});

test('chunks go back when the service has let go, and stay when it has not', async () => {
  const kernel = new Kernel(gapsAfter(1000));
  const arena = new GrantArena(kernel.share);
  const released: [number, number][] = [];
  let busy = true;
  arena.release = async (first, count) => {
    released.push([first, count]);
    if (busy) throw new VmsgError('unavailable', 'EBUSY');
  };
  const chunk = limits.guestGrantChunkPages;
  const settle = () => new Promise((resolve) => setImmediate(resolve));
  const [one, two] = [0, 1].map(() => arena.alloc(chunk * 4096, 4096, arena));
  assert.equal(arena.pages, 2 * chunk);
  one?.free();
  two?.free();
  await settle();
  assert.equal(released.length, 0, 'both lie in one chunk, which is kept');
  const other = arena.alloc(2 * chunk * 4096 + 1, 4096, arena);
  other.free();
  await settle();
  assert.deepEqual(released, [[8 + 2 * chunk, 2 * (2 * chunk + 1)]]);
  assert.equal(kernel.open.size, 2, 'the service still uses it');
  busy = false;
  arena.alloc(2 * chunk * 4096 + 1, 4096, arena).free();
  await settle();
  assert.equal(kernel.shares, 2, 'the chunk served again');
  assert.equal(kernel.open.size, 1);
  arena.close();
  assert.equal(kernel.open.size, 0);
  assert.throws(() => arena.alloc(1, 1, arena), isCode('bus-lost', /closed/));
});

test('an arena is bounded, and content with less where the kernel gives less', () => {
  const kernel = new Kernel(gapsAfter(100_000), 70);
  const arena = new GrantArena(kernel.share);
  arena.alloc(60 * 4096, 4096, arena);
  assert.equal(arena.pages, 60);
  arena.alloc(10 * 4096, 4096, arena);
  assert.throws(() => arena.alloc(4096, 4096, arena), isCode('limit-reached', /no more/));
  const endless = new GrantArena(new Kernel(gapsAfter(100_000)).share);
  for (let pages = 0; pages < limits.guestGrantMaxPages; pages += 1024) endless.alloc(1024 * 4096, 4096, endless);
  assert.throws(() => endless.alloc(4096, 4096, endless), isCode('limit-reached', /16384/));
});

test('what gntalloc refuses says how many pages it has to allow', () => {
  const closed: string[] = [];
  const sharer = {
    share(_domid: number, pages: number): SharedPages {
      if (pages > 100) throw new HypervisorError('IOCTL_GNTALLOC_ALLOC_GREF', 'ENOSPC', { what: `${pages} pages` });
      if (pages === 100) throw new HypervisorError('mmap', 'ENOMEM');
      const bytes = new Uint8Array(pages * 4096);
      return { bytes, references: new Uint32Array(pages), close: () => void closed.push(`${pages} pages`) };
    },
    close: () => void closed.push('sharer'),
  };
  const shares = new XenShares(sharer);
  const zero = asDomid(0)!;
  const few = shares.share(zero, 7);
  assert.throws(() => shares.share(zero, 4096), isCode('limit-reached', /4096 pages.*the 7.*limit=\d{4,}/));
  assert.throws(() => shares.share(zero, 100), isCode('hypervisor-call', /ENOMEM/));
  const held = shares.share(zero, 2);
  shares.hold();
  held.close();
  held.close();
  assert.deepEqual(closed, []);
  shares.letGo();
  assert.deepEqual(closed, ['2 pages']);
  shares.close();
  assert.deepEqual(closed, ['2 pages'], 'pages are open');
  few.close();
  assert.deepEqual(closed, ['2 pages', '7 pages', 'sharer']);
});

test('a wait looks after each change, and ends with an answer, in time, or with everything', async () => {
  const changes = new Changes();
  let value = 0;
  const wait = changes.until(systemClock, 10_000, () => (value > 1 ? value : undefined));
  for (value = 0; value < 2; ) {
    value += 1;
    changes.tell();
  }
  assert.equal(await wait, 2);
  assert.equal(await changes.until(systemClock, 1, () => undefined), undefined);
  const failing = changes.until(systemClock, 10_000, () => {
    if (value > 2) throw new VmsgError('protocol-violation', 'no');
    return undefined;
  });
  value = 3;
  changes.tell();
  await assert.rejects(failing, isCode('protocol-violation', /no/));
  let told = 0;
  const listening = changes.listen(() => {
    told += 1;
  });
  changes.tell();
  listening.close();
  changes.tell();
  assert.equal(told, 1);
  const ended = changes.until(systemClock, 10_000, () => undefined);
  changes.end(new VmsgError('bus-lost', 'closed'));
  await assert.rejects(ended, isCode('bus-lost', /closed/));
  await assert.rejects(
    changes.until(systemClock, 10_000, () => 1),
    isCode('bus-lost', /closed/),
  );
});
