import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { XenResources } from '../../src/device/xen-resources.ts';
import { limits } from '../../src/kit/limits.ts';
import { Pace } from '../../src/kit/pace.ts';
import { asDomid } from '../../src/ports/hypervisor.ts';
import { FakeBackend } from '../support/bridge-backend.ts';
import { XenBench, type XenBenchOptions } from '../support/xen-bench.ts';
import { areaAddress, at, available, grantedRingPage, startQueue } from '../support/xen-driver.ts';
import { grantAddress, type Pool, XenFrontend } from '../support/xen-frontend.ts';

const zero = asDomid(0)!;
const errno = { EBUSY: 16, EINVAL: 22, ENOSPC: 28, EEXIST: 17, ENOENT: 2, EOPNOTSUPP: 95 };

/** A connected guest of a bus with one device. */
function bench(options: XenBenchOptions & { persistent?: boolean } = {}) {
  const b = new XenBench(options);
  const backend = new FakeBackend();
  b.start((runtime) => void b.attach(runtime, backend));
  const changes = options.persistent === true ? { 'feature-persistent': '1' } : {};
  return { b, backend, guest: b.frontend().connect(changes) };
}

/** Pages that the service has mapped beside the rings. */
const mapped = (b: XenBench): number => b.xen.census(zero).mappings - 3;

const deviceReason = (b: XenBench): string | null | undefined => b.snapshot.devices[0]?.reason;

