import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { ServiceEvent } from '../../src/bridge/events.ts';
import { nodeStoreFiles } from '../../src/bridge/store-files.ts';
import { VmsgError } from '../../src/kit/errors.ts';
import { limits } from '../../src/kit/limits.ts';
import { FakeLane } from '../api/fake-lane.ts';
import { blk, loopback, settle, startWorld } from '../api/support.ts';
import { refusedWith, statesOf, watch, withBus } from './service-world.ts';

describe('service: failures', () => {
  it('leaves nothing behind of an attachment that the lane refuses', async (t) => {
    const world = await withBus(t);
    const { service, lane } = world;
    const events = watch(world);
    lane.refusals.set('attach a', new VmsgError('backend-unusable', 'no such file'));
    const spec = { bus: 'b', backend: 'disk' };
    await assert.rejects(service.put('attachments', 'a', spec), refusedWith('backend-unusable', /no such file/));
    await assert.rejects(service.get('attachments', 'a'), refusedWith('not-found'));
    assert.deepEqual(events, []);
    await service.delete('backends', 'disk');
    await service.put('backends', 'disk', blk);
    lane.refusals.clear();
    assert.equal((await service.put('attachments', 'a', spec)).outcome, 'created');
  });

  it('takes back an attachment whose answer never came', async (t) => {
    const { service, lane } = await withBus(t);
    lane.refusals.set('attach a', new VmsgError('timeout', 'no answer'));
    await assert.rejects(service.put('attachments', 'a', { bus: 'b', backend: 'disk' }), refusedWith('timeout'));
    assert.deepEqual(lane.calls.at(-1), { name: 'detach', argument: { bus: 'b', attachment: 'a' } });
  });

  it('keeps what fails at start, says why, and tries again with growing pauses', async (t) => {
    const { service, directory } = await withBus(t);
    await service.put('attachments', 'a', { bus: 'b', backend: 'disk' });
    const lane = new FakeLane();
    lane.refusals.set('attach a', new VmsgError('backend-unusable', 'no such file'));
    const again = await startWorld(t, { directory, lane });
    assert.equal(again.service.readiness(), null);
    const { status } = await again.service.get('attachments', 'a');
    assert.deepEqual([status.state, status.reason, status.deviceNumber], ['failed', 'no such file', null]);
    const events = watch(again);
    let tries = lane.count('attach');
    for (const pauseMs of [1, 2, 4, 8, 16, 32, 60, 60].map((seconds) => seconds * 1000)) {
      await again.clock.advance(pauseMs - 1);
      assert.equal(lane.count('attach'), tries);
      await again.clock.advance(1);
      tries += 1;
      assert.equal(lane.count('attach'), tries, `after ${pauseMs}`);
    }
    assert.deepEqual(events, [], 'the same reason is told once');
    lane.refusals.clear();
    await again.clock.advance(limits.reconcileRetryMaxMs);
    assert.equal((await again.service.get('attachments', 'a')).status.state, 'active');
    assert.deepEqual(statesOf(events, 'a'), ['active']);
    assert.equal(again.clock.pending, 0);
  });

  it('opens a bus later and attaches its devices at once', async (t) => {
    const { service, directory } = await withBus(t);
    await service.put('attachments', 'a', { bus: 'b', backend: 'disk' });
    const lane = new FakeLane();
    lane.refusals.set('openBus b', new VmsgError('system-call', 'bind: EADDRINUSE'));
    const again = await startWorld(t, { directory, lane });
    assert.deepEqual(
      [(await again.service.get('buses', 'b')).status.state, (await again.service.get('buses', 'b')).status.reason],
      ['failed', 'bind: EADDRINUSE'],
    );
    assert.match(
      (await again.service.get('attachments', 'a')).status.reason ?? '',
      /bus "b" is not open: bind: EADDRINUSE/,
    );
    await assert.rejects(
      again.service.put('attachments', 'a2', { bus: 'b', backend: 'disk' }),
      refusedWith('backend-busy'),
    );
    await again.service.put('backends', 'rng', { type: 'rng' });
    await assert.rejects(
      again.service.put('attachments', 'a2', { bus: 'b', backend: 'rng' }),
      refusedWith('unavailable', /not open/),
    );
    lane.refusals.clear();
    await again.clock.advance(limits.reconcileRetryMinMs);
    await again.clock.advance(0);
    assert.ok(lane.device('b', 'a'));
    assert.deepEqual(lane.violations, []);
  });

  it('shows everything as failed when the lane fails, and refuses changes', async (t) => {
    const world = await withBus(t);
    const { service, lane } = world;
    await service.put('attachments', 'a', { bus: 'b', backend: 'disk' });
    const events = watch(world);
    lane.hold('detach');
    const pending = service.delete('attachments', 'a');
    await settle();
    lane.emit({ type: 'lane-failed', reason: 'worker exited' });
    await assert.rejects(pending, refusedWith('unavailable', /worker exited/));
    assert.match(service.readiness() ?? '', /the lane failed: worker exited/);
    for (const status of [(await service.get('buses', 'b')).status, (await service.get('attachments', 'a')).status]) {
      assert.equal(status.state, 'failed');
      assert.match(status.reason ?? '', /worker exited/);
    }
    await assert.rejects(service.put('domains', 'vm2', {}), refusedWith('unavailable'));
    await assert.rejects(service.delete('domains', 'vm1'), refusedWith('unavailable'));
    assert.ok(events.some(({ type, kind, object }) => type === 'lane-failed' && kind === 'service' && object === ''));
  });

  it('does not answer a put before the store has it, and undoes it when the store fails', async (t) => {
    const broken = { now: false };
    const files = {
      ...nodeStoreFiles,
      sync: (path: string) => {
        if (broken.now) throw new Error('ENOSPC: no space left');
        nodeStoreFiles.sync(path);
      },
    };
    const { service, lane, clock } = await withBus(t, { files });
    broken.now = true;
    const spec = { bus: 'b', backend: 'disk' };
    await assert.rejects(service.put('attachments', 'a', spec), refusedWith('system-call', /ENOSPC/));
    assert.equal(lane.device('b', 'a'), undefined);
    broken.now = false;
    await service.put('attachments', 'a', spec);
    broken.now = true;
    await assert.rejects(service.delete('attachments', 'a'), refusedWith('system-call'));
    assert.equal(lane.device('b', 'a'), undefined);
    assert.equal((await service.get('attachments', 'a')).status.state, 'pending');
    await clock.advance(limits.reconcileRetryMinMs);
    assert.ok(lane.device('b', 'a'), 'it is wanted, so it comes back');
  });

  it('keeps an attachment that the lane does not let go', async (t) => {
    const world = await withBus(t);
    const { service, lane } = world;
    await service.put('attachments', 'a', { bus: 'b', backend: 'disk' });
    const events = watch(world);
    lane.refusals.set('detach a', new VmsgError('timeout', 'requests in flight'));
    await assert.rejects(service.delete('attachments', 'a'), refusedWith('timeout'));
    assert.equal((await service.get('attachments', 'a')).status.state, 'active');
    assert.deepEqual(statesOf(events, 'a'), ['detaching', 'active']);
    lane.refusals.clear();
    await service.delete('attachments', 'a');
    await assert.rejects(service.get('attachments', 'a'), refusedWith('not-found'));
  });
});

