import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { VmsgError } from '../../src/kit/errors.ts';
import { limits } from '../../src/kit/limits.ts';
import { FakeLane } from '../api/fake-lane.ts';
import { settle, startWorld, type World } from '../api/support.ts';
import { FakeDomains } from '../support/fake-domains.ts';
import { refusedWith, stateOf, statesOf, uuid, vm, watch, withXenBus, xenBus } from './service-world.ts';

const laneCalls = ({ lane }: World): string[] =>
  lane.calls.map(({ name }) => name).filter((name) => name !== 'inspect');

describe('service: Xen domains', () => {
  it('keep bus and attachment waiting until they run, without a timer', async (t) => {
    const world = await withXenBus(t);
    assert.deepEqual(await stateOf(world, 'buses', 'b'), ['pending', 'domain vm1 is not running']);
    const waiting = ['pending', 'bus "b" is not open: domain vm1 is not running'];
    assert.deepEqual(await stateOf(world, 'attachments', 'a'), waiting);
    assert.equal(world.clock.pending, 0);
    assert.deepEqual(laneCalls(world), []);
    const { status } = await world.service.get('domains', 'vm1');
    assert.deepEqual([status.state, status.domid, status.name, status.buses], ['absent', null, null, ['b']]);
    assert.equal((await world.service.get('buses', 'b')).status.address, 'xen:?/device/vmsg/0');
  });

  it('get their bus with its devices before it lets the guest in', async (t) => {
    const world = await withXenBus(t);
    const events = watch(world);
    world.xen.run(vm(3), vm(4, 'other'));
    await settle();
    assert.deepEqual(laneCalls(world), ['openBus', 'attach', 'listenBus']);
    assert.deepEqual(world.lane.buses.get('b')?.spec, {
      bus: 'b',
      transport: 'xen',
      role: 'driver',
      domid: 3,
      incarnation: `3.${uuid(3)}`,
      index: 0,
      poolMaxBytes: limits.poolMaxBytes,
      maxMessageSizeBytes: limits.messageSizeDefaultBytes,
      recoveryDir: '/run/recovery/b@xen',
    });
    assert.deepEqual(
      events.map(({ type, object }) => `${type} ${object}`),
      ['domain-appeared vm1', 'bus-state b', 'attachment-state a'],
    );
    assert.deepEqual(events[0]?.data, { domid: 3, name: 'guest', uuid: uuid(3) });
    const { status } = await world.service.get('domains', 'vm1');
    assert.deepEqual(
      [status.state, status.reason, status.domid, status.name, status.uuid],
      ['running', null, 3, 'guest', uuid(3)],
    );
    assert.equal((await world.service.get('buses', 'b')).status.address, 'xen:3/device/vmsg/0');
    assert.deepEqual(await stateOf(world, 'attachments', 'a'), ['active', null]);
  });

  it('take their bus along when they go, and get it back with another number', async (t) => {
    const world = await withXenBus(t);
    world.xen.run(vm(3));
    await settle();
    world.xen.backends.add('3/0');
    const events = watch(world);
    world.xen.run();
    await settle();
    assert.equal(world.lane.buses.size, 0);
    assert.deepEqual(await stateOf(world, 'buses', 'b'), ['pending', 'domain vm1 is not running']);
    assert.equal((await world.service.get('attachments', 'a')).status.deviceNumber, null);
    assert.deepEqual(statesOf(events, 'a'), ['pending']);
    assert.deepEqual(events[0]?.data, { domid: 3 });
    assert.deepEqual([...world.xen.backends], [], 'what the lane may have left is swept');
    world.xen.run(vm(5));
    await settle();
    assert.deepEqual(world.lane.buses.get('b')?.spec.domid, 5);
    assert.deepEqual(await stateOf(world, 'attachments', 'a'), ['active', null]);
    assert.deepEqual(world.lane.violations, []);
  });

  it('that restart at once are another domain', async (t) => {
    const world = await withXenBus(t);
    world.xen.run(vm(3));
    await settle();
    world.xen.run(vm(4, 'guest', uuid(3)));
    await settle();
    assert.deepEqual(laneCalls(world).slice(3), ['closeBus', 'openBus', 'attach', 'listenBus']);
    assert.equal(world.lane.buses.get('b')?.spec.domid, 4);
    assert.ok(world.lane.buses.get('b')?.listens);
  });

  it('that are renamed lose their bus to the one that has the name now', async (t) => {
    const world = await withXenBus(t);
    world.xen.run(vm(3), vm(4, 'other'));
    await settle();
    world.xen.run(vm(3, 'old'), vm(4, 'guest'));
    await settle();
    assert.equal(world.lane.buses.get('b')?.spec.domid, 4);
  });

  it('of one name: the newest is meant, and that is said', async (t) => {
    const world = await withXenBus(t);
    world.xen.run(vm(9), vm(3));
    await settle();
    assert.equal(world.lane.buses.get('b')?.spec.domid, 9);
    const { state, reason } = (await world.service.get('domains', 'vm1')).status;
    assert.deepEqual([state, reason], ['running', 'the domains 9, 3 have the name guest; the newest one is meant']);
    assert.equal(world.warnings.length, 1);
    world.xen.run(vm(9), vm(3), vm(10, 'third'));
    assert.equal(world.warnings.length, 1);
  });

  it('are found by UUID, whatever their name', async (t) => {
    const world = await startWorld(t);
    await world.service.put('domains', 'vm1', { xen: { uuid: uuid(7).replaceAll('0', 'a').toUpperCase() } });
    await world.service.put('buses', 'b', { ...xenBus, index: 2, poolMaxBytes: 8192 });
    world.xen.run(vm(7, 'any', uuid(7).replaceAll('0', 'a')));
    await settle();
    const spec = world.lane.buses.get('b')?.spec;
    assert.ok(spec?.transport === 'xen');
    assert.deepEqual([spec.domid, spec.index, spec.poolMaxBytes], [7, 2, 8192]);
    assert.equal((await world.service.get('buses', 'b')).status.address, 'xen:7/device/vmsg/2');
  });

  it('that run already get what is put at once', async (t) => {
    const world = await startWorld(t);
    world.xen.run(vm(3));
    await world.service.put('domains', 'vm1', { xen: { name: 'guest' } });
    assert.equal((await world.service.put('buses', 'b', xenBus)).resource.status.state, 'listening');
    assert.ok(world.lane.buses.get('b')?.listens);
    assert.equal(world.clock.pending, 0);
  });

  it('that die while their bus is opened lose it', async (t) => {
    const world = await withXenBus(t);
    const release = world.lane.hold('openBus');
    world.xen.run(vm(3));
    await settle();
    world.xen.run();
    await settle();
    release();
    await settle();
    assert.equal(world.lane.buses.size, 0);
    assert.deepEqual(await stateOf(world, 'buses', 'b'), ['pending', 'domain vm1 is not running']);
    assert.deepEqual(world.lane.violations, []);
  });

  it('that go while an attachment is deleted leave neither', async (t) => {
    const world = await withXenBus(t);
    world.xen.run(vm(3));
    await settle();
    const release = world.lane.hold('detach');
    const deleted = world.service.delete('attachments', 'a');
    await settle();
    world.xen.run();
    await settle();
    assert.equal(world.lane.count('closeBus'), 0, 'the bus stays while a detach is under way');
    release();
    await deleted;
    await settle();
    assert.equal(world.lane.buses.size, 0);
    await assert.rejects(world.service.get('attachments', 'a'), refusedWith('not-found'));
    assert.deepEqual(world.lane.violations, []);
  });

  it('leave later when the lane does not let go of their bus', async (t) => {
    const world = await withXenBus(t);
    world.xen.run(vm(3));
    await settle();
    world.lane.refusals.set('closeBus b', new VmsgError('timeout', 'requests in flight'));
    world.xen.run(vm(4));
    await settle();
    assert.equal(world.lane.buses.get('b')?.spec.domid, 3);
    world.lane.refusals.clear();
    await world.clock.advance(limits.reconcileRetryMinMs);
    assert.equal(world.lane.buses.get('b')?.spec.domid, 4);
    assert.deepEqual(await stateOf(world, 'attachments', 'a'), ['active', null]);
  });

  it('whose bus cannot let guests in are tried again with all devices', async (t) => {
    const world = await withXenBus(t);
    world.lane.refusals.set('listenBus b', new VmsgError('hypervisor-call', 'EIO'));
    world.xen.run(vm(3));
    await settle();
    assert.deepEqual(await stateOf(world, 'buses', 'b'), ['failed', 'EIO']);
    assert.deepEqual(await stateOf(world, 'attachments', 'a'), ['failed', 'bus "b" is not open: EIO']);
    world.lane.refusals.clear();
    await world.clock.advance(limits.reconcileRetryMinMs);
    assert.ok(world.lane.buses.get('b')?.listens);
    assert.ok(world.lane.device('b', 'a'));
    assert.deepEqual(world.lane.violations, []);
  });
});

