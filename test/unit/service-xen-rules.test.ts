import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { VmsgError } from '../../src/kit/errors.ts';
import { limits } from '../../src/kit/limits.ts';
import { type Cleanup, settle, startWorld, type World } from '../api/support.ts';
import { stateOf, uuid, vm, watch, withXenBus, xenBus } from './service-world.ts';

describe('service: rules of Xen objects', () => {
  it('a domain has one name or UUID, which does not change and is its own', async (t) => {
    const { service } = await startWorld(t);
    for (const xen of [{}, { name: 'x', uuid: uuid(1) }]) {
      await assert.rejects(service.put('domains', 'd', { xen }), pointingAt('invalid-request', '/xen'));
    }
    await assert.rejects(
      service.put('domains', 'd', { xen: { name: 'a/b' } }),
      pointingAt('invalid-request', '/xen/name'),
    );
    await service.put('domains', 'd', { xen: { name: 'x' } });
    await service.put('domains', 'd', { xen: { name: 'x' }, description: 'new' });
    await assert.rejects(service.put('domains', 'd', { xen: { name: 'y' } }), pointingAt('immutable', '/xen'));
    await assert.rejects(service.put('domains', 'd', {}), pointingAt('immutable', '/xen'));
    await assert.rejects(service.put('domains', 'e', { xen: { name: 'x' } }), pointingAt('domain-taken', '/xen/name'));
    await service.put('domains', 'plain', {});
    await assert.rejects(service.put('domains', 'plain', { xen: { name: 'z' } }), pointingAt('immutable', '/xen'));
  });

  it('a bus fits its domain, and has an index of its own', async (t) => {
    const { service } = await startWorld(t);
    await service.put('domains', 'vm1', { xen: { name: 'x' } });
    await service.put('domains', 'plain', {});
    const put = (spec: object) => service.put('buses', 'b', { ...xenBus, ...spec });
    await assert.rejects(put({ transport: 'loopback' }), pointingAt('invalid-request', '/transport'));
    await assert.rejects(put({ domain: 'plain' }), pointingAt('invalid-request', '/transport'));
    await assert.rejects(put({ admittedUids: [0] }), pointingAt('invalid-request', '/admittedUids'));
    const loopback = { domain: 'plain', transport: 'loopback' } as const;
    await assert.rejects(put({ ...loopback, index: 0 }), pointingAt('invalid-request', '/index'));
    await assert.rejects(put({ ...loopback, poolMaxBytes: 4096 }), pointingAt('invalid-request', '/poolMaxBytes'));
    await assert.rejects(put({ index: limits.busesPerDomain }), pointingAt('invalid-request', '/index'));
    for (const poolMaxBytes of [0, 4097, limits.poolMaxBytes + 4096]) {
      await assert.rejects(put({ poolMaxBytes }), pointingAt('invalid-request', '/poolMaxBytes'));
    }
    await assert.rejects(put({ onStuck: 'report' }), pointingAt('invalid-request', '/onStuck'));
    const serves = { ...loopback, role: 'device', onStuck: 'destroy-mapper' };
    await assert.rejects(put(serves), pointingAt('invalid-request', '/onStuck'));
    await put({});
    await assert.rejects(service.put('buses', 'c', xenBus), pointingAt('bus-index-taken', '/index'));
    await service.put('buses', 'c', { ...xenBus, index: 1, role: 'device', onStuck: 'destroy-mapper' });
  });

  it('two objects that turn out to be one domain do not share an index', async (t) => {
    const world = await withXenBus(t);
    await world.service.put('domains', 'twin', { xen: { uuid: uuid(3) } });
    await world.service.put('buses', 'c', { ...xenBus, domain: 'twin' });
    world.xen.run(vm(3));
    await settle();
    assert.deepEqual(await stateOf(world, 'buses', 'b'), ['listening', null]);
    assert.deepEqual(await stateOf(world, 'buses', 'c'), ['failed', 'index 0 of the Xen domain 3 belongs to bus "b"']);
  });

  it('a loopback domain may have the number of a domain of Xen', async (t) => {
    const world = await withXenBus(t);
    await world.service.put('domains', 'plain', {});
    await world.service.put('buses', 'c', { domain: 'plain', transport: 'loopback', role: 'driver' });
    world.xen.run(vm(1));
    await settle();
    assert.equal((await world.service.get('domains', 'plain')).status.domid, 1);
    assert.deepEqual(await stateOf(world, 'buses', 'b'), ['listening', null]);
  });

  it('a domain of Xen takes no loopback number', async (t) => {
    const configured = { domains: { a: { xen: { name: 'x' } }, b: {} } };
    const { service } = await startWorld(t, { configured });
    assert.equal((await service.get('domains', 'b')).status.domid, 1);
    await service.put('domains', 'c', { xen: { name: 'y' } });
    await service.put('domains', 'd', {});
    assert.equal((await service.get('domains', 'd')).status.domid, 2);
  });
});