describe('xen memory: pools', () => {
  test('a device reads and writes the pages of a pool, whatever the order of its references', async () => {
    const { b, backend, guest } = bench({ scatteredReferences: true, poolMaxBytes: 16 * 1024 * 1024 });
    const pool = guest.makePool(3000);
    assert.equal(guest.addPool(5, pool), 0);
    assert.equal(mapped(b), 1, 'the directory is not mapped any more');
    pool.directory.close();
    const page = { bytes: pool.pages.bytes.subarray(0, 4096), address: areaAddress(5, 0) };
    const queue = startQueue(guest, page);
    const [from, to] = [4090, 2999 * 4096 + 4000];
    pool.pages.bytes.set(Buffer.from('across the pages'), from);
    queue.add([at(areaAddress(5, from), 16)], [at(areaAddress(5, to), 96)]);
    queue.kick();
    available(guest);
    const request = backend.held[0]!;
    assert.equal(Buffer.concat(request.readable).toString(), 'across the pages');
    request.writable[0]!.fill(0x5a);
    backend.complete(96);
    b.run();
    assert.ok(pool.pages.bytes.subarray(to, to + 96).every((byte) => byte === 0x5a));
    assert.deepEqual(b.snapshot.shares, [
      { area: 5, bytes: 3000 * 4096, readOnly: false, pins: b.snapshot.shares[0]!.pins, state: 'active' },
    ]);
    await b.end();
  });

  test('a pool that is removed is unmapped; its area and its room in the limit are free again', async () => {
    const { b, guest } = bench({ poolMaxBytes: 8 * 4096 });
    const pool = guest.makePool(8);
    for (let i = 0; i < 3; i++) {
      assert.equal(guest.addPool(1, pool), 0);
      assert.equal(guest.addPool(1, pool), errno.EEXIST);
      assert.equal(guest.addPool(2, pool), errno.ENOSPC);
      assert.match(b.snapshot.diagnosis!, /a pool of 32768 bytes beside 32768 bytes .* allows 32768/);
      assert.equal(guest.ask('REGION_DEL', { peer: 0, area: 1, reserved: 0 }).errno, 0);
      assert.equal(mapped(b), 0);
    }
    await b.end();
  });

  const directoryWords = ({ directory }: Pool): Uint32Array =>
    new Uint32Array(directory.bytes.buffer, directory.bytes.byteOffset, directory.bytes.length / 4);

  const bad: readonly (readonly [string, number, (guest: XenFrontend, pool: Pool) => number, RegExp])[] = [
    [
      'a reference that is not granted',
      errno.EINVAL,
      (guest, pool) => {
        directoryWords(pool)[1 + 7] = 4711;
        return guest.addPool(1, pool);
      },
      /grant reference 4711 of domain 1 \(page 8 of 1100\) cannot be mapped for writing: xengnttab_\w+ gives EINVAL; check/,
    ],
    [
      'a page without a reference',
      errno.EINVAL,
      (guest, pool) => {
        directoryWords(pool)[1024 + 3] = 0;
        return guest.addPool(1, pool);
      },
      /the directory of a pool of 1100 pages has no reference for page 1026/,
    ],
    [
      'a directory that ends early',
      errno.EINVAL,
      (guest, pool) => {
        directoryWords(pool)[0] = 0;
        return guest.addPool(1, pool);
      },
      /directory of a pool of 1100 pages has 1 pages, 2 are needed/,
    ],
    [
      'a directory page that is not granted',
      errno.EINVAL,
      (guest, pool) => guest.addPool(1, pool, { reference: 31337 }),
      /page 1 of the directory of a pool: grant reference 31337 of domain 1 cannot be mapped for reading/,
    ],
    [
      'a grant that has ended',
      errno.EINVAL,
      (guest, pool) => {
        pool.pages.close();
        return guest.addPool(1, pool, { length: 1100n * 4096n });
      },
      /has not ended it/,
    ],
  ];
  for (const [name, expected, add, diagnosis] of bad) {
    test(`${name} is refused with a diagnosis`, async () => {
      const { b, guest } = bench({ poolMaxBytes: 16 * 1024 * 1024 });
      const pool = guest.makePool(1100);
      assert.equal(add(guest, pool), expected);
      assert.match(b.snapshot.diagnosis!, diagnosis);
      assert.equal(b.events.filter(({ type }) => type === 'bus-diagnosis').length, 1);
      assert.deepEqual([mapped(b), b.snapshot.regions], [0, 0]);
      assert.equal(guest.addPool(1, guest.makePool(4)), 0, 'the bus goes on');
      await b.end();
    });
  }

  test('a directory that leads in a circle is read once for each page that the length needs', async () => {
    const { b, guest } = bench({ poolMaxBytes: 16 * 1024 * 1024 });
    const pool = guest.makePool(1100);
    directoryWords(pool)[0] = pool.reference;
    const length = 2046n * 4096n;
    assert.equal(guest.addPool(1, pool, { length }), 0, 'the same pages twice are the guest’s own affair');
    assert.equal(b.snapshot.regionBytes, 2046 * 4096);
    await b.end();
  });

  test('fields that Xen does not have are refused', async () => {
    const { b, guest } = bench();
    const pool = guest.makePool(4);
    assert.equal(guest.addPool(1, pool, { offset: 4096n }), errno.EINVAL);
    assert.equal(guest.addPool(1, pool, { length: 0n }), errno.EINVAL);
    assert.equal(guest.addPool(1, pool, { length: 100n }), errno.EINVAL);
    assert.equal(guest.addPool(1, pool, { reference: 0 }), errno.EINVAL);
    assert.equal(guest.addPool(1, pool, { peer: 3 }), errno.EINVAL);
    assert.equal(guest.addPool(1, pool, { length: 64n * 1024n * 1024n }), errno.ENOSPC);
    await b.end();
  });

  test('a guest that names pools without end is slowed down, and the others are not', async () => {
    const { b, guest } = bench();
    const add = (reference: number): number => guest.addPool(1, pool, { reference });
    const pool = guest.makePool(1);
    let calls = 0;
    while (add(31337) === errno.EINVAL) calls += 1;
    assert.ok(calls > 100 && calls <= limits.xenWorkBurst, `${calls} were tried`);
    assert.equal(add(31337), errno.EBUSY);
    assert.match(b.snapshot.diagnosis!, /named faster than they can be mapped/);
    // Also over a new connection.
    guest.setState(1);
    guest.connect();
    assert.equal(add(31337), errno.EBUSY);
    b.advance(2 * limits.xenWorkIntervalMs);
    assert.equal(add(pool.reference), 0);
    await b.end();
  });

  test('memory of devices is not offered', async () => {
    const { b, guest } = bench();
    assert.equal(guest.ask('SHM_OPEN', { device: 0, reserved: 0, index: 1 }).errno, errno.ENOENT);
    await b.end();
  });
});

