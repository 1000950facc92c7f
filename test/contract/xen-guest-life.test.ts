import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlkDriver, connectXen, type GuestBus, VmsgError } from '../../src/guest/index.ts';
import { limits } from '../../src/kit/limits.ts';
import { asDomid, type GrantSharer, type SharedPages } from '../../src/ports/hypervisor.ts';
import { readDirectoryPage } from '../../src/virtio-msg/grant-directory.ts';
import type { FakeHypervisor } from '../support/fake-xen.ts';
import { isCode, until } from '../support/guest-fixture.ts';
import { withXen, type XenWorld } from '../support/xen-world.ts';

const zero = asDomid(0)!;

/** Time in which waits of these lengths end when told; others run as usual. */
function clockOf(...delaysMs: number[]) {
  const held: Array<() => void> = [];
  return {
    held,
    nowMs: () => performance.now(),
    after(delayMs: number, run: () => void) {
      if (delaysMs.includes(delayMs)) {
        held.push(run);
        return { cancel: () => void held.splice(held.indexOf(run), held.includes(run) ? 1 : 0) };
      }
      const timer = setTimeout(run, delayMs);
      return { cancel: () => clearTimeout(timer) };
    },
  };
}

const offerWait = () => clockOf(limits.guestXenOfferTimeoutMs);

/** Connects, and lets the wait for an offer end without one. */
async function failsToConnect(world: XenWorld, expected: (error: unknown) => boolean): Promise<void> {
  const clock = offerWait();
  const failed = assert.rejects(world.connect({ clock }), expected);
  await until(() => clock.held.length > 0, 'the guest waits');
  // What is under way in xenstore gets its turn first.
  await new Promise((resolve) => setTimeout(resolve, 20));
  clock.held[0]?.();
  await failed;
}

test('a bus that does not exist', () =>
  withXen(async (world) => {
    const other = world.xen.createDomain('vm2');
    const clock = offerWait();
    const opening = connectXen({ hypervisor: world.xen.hypervisorFor(other), clock });
    const failed = assert.rejects(
      opening,
      isCode('unavailable', /no bus: device\/vmsg\/0 does not exist; was it attached to this domain\?/),
    );
    await until(() => clock.held.length > 0, 'the guest waits');
    clock.held[0]?.();
    await failed;
    for (const options of [{ index: -1 }, { index: 70_000 }, { ringPages: 17 }, { maxMessageSize: 51 }]) {
      await assert.rejects(world.connect(options), isCode('invalid-request'));
    }
  }));

test('a service that starts later is found', () =>
  withXen(async (world) => {
    world.kill();
    const opening = world.connect();
    await world.start();
    const bus = await opening;
    await bus.ping();
  }));

test('a service that is not there', () =>
  withXen(async (world) => {
    world.setBackendNode('state', undefined);
    await failsToConnect(world, isCode('unavailable', /does not exist.*does it run/));
    world.setBackendNode('state', '2');
  }));

test('one process at a time uses a bus, and the next one follows it', () =>
  withXen(async (world) => {
    const first = await world.connect();
    await failsToConnect(world, isCode('bus-busy', /another process/));
    await first.ping();
    const next = world.connect();
    first.close();
    await (await next).ping();
    assert.equal(world.events.filter(({ type }) => type === 'bus-connected').length, 2);
  }));

test('two processes that answer the same offer: the last one gets the bus', () =>
  withXen(async (world) => {
    world.xen.pause(zero);
    const first = assert.rejects(world.connect(), isCode('bus-busy', /another process of this domain uses the bus$/));
    await until(() => world.node('state') === '3', 'the first has answered');
    const references = world.node('ring-to-service-refs');
    const second = world.connect();
    await until(() => world.node('ring-to-service-refs') !== references, 'the second has answered');
    world.xen.unpause(zero);
    await first;
    await (await second).ping();
    assert.equal(world.node('state'), '4', 'the first has left the nodes alone');
  }));

test('a guest that died in the middle of its leave is followed by the next', () =>
  withXen(async (world) => {
    const hypervisor = world.process();
    const bus = await world.connect({ hypervisor });
    world.xen.pause(world.domid);
    bus.close();
    await until(() => world.backendState === '6', 'the service has closed');
    hypervisor.kill();
    world.xen.unpause(world.domid);
    assert.equal(world.node('state'), '5');
    await (await world.connect()).ping();
  }));

/** Notes, for each share of the guest that ends, how many mappings the service had then. */
function watchShares(world: XenWorld, log: number[]): FakeHypervisor {
  const hypervisor = world.process();
  const open = hypervisor.openGrantSharer.bind(hypervisor);
  return Object.assign(hypervisor, {
    openGrantSharer: () => {
      const sharer = open();
      const share = sharer.share.bind(sharer);
      return Object.assign(sharer, {
        share: (...parts: Parameters<GrantSharer['share']>): SharedPages => {
          const pages = share(...parts);
          const { bytes, references } = pages;
          const close = (): void => {
            log.push(world.xen.census(zero).mappings);
            pages.close();
          };
          return { bytes, references, close };
        },
      });
    },
  });
}