describe('service: Xen itself', () => {
  it('is not touched as long as no object names a Xen domain', async (t) => {
    const { service, xen } = await startWorld(t);
    await service.put('domains', 'vm1', {});
    assert.equal(xen.opened, 0);
    await service.put('domains', 'vm2', { xen: { name: 'guest' } });
    assert.equal(xen.opened, 1);
    await service.stop();
    assert.equal(xen.closed, 1);
  });

  it('may be missing, which is no error, and may come later', async (t) => {
    const xen = new FakeDomains();
    xen.missing = 'no Xen on this machine: /dev/xen/evtchn is not there';
    const world = await withXenBus(t, { xen });
    const { state, reason } = (await world.service.get('domains', 'vm1')).status;
    assert.deepEqual([state, reason], ['absent', xen.missing]);
    const waiting = ['pending', `domain vm1 is not running: ${xen.missing}`];
    assert.deepEqual(await stateOf(world, 'buses', 'b'), waiting);
    assert.equal(world.service.readiness(), null);
    xen.missing = undefined;
    xen.run(vm(3));
    await world.clock.advance(limits.reconcileRetryMinMs);
    assert.deepEqual(await stateOf(world, 'attachments', 'a'), ['active', null]);
  });
});

describe('service: Xen domains at start', () => {
  it('find all buses with their devices, then all are admitted; what is left of others is swept', async (t) => {
    const first = await withXenBus(t);
    await first.service.put('domains', 'vm2', { xen: { name: 'second' } });
    await first.service.put('buses', 'b2', { ...xenBus, domain: 'vm2', index: 1 });
    await first.service.put('backends', 'rng', { type: 'rng' });
    await first.service.put('attachments', 'a2', { bus: 'b2', backend: 'rng' });
    const xen = new FakeDomains();
    xen.run(vm(3), vm(4, 'second'));
    for (const backend of ['3/0', '3/1', '4/1', '9/0']) xen.backends.add(backend);
    const lane = new FakeLane();
    const world = await startWorld(t, { directory: first.directory, lane, xen });
    assert.deepEqual([...xen.backends].sort(), ['3/0', '4/1'], 'guests resume on what is kept');
    // A device that one bus serves may be attached to another.
    assert.deepEqual(laneCalls(world), ['openBus', 'openBus', 'attach', 'attach', 'listenBus', 'listenBus']);
    assert.ok(lane.device('b', 'a'));
    assert.ok(lane.buses.get('b2')?.listens);
    await settle();
    assert.deepEqual(lane.violations, []);
  });

  it('that are not there wait, and a change during the start is not lost', async (t) => {
    const first = await withXenBus(t);
    const xen = new FakeDomains();
    const lane = new FakeLane();
    const release = lane.hold('openBus');
    xen.run(vm(3));
    const starting = startWorld(t, { directory: first.directory, lane, xen });
    await settle();
    xen.run();
    release();
    const world = await starting;
    await settle();
    assert.equal(lane.buses.size, 0);
    assert.deepEqual(await stateOf(world, 'attachments', 'a'), [
      'pending',
      'bus "b" is not open: domain vm1 is not running',
    ]);
  });
});

describe('service: devices that a Xen domain serves', () => {
  it('wait for the domain that serves them, and are tried as soon as it does', async (t) => {
    const world = await startWorld(t);
    const { service, xen, lane } = world;
    await service.put('domains', 'vm1', { xen: { name: 'guest' } });
    await service.put('domains', 'server', { xen: { name: 'server' } });
    await service.put('buses', 'b', xenBus);
    await service.put('buses', 's', { domain: 'server', transport: 'xen', role: 'device' });
    await service.put('backends', 'far', { type: 'guest', bus: 's', deviceNumber: 0 });
    xen.run(vm(3));
    await settle();
    await service.put('attachments', 'a', { bus: 'b', backend: 'far' });
    const waiting = ['pending', 'bus "s" is not open: domain server is not running'];
    assert.deepEqual(await stateOf(world, 'attachments', 'a'), waiting);
    xen.run(vm(3), vm(4, 'server'));
    await settle();
    await world.clock.advance(0);
    assert.ok(lane.device('b', 'a'));
    assert.deepEqual(lane.violations, []);
  });
});