describe('xen memory: grants of single buffers', () => {
  test('a grant is mapped for its descriptor and unmapped before the buffer is used', async () => {
    const { b, backend, guest } = bench();
    const ring = grantedRingPage(guest);
    const queue = startQueue(guest, ring);
    const rings = mapped(b);
    const out = guest.sharer.share(zero, 3);
    const input = guest.sharer.share(zero, 2);
    out.bytes.set(Buffer.from('from the guest'), 4000);
    queue.add([at(grantAddress(out.references[0]!, 4000), 8192)], [at(grantAddress(input.references[0]!, 100), 4096)]);
    queue.kick();
    available(guest);
    assert.equal(mapped(b), rings + 2);
    const request = backend.held[0]!;
    assert.equal(Buffer.from(request.readable[0]!.subarray(0, 14)).toString(), 'from the guest');
    request.writable[0]!.set(Buffer.from('to the guest'), 4084);
    backend.complete(4096);
    b.run();
    assert.equal(mapped(b), rings);
    assert.equal(Buffer.from(input.bytes.subarray(4184, 4196)).toString(), 'to the guest');
    const { hits, misses, faults, persistent } = b.snapshot.grants!;
    assert.deepEqual([hits, misses, faults, persistent], [0, rings + 2, 0, false]);
    await b.end();
  });

  test('a grant that is only for reading is good for what the device reads, and not for what it writes', async () => {
    const { b, backend, guest } = bench();
    const queue = startQueue(guest, grantedRingPage(guest));
    const sharer = guest.process.openGrantSharer();
    const readOnly = sharer.share(zero, 1, undefined, true);
    queue.add([at(grantAddress(readOnly.references[0]!), 64)], []);
    queue.kick();
    available(guest);
    assert.equal(backend.held.length, 1);
    backend.complete(0);
    queue.add([], [at(grantAddress(readOnly.references[0]!), 64)]);
    queue.kick();
    available(guest);
    assert.match(deviceReason(b)!, /cannot be mapped for writing: .* EINVAL/);
    await b.end();
  });

  test('a bad reference: the device needs a reset, and API and event say which one and why', async () => {
    const { b, guest } = bench();
    const queue = startQueue(guest, grantedRingPage(guest));
    const pages = guest.sharer.share(zero, 2);
    const first = pages.references[0]!;
    queue.add([at(grantAddress(first), 3 * 4096)], []);
    queue.kick();
    available(guest);
    const text = new RegExp(
      `grant reference ${first + 2} of domain 1 \\(page 3 of 3\\) cannot be mapped for reading: xengnttab_\\w+ gives EINVAL; check that domain 1 granted it`,
    );
    assert.match(deviceReason(b)!, text);
    assert.match(b.snapshot.diagnosis!, text);
    assert.ok(b.events.some((event) => event.type === 'bus-diagnosis' && text.test(event.text)));
    assert.equal(b.snapshot.grants!.faults, 1);
    assert.equal(b.snapshot.devices[0]!.status & 0x40, 0x40);
    assert.equal(mapped(b), 0);
    await b.end();
  });

  test('a driver that shares nothing and uses no grants is told what is missing', async () => {
    const { b, guest } = bench();
    const page = { bytes: new Uint8Array(4096), address: 0x4_1234_5000n };
    startQueue(guest, page);
    assert.match(deviceReason(b)!, /the guest shares no pool and 0x0000000412345000 is no grant address/);
    await b.end();
  });

  test('a grant that ends while the device uses it stays usable until it is done', async () => {
    const { b, backend, guest } = bench();
    const queue = startQueue(guest, grantedRingPage(guest));
    const pages = guest.sharer.share(zero, 1);
    queue.add([], [at(grantAddress(pages.references[0]!), 512)]);
    queue.kick();
    available(guest);
    pages.close();
    backend.held[0]!.writable[0]!.fill(1);
    backend.complete(512);
    b.run();
    assert.equal(queue.next() !== undefined, true);
    await b.end();
  });

  test('a domain that is destroyed during I/O: what is in use goes with its request, all else at once', async () => {
    const { b, backend, guest } = bench();
    const ring = grantedRingPage(guest);
    const queue = startQueue(guest, ring);
    const pool = guest.makePool(4);
    assert.equal(guest.addPool(1, pool), 0);
    const pages = guest.sharer.share(zero, 1);
    queue.add([], [at(grantAddress(pages.references[0]!), 512)]);
    queue.kick();
    available(guest);
    b.xen.destroy(b.domid);
    b.run();
    assert.deepEqual(b.reasons('bus-disconnected'), ['domain 1 is gone']);
    assert.equal(b.xen.census(zero).channels, 0);
    // The rings are unmapped with the connection; the queue and the buffer stay while the backend writes.
    backend.held[0]!.writable[0]!.fill(1);
    backend.complete(512);
    b.run();
    assert.equal(b.xen.census(zero).mappings, 0);
    await b.end();
  });
});