for (const memory of ['pool', 'grants'] as const) {
  test(`an orderly leave: the service lets go first, then the grants end: ${memory}`, () =>
    withXen(async (world) => {
      const log: number[] = [];
      const bus = await world.connect({ memory, hypervisor: watchShares(world, log) });
      const blk = await BlkDriver.open(bus, 1);
      await blk.read(0, 4096);
      assert(world.xen.census(zero).mappings >= 3);
      bus.close();
      assert.throws(() => bus.memory.alloc(1), VmsgError);
      await until(() => world.xen.census(world.domid).shares === 0, 'nothing is shared');
      assert(log.length >= 3);
      assert.deepEqual(new Set(log), new Set([0]));
      assert.equal(world.node('state'), '6');
      assert.equal(world.service.transport.state, 'listening');
    }));
}

test('a leave that the service does not answer ends all the same', () =>
  withXen(async (world) => {
    const clock = clockOf(limits.guestXenCloseTimeoutMs);
    const bus = await world.connect({ clock });
    world.xen.pause(zero);
    bus.close();
    await until(() => clock.held.length > 0, 'the guest waits');
    assert(world.xen.census(world.domid).shares > 0);
    clock.held[0]?.();
    await until(() => world.xen.census(world.domid).shares === 0, 'nothing is shared');
    world.xen.unpause(zero);
    await until(() => world.service.transport.state === 'listening', 'the bus is free');
  }));

test('a guest that was killed is followed by the next', () =>
  withXen(async (world) => {
    const kill = async (leave: boolean): Promise<void> => {
      const hypervisor = world.process();
      const bus = await world.connect({ hypervisor });
      await bus.ping();
      if (leave) bus.close();
      hypervisor.kill();
      bus.close();
    };
    await kill(false);
    await kill(true);
    await kill(false);
    const bus = await world.connect();
    assert.equal(bus.terms.epoch, 4n);
    await bus.ping();
    assert.equal(world.node('resume-epoch'), undefined);
  }));

test('a bus that is removed is lost, and says so', () =>
  withXen(async (world) => {
    const bus = await world.connect();
    const lost = new Promise<Error>((resolve) => {
      bus.on('lost', resolve);
    });
    const pending = assert.rejects(bus.request(1, 'GET_DEVICE_STATUS', {}), isCode('bus-lost'));
    await world.service.runtime.close(true);
    await pending;
    assert.match((await lost).message, /the service (is gone|closed)|the bus was removed/);
    assert.equal(bus.state, 'closed');
    bus.close();
    await world.start();
  }));