describe('service: config objects', () => {
  const configured = {
    domains: { vm1: {} },
    buses: { b: loopback },
    backends: { disk: blk },
    attachments: { a: { bus: 'b', backend: 'disk' } },
  };

  it('are read-only and may be used by objects of the API', async (t) => {
    const { service } = await startWorld(t, { configured });
    assert.equal((await service.get('attachments', 'a')).origin, 'config');
    for (const [kind, id] of [
      ['domains', 'vm1'],
      ['buses', 'b'],
      ['backends', 'disk'],
      ['attachments', 'a'],
    ] as const) {
      const { spec } = await service.get(kind, id);
      await assert.rejects(service.put(kind, id, spec), refusedWith('config-owned'));
      await assert.rejects(service.delete(kind, id), refusedWith('config-owned'));
    }
    await service.put('backends', 'rng', { type: 'rng' });
    await service.put('attachments', 'x', { bus: 'b', backend: 'rng' });
  });

  it('hide a stored object of the same id until they are gone', async (t) => {
    const { service, directory } = await startWorld(t);
    await service.put('backends', 'disk', { type: 'rng' });
    const hidden = await startWorld(t, { directory, configured });
    assert.equal((await hidden.service.get('backends', 'disk')).origin, 'config');
    assert.deepEqual(
      hidden.warnings.map(({ data }) => data),
      [{ kind: 'backends', id: 'disk' }],
    );
    const events: ServiceEvent[] = [];
    hidden.service.subscribe((event) => events.push(event), 0);
    assert.ok(events.some(({ type, object }) => type === 'object-hidden' && object === 'disk'));
    await hidden.service.put('domains', 'vm2', {});
    const back = await startWorld(t, { directory });
    const { origin, spec } = await back.service.get('backends', 'disk');
    assert.deepEqual([origin, spec], ['api', { type: 'rng' }]);
  });

  it('with a missing reference fail and recover when it comes', async (t) => {
    const { service, clock } = await startWorld(t, { configured: { ...configured, backends: {} } });
    const { status } = await service.get('attachments', 'a');
    assert.deepEqual([status.state, status.reason], ['failed', 'backend "disk" does not exist']);
    assert.equal(status.deviceType, 'unknown');
    await service.put('backends', 'disk', blk);
    await clock.advance(0);
    assert.equal((await service.get('attachments', 'a')).status.state, 'active');
  });

  it('come before stored ones, and in the order of the file', async (t) => {
    const spec = { bus: 'b', backend: 'disk' };
    const first = await startWorld(t, { configured: { ...configured, attachments: {} } });
    await first.service.put('attachments', 'stored', spec);
    const attachments = { z: spec, a: spec };
    const { service } = await startWorld(t, { directory: first.directory, configured: { ...configured, attachments } });
    assert.equal((await service.get('attachments', 'z')).status.state, 'active');
    for (const id of ['a', 'stored']) {
      const { state, reason } = (await service.get('attachments', id)).status;
      assert.deepEqual([state, reason], ['failed', 'backend "disk" is writable and belongs to attachment "z"']);
    }
  });

  it('that are wrong stop the start with a pointer', async (t) => {
    const wrong = { backends: { disk: { type: 'blk', path: 'relative' } } } as const;
    await assert.rejects(startWorld(t, { configured: wrong }), (error) => {
      assert.ok(error instanceof VmsgError);
      assert.deepEqual([error.code, error.pointer], ['invalid-config', '/backends/disk/path']);
      return true;
    });
  });
});