describe('xen memory: persistent grants', () => {
  test('a mapping is kept for the next descriptor until the guest releases it', async () => {
    const { b, backend, guest } = bench({ persistent: true });
    backend.automatic = 512;
    const queue = startQueue(guest, grantedRingPage(guest));
    const before = b.snapshot.grants!;
    const pages = guest.sharer.share(zero, 2);
    const first = pages.references[0]!;
    for (let i = 0; i < 5; i++) {
      queue.add([], [at(grantAddress(first, 8 * i), 512)]);
      queue.kick();
      available(guest);
      queue.next();
    }
    const { hits, misses, mappedPages } = b.snapshot.grants!;
    assert.deepEqual([hits - before.hits, misses - before.misses, mappedPages - before.mappedPages], [4, 1, 1]);
    const held = mapped(b);
    assert.deepEqual(guest.ask('GRANT_RELEASE', { first, count: 2 }), { errno: 0, first, count: 2 });
    assert.equal(mapped(b), held - 1);
    assert.equal(guest.ask('GRANT_RELEASE', { first: 0, count: 1 }).errno, errno.EINVAL);
    assert.equal(guest.ask('GRANT_RELEASE', { first: 2, count: 0xffff_ffff }).errno, errno.EINVAL);
    await b.end();
  });

  test('a release waits for I/O, but not for ever', async () => {
    const { b, backend, guest } = bench({ persistent: true });
    const queue = startQueue(guest, grantedRingPage(guest));
    const pages = guest.sharer.share(zero, 1);
    const first = pages.references[0]!;
    for (let i = 0; i < 2; i++) {
      queue.add([], [at(grantAddress(first), 512)]);
      queue.kick();
      available(guest);
    }
    const early = guest.request('GRANT_RELEASE', { first, count: 1 });
    assert.equal(guest.response('GRANT_RELEASE', early), undefined);
    b.advance(limits.regionRemovalTimeoutMs);
    assert.equal(guest.response('GRANT_RELEASE', early)?.errno, errno.EBUSY);
    const late = guest.request('GRANT_RELEASE', { first, count: 1 });
    backend.complete(512);
    b.run();
    assert.equal(guest.response('GRANT_RELEASE', late), undefined, 'one of two requests is still there');
    backend.complete(512);
    b.run();
    assert.equal(guest.response('GRANT_RELEASE', late)?.errno, 0);
    await b.end();
  });

  test('nothing is kept for the next epoch', async () => {
    const { b, backend, guest } = bench({ persistent: true });
    backend.automatic = 512;
    const queue = startQueue(guest, grantedRingPage(guest));
    const pages = guest.sharer.share(zero, 1);
    queue.add([], [at(grantAddress(pages.references[0]!), 512)]);
    queue.kick();
    available(guest);
    assert.ok(b.snapshot.grants!.mappedPages > 1);
    guest.setState(5);
    assert.equal(b.xen.census(zero).mappings, 0);
    await b.end();
  });
});

describe('xen memory: for another domain', () => {
  test('a pool that another domain maps is refused where nobody passes it on', async () => {
    const { b, guest } = bench();
    const other = b.xen.createDomain('server');
    const pool = guest.makePool(4, other);
    assert.equal(guest.addPool(1, pool, { domain: other }), errno.EOPNOTSUPP);
    assert.equal(b.snapshot.diagnosis, null);
    await b.end();
  });

  test('a guest that serves devices maps what another domain granted to it, and what its service did', async () => {
    const b = new XenBench();
    const server = b.xen.hypervisorFor(b.xen.createDomain('server'));
    const [mapper, channels] = [server.openGrantMapper(), server.openEventChannels()];
    const texts: string[] = [];
    const resources = new XenResources({
      mapper,
      channels,
      domid: zero,
      poolMaxBytes: 1024 * 1024,
      persistent: false,
      clock: b.clock,
      work: new Pace(b.clock, limits.xenWorkBurst, limits.xenWorkIntervalMs),
      diagnosed: (text) => texts.push(text),
    });
    const open = (pool: Pool, domain: number) => resources.openRegion(pool.reference, 0n, 8192n, false, domain);
    const driver = new XenFrontend(b.xen.hypervisorFor(b.domid), b.run);
    const service = new XenFrontend(b.xen.hypervisorFor(zero), b.run);
    const pool = driver.makePool(2, server.domid);
    const memory = open(pool, b.domid);
    assert.ok(typeof memory !== 'string', texts.join());
    pool.pages.bytes[4097] = 99;
    assert.equal(memory.bytes[4097], 99);
    assert.deepEqual(memory.source, { domid: b.domid, reference: pool.reference });
    const bounce = open(service.makePool(2, server.domid), 0);
    assert.ok(typeof bounce !== 'string', texts.join());
    assert.equal(open(pool, server.domid), 'EINVAL');
    assert.equal(open(pool, 0xffff), 'EINVAL');
    assert.equal(open(driver.makePool(2, zero), b.domid), 'EINVAL', 'granted to another domain');
    assert.equal(resources.give(), 'EOPNOTSUPP');
    memory.close();
    bounce.close();
    resources.close();
    assert.equal(open(pool, b.domid), 'EINVAL', 'nothing after close');
    assert.deepEqual(b.xen.census(server.domid), { mappings: 0, shares: 0, channels: 0, watches: 0 });
    b.xen.close();
  });
});