test('a service that never comes back: the bus is lost after the time that was given', () =>
  withXen(async (world) => {
    const clock = offerWait();
    const bus = await world.connect({ clock, reconnect: { totalMs: 50 } });
    const seen: string[] = [];
    bus.on('lost', (error) => seen.push(error.code));
    world.kill();
    for (let i = 0; seen.length === 0 && i < 500; i++) {
      clock.held.at(-1)?.();
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    assert.deepEqual(seen, ['bus-lost']);
    await world.start();
  }));

test('a bus that is closed while it reconnects leaves nothing behind', () =>
  withXen(async (world) => {
    const bus = await world.connect({ reconnect: true });
    world.kill();
    await until(() => bus.state === 'reconnecting', 'the loss is seen');
    bus.close();
    await until(() => world.xen.census(world.domid).watches === 0, 'nothing is open');
    await world.start();
  }));

const wrongNodes: Record<string, [Record<string, string | undefined>, string, RegExp]> = {
  'no version': [{ version: undefined }, 'protocol-violation', /version/],
  'a version of the past': [{ version: '0' }, 'protocol-violation', /version/],
  'another role': [{ role: 'device' }, 'invalid-request', /serves devices/],
  'no role': [{ role: 'x' }, 'protocol-violation', /role/],
  'other dialects': [{ dialects: '4 6 55' }, 'protocol-violation', /D5/],
  'revision 0': [{ revision: '0' }, 'protocol-violation', /revision/],
  'tiny messages': [{ 'max-message-size': '51' }, 'protocol-violation', /max-message-size/],
  'huge messages': [{ 'max-message-size': '65536' }, 'protocol-violation', /max-message-size/],
  'no ring pages': [{ 'max-ring-pages': '0' }, 'protocol-violation', /max-ring-pages/],
  'a pool size that is no number': [{ 'max-pool-bytes': '1e9' }, 'protocol-violation', /max-pool-bytes/],
  'an epoch that is no number': [{ epoch: '-1' }, 'protocol-violation', /epoch/],
  'an epoch of more than 64 bits': [{ epoch: '18446744073709551616' }, 'protocol-violation', /epoch/],
};

for (const [name, [nodes, code, text]] of Object.entries(wrongNodes)) {
  test(`an offer with ${name} is refused`, () =>
    withXen(async (world) => {
      for (const [node, value] of Object.entries(nodes)) world.setBackendNode(node, value);
      await assert.rejects(world.connect(), isCode(code, text));
    }));
}

for (const [name, nodes, text] of [
  ['a directory elsewhere', { backend: '/local/domain/0/backend/vmsg/9/0' }, /names a directory/],
  ['no domain number', { 'backend-id': '32752' }, /backend-id/],
  ['another domain', { 'backend-id': '3' }, /names a directory/],
] as const) {
  test(`a bus with ${name} is refused`, () =>
    withXen(async (world) => {
      const before = Object.keys(nodes).map((node) => [node, world.node(node)] as const);
      for (const [node, value] of Object.entries(nodes)) world.setNode(node, value);
      await assert.rejects(world.connect(), isCode('protocol-violation', text));
      for (const [node, value] of before) world.setNode(node, value);
    }));
}

test('nodes that change while connected do not disturb', () =>
  withXen(async (world) => {
    const bus = await world.connect();
    for (const [node, value] of [
      ['token', 'x'],
      ['max-message-size', '9'],
      ['error', '\u0007!'],
      ['feature-persistent', undefined],
    ] as const) {
      world.setBackendNode(node, value);
    }
    await bus.ping();
    world.setBackendNode('state', '99');
    await until(() => bus.state === 'closed', 'a state that cannot be ends it');
  }));

test('a service that refuses says why', () =>
  withXen(
    async (world) => {
      // Rings of one page do not hold two messages of this size.
      await assert.rejects(
        world.connect({ ringPages: 1, maxMessageSize: 3000 }),
        isCode('invalid-request', /rings of more pages/),
      );
      assert.equal((await world.connect({ ringPages: 4, maxMessageSize: 3000 })).terms.maxMessageSize, 3000);
    },
    { maxMessageSizeBytes: 4000 },
  ));

/** What a domain sees of a pool, by the directory that starts at `reference`. */
function mapPool(world: XenWorld, mapper: number, reference: number, pages: number): Uint8Array {
  const grants = world.xen.hypervisorFor(asDomid(mapper)!).openGrantMapper();
  const map = (references: Uint32Array): Uint8Array => {
    const mapping = grants.map(world.domid, references, 'write');
    assert('bytes' in mapping, 'it is granted to this domain');
    return mapping.bytes;
  };
  const references = new Uint32Array(pages);
  let next = reference;
  for (let page = 0; page * 1023 < pages; page++) {
    const { buffer, byteOffset } = map(Uint32Array.of(next));
    next = readDirectoryPage(new Uint32Array(buffer, byteOffset, 1024), references, page);
  }
  assert.equal(next, 0);
  const bytes = new Uint8Array(map(references));
  grants.close();
  return bytes;
}

/** Notes every REGION_ADD and REGION_DEL of a guest, and answers those for another domain, which nobody relays here. */
function noteRegions(bus: GuestBus, peer: number): { name: string; body: Record<string, number | bigint> }[] {
  const log: { name: string; body: Record<string, number | bigint> }[] = [];
  const usual = bus.busRequest.bind(bus) as (...parts: unknown[]) => Promise<unknown>;
  Object.assign(bus, {
    busRequest: (name: string, body: never, ...more: unknown[]) => {
      if (name.startsWith('REGION_')) log.push({ name, body });
      if (name === 'REGION_ADD' && (body as { domain: number }).domain === peer) return Promise.resolve({ errno: 0 });
      return usual(name, body, ...more);
    },
  });
  return log;
}

test('a device that another domain serves itself has memory of its own, granted to that domain', () =>
  withXen(async (world) => {
    const peer = world.xen.createDomain('server');
    world.service.transport.publishDevice(2, { peerDomid: peer, dataPath: 'direct' });
    const bus = await world.connect({ reconnect: true });
    const regions = noteRegions(bus, peer);
    const { memory, end } = await bus.memoryFor(2);
    assert.notEqual(memory, bus.memory);
    const again = await bus.memoryFor(2);
    assert.equal(again.memory, memory, 'one pool a domain');
    assert.equal((await bus.memoryFor(1)).memory, bus.memory);
    const added = regions[0]?.body;
    assert.equal(added?.domain, peer);
    assert.notEqual(added?.area, bus.memory.regions[0]?.area);
    const buffer = memory.alloc(5000, 4096);
    buffer.bytes.fill(0x5c);
    const offset = Number(buffer.busAddress & 0xffff_ffffn);
    const seen = mapPool(world, peer, Number(added?.reference), (4 * 1024 * 1024) / 4096);
    assert.deepEqual(seen.subarray(offset, offset + 5000), new Uint8Array(5000).fill(0x5c));
    // A disk of another memory copies.
    const blk = await BlkDriver.open(bus, 1);
    await blk.write(0, buffer.slice(0, 512));
    assert.equal(world.disk.bytes[0], 0x5c);
    world.kill();
    await until(() => bus.state === 'reconnecting', 'the loss is seen');
    regions.length = 0;
    await world.start();
    await until(() => bus.state === 'connected', 'the bus is back');
    assert.deepEqual(
      regions.map(({ body }) => body.domain),
      [0, peer],
    );
    await blk.close();
    end();
    end();
    assert.equal(regions.length, 2);
    again.end();
    await until(() => memory.regions.length === 0, 'the pool goes with its last user');
    assert.equal(regions[2]?.name, 'REGION_DEL');
  }));