const pointingAt = (code: string, pointer: string) => (error: unknown) => {
  assert.ok(error instanceof VmsgError, String(error));
  assert.deepEqual([error.code, error.pointer], [code, pointer], error.message);
  return true;
};

describe('service: memory that a domain keeps', () => {
  const stuck = {
    type: 'share-stuck',
    bus: 'b',
    domid: 3,
    pages: 4096,
    ageMs: 5000,
    mapperBus: 's',
    mapperDomid: 4,
  } as const;

  async function serving(t: Cleanup, onStuck: 'report' | 'destroy-mapper'): Promise<World> {
    const world = await startWorld(t);
    await world.service.put('domains', 'server', { xen: { name: 'server' } });
    await world.service.put('buses', 's', { domain: 'server', transport: 'xen', role: 'device', onStuck });
    world.xen.run(vm(4, 'server'));
    await settle();
    return world;
  }

  it('is reported', async (t) => {
    const world = await serving(t, 'report');
    const events = watch(world);
    world.lane.emit(stuck);
    Object.assign(world.lane.buses.get('s')!.snapshot, { stuck: [{ domid: 3, pages: 4096, ageMs: 5000 }] });
    await settle();
    assert.deepEqual(world.xen.destroyed, []);
    const { stuckShares } = (await world.service.get('domains', 'server')).status;
    assert.deepEqual(stuckShares, [{ bus: 's', domid: 3, pages: 4096, ageMs: 5000 }]);
    assert.deepEqual(
      events.map(({ type, kind, object, data }) => [type, kind, object, data.domid, data.pages, data.mapperDomid]),
      [['share-stuck', 'buses', 's', 3, 4096, 4]],
    );
    assert.match(world.warnings.at(-1)?.message ?? '', /does not let go/);
  });

  it('ends the domain where its bus says so, and that is in the log', async (t) => {
    const world = await serving(t, 'destroy-mapper');
    world.lane.emit(stuck);
    await settle();
    assert.deepEqual(world.xen.destroyed, [4]);
    assert.equal((await world.service.get('domains', 'server')).status.state, 'absent');
    const logged = world.warnings.map(({ message }) => message);
    assert.deepEqual(logged, [
      'destroying a domain that does not let go of memory of another one',
      'the domain was destroyed',
    ]);
    assert.deepEqual(world.warnings[0]?.data, {
      bus: 's',
      domain: 'server',
      mapperDomid: 4,
      memoryOf: 3,
      pages: 4096,
      ageMs: 5000,
    });
  });

  it('ends no domain that is not the one of the bus, and no failure ends the service', async (t) => {
    const world = await serving(t, 'destroy-mapper');
    for (const mapperDomid of [0, 5]) world.lane.emit({ ...stuck, mapperDomid });
    await settle();
    assert.deepEqual(world.xen.destroyed, []);
    world.xen.protectedDomids.add(4);
    world.lane.emit(stuck);
    await settle();
    assert.deepEqual(world.xen.destroyed, [4]);
    assert.match(world.warnings.at(-1)?.message ?? '', /could not be destroyed/);
  });
});
