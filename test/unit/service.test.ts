import assert from 'node:assert/strict';
import { describe, it, type TestContext } from 'node:test';
import type { ServiceEvent } from '../../src/bridge/events.ts';
import { nodeStoreFiles } from '../../src/bridge/store-files.ts';
import { type ErrorCode, VmsgError } from '../../src/kit/errors.ts';
import { limits } from '../../src/kit/limits.ts';
import { FakeLane } from '../api/fake-lane.ts';
import { blk, loopback, settle, startWorld, type World, type WorldOptions } from '../api/support.ts';

const refusedWith =
  (code: ErrorCode, pattern = /./) =>
  (error: unknown) => {
    assert.ok(error instanceof VmsgError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, pattern);
    return true;
  };

/** A service with one bus and one disk. */
async function withBus(t: TestContext, options: WorldOptions = {}): Promise<World> {
  const world = await startWorld(t, options);
  await world.service.put('domains', 'vm1', {});
  await world.service.put('buses', 'b', loopback);
  await world.service.put('backends', 'disk', blk);
  return world;
}

const watch = ({ service }: World): ServiceEvent[] => {
  const events: ServiceEvent[] = [];
  service.subscribe((event) => events.push(event));
  return events;
};

const statesOf = (events: readonly ServiceEvent[], object: string): unknown[] =>
  events.filter((event) => event.type === 'attachment-state' && event.object === object).map(({ data }) => data.state);

describe('service: reconciling', () => {
  it('tells the lane all it needs for a bus and an attachment', async (t) => {
    const { service, lane } = await withBus(t);
    const put = await service.put('attachments', 'a', { bus: 'b', backend: 'disk', deviceNumber: 7 });
    assert.equal(put.outcome, 'created');
    assert.deepEqual(
      lane.calls.filter(({ name }) => name === 'openBus' || name === 'attach'),
      [
        {
          name: 'openBus',
          argument: {
            bus: 'b',
            transport: 'loopback',
            domid: 1,
            socketPath: '/run/bus/b.sock',
            socketMode: 0o600,
            admittedUids: [1000, 0],
            maxMessageSizeBytes: limits.messageSizeDefaultBytes,
            ringMaxBytes: limits.ringMaxBytes,
            recoveryDir: '/run/recovery/b',
          },
        },
        {
          name: 'attach',
          argument: {
            bus: 'b',
            attachment: 'a',
            deviceNumber: 7,
            backend: { type: 'blk', path: '/srv/disk.img', readOnly: false, serial: 'disk' },
          },
        },
      ],
    );
    assert.deepEqual(put.resource, {
      id: 'a',
      kind: 'attachments',
      origin: 'api',
      revision: 4,
      spec: { bus: 'b', backend: 'disk', deviceNumber: 7 },
      status: {
        state: 'active',
        reason: null,
        deviceNumber: 7,
        deviceType: 'blk',
        deviceStatus: [],
        recovery: 'resume',
        dataPath: 'direct',
        epoch: '0x0',
        queues: [],
        requests: 0,
        bytes: 0,
      },
    });
  });

  it('opens the socket for other users where the bus admits them', async (t) => {
    const { service, lane } = await startWorld(t);
    await service.put('domains', 'vm1', {});
    await service.put('buses', 'b', { ...loopback, admittedUids: [1000, 1001], maxMessageSizeBytes: 264 });
    const spec = lane.buses.get('b')?.spec;
    assert.equal(spec?.socketMode, 0o666);
    assert.deepEqual(spec?.admittedUids, [1000, 1001]);
    assert.equal(spec?.maxMessageSizeBytes, 264);
  });

  it('gives domains the lowest free number and keeps it over a restart', async (t) => {
    const { service, directory } = await startWorld(t);
    for (const id of ['one', 'two', 'three']) await service.put('domains', id, {});
    await service.delete('domains', 'two');
    await service.put('domains', 'four', {});
    const again = await startWorld(t, { directory, configured: { domains: { one: {}, zero: {} } } });
    const { items } = await again.service.list('domains', { limit: 10 });
    assert.deepEqual(
      items.map(({ id, origin, status }) => [id, origin, status.domid]),
      [
        ['four', 'api', 2],
        ['one', 'config', 1],
        ['three', 'api', 3],
        ['zero', 'config', 4],
      ],
    );
  });

  it('brings everything back after a restart', async (t) => {
    const { service, directory } = await withBus(t);
    const { resource } = await service.put('attachments', 'a', { bus: 'b', backend: 'disk' });
    const { service: again, lane } = await startWorld(t, { directory });
    assert.equal(again.readiness(), null);
    assert.deepEqual(await again.get('attachments', 'a'), resource);
    assert.ok(lane.device('b', 'a'));
    assert.deepEqual(lane.violations, []);
  });

  it('shows what the lane measures', async (t) => {
    const { service, lane } = await withBus(t);
    await service.put('attachments', 'a', { bus: 'b', backend: 'disk' });
    const bus = lane.buses.get('b')!.snapshot;
    Object.assign(bus, {
      state: 'connected',
      epoch: 0x8000_0000_0000_0001n,
      peer: { pid: 1, uid: 2, gid: 3 },
      regions: 2,
    });
    const queues = [{ index: 0, size: 128, inFlight: 3 }];
    Object.assign(lane.device('b', 'a')!, { status: 15, requests: 9, bytes: 4096, queues });
    const { status } = await service.get('buses', 'b');
    assert.equal(status.state, 'connected');
    assert.equal(status.epoch, '0x8000000000000001');
    assert.deepEqual(status.peer, { pid: 1, uid: 2, gid: 3 });
    assert.deepEqual(status.attachments, ['a']);
    const attachment = (await service.get('attachments', 'a')).status;
    assert.deepEqual(attachment.deviceStatus, ['ACKNOWLEDGE', 'DRIVER', 'DRIVER_OK', 'FEATURES_OK']);
    assert.deepEqual([attachment.requests, attachment.bytes, attachment.queues], [9, 4096, queues]);
    assert.equal(attachment.epoch, '0x8000000000000001');
    Object.assign(lane.device('b', 'a')!, { status: 15 | 64, reason: 'descriptor loop' });
    const degraded = (await service.get('attachments', 'a')).status;
    assert.deepEqual([degraded.state, degraded.reason], ['degraded', 'descriptor loop']);
  });

  it('asks the lane once for readers that come together, and anew after a change', async (t) => {
    const { service, lane } = await withBus(t);
    const before = lane.count('inspect');
    await Promise.all(Array.from({ length: 20 }, () => service.list('buses', { limit: 10 })));
    assert.equal(lane.count('inspect'), before + 1);
    const release = lane.hold('inspect');
    const early = service.get('buses', 'b');
    const put = service.put('attachments', 'a', { bus: 'b', backend: 'disk' });
    await settle();
    release();
    await early;
    assert.equal((await put).resource.status.deviceNumber, 0);
    assert.equal(lane.count('inspect'), before + 3);
    await service.list('domains', { limit: 1 });
    assert.equal(lane.count('inspect'), before + 3);
  });
});

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

describe('service: one object, many operations', () => {
  it('never leaves half of an attachment, in whatever order puts and deletes of it come', async (t) => {
    const { service, lane } = await withBus(t);
    const spec = { bus: 'b', backend: 'disk' };
    const outcomes: string[] = [];
    const run = (operation: Promise<unknown>) =>
      operation.then(
        () => outcomes.push('done'),
        (error: unknown) => {
          assert.ok(error instanceof VmsgError && error.code === 'not-found', String(error));
          outcomes.push('not-found');
        },
      );
    for (let round = 0; round < 20; round += 1) {
      const operations: Promise<unknown>[] = [];
      for (let i = 0; i < 8; i += 1) {
        const isPut = ((round * 37 + i * 11) % 7) % 2 === 0;
        operations.push(run(isPut ? service.put('attachments', 'a', spec) : service.delete('attachments', 'a')));
      }
      await Promise.all(operations);
      const wanted = await service.get('attachments', 'a').then(
        () => true,
        () => false,
      );
      assert.equal(lane.device('b', 'a') !== undefined, wanted);
    }
    assert.deepEqual(lane.violations, []);
    assert.ok(outcomes.includes('done') && outcomes.includes('not-found'));
  });

  it('does not delete a bus under an attachment on its way', async (t) => {
    const { service, lane } = await withBus(t);
    const release = lane.hold('attach');
    const put = service.put('attachments', 'a', { bus: 'b', backend: 'disk' });
    await settle();
    const removals = [service.delete('buses', 'b'), service.delete('backends', 'disk')];
    const results = Promise.allSettled(removals);
    await settle();
    await assert.rejects(service.get('attachments', 'a'), refusedWith('not-found'));
    release();
    await put;
    for (const result of await results) {
      assert.equal(result.status, 'rejected');
      assert.ok(result.reason instanceof VmsgError && result.reason.code === 'in-use');
      assert.match(result.reason.message, /attachment "a"/);
    }
  });

  it('reserves a disk and a device number while the lane works', async (t) => {
    const { service, lane } = await withBus(t);
    await service.put('backends', 'rng', { type: 'rng' });
    const release = lane.hold('attach');
    const first = service.put('attachments', 'a', { bus: 'b', backend: 'disk', deviceNumber: 3 });
    await settle();
    await assert.rejects(service.put('attachments', 'a2', { bus: 'b', backend: 'disk' }), refusedWith('backend-busy'));
    await assert.rejects(
      service.put('attachments', 'a2', { bus: 'b', backend: 'rng', deviceNumber: 3 }),
      refusedWith('device-number-taken'),
    );
    release();
    await first;
  });

  it('bounds those that wait for one object', async (t) => {
    const { service, lane } = await withBus(t);
    const release = lane.hold('attach');
    const spec = { bus: 'b', backend: 'disk' };
    const puts = Array.from({ length: limits.operationsWaitingPerObject + 2 }, () =>
      service.put('attachments', 'a', spec),
    );
    const results = Promise.allSettled(puts);
    await settle();
    release();
    const refused = (await results).filter((result) => result.status === 'rejected');
    assert.equal(refused.length, 1);
    assert.ok(refused.every(({ reason }) => reason instanceof VmsgError && reason.code === 'unavailable'));
  });

  it('stops in order and refuses what comes later', async (t) => {
    const { service, lane } = await withBus(t);
    await service.stop();
    await service.stop();
    assert.equal(lane.count('shutdown'), 1);
    assert.equal(lane.closed.count, 1);
    assert.match(service.readiness() ?? '', /stopping/);
    await assert.rejects(service.put('domains', 'x', {}), refusedWith('unavailable'));
  });
});

describe('service: events', () => {
  it('tell what the lane reports and how attachments change', async (t) => {
    const world = await withBus(t);
    const events = watch(world);
    await world.service.put('attachments', 'a', { bus: 'b', backend: 'disk' });
    const peer = { pid: 10, uid: 1000, gid: 1000 };
    const device = { type: 'device-status', bus: 'b', attachment: 'a', deviceNumber: 0 } as const;
    world.lane.emit({ type: 'bus-connected', bus: 'b', epoch: 1n, peer, resumed: false });
    world.lane.emit({ ...device, status: 64 | 15, reason: 'descriptor loop' });
    world.lane.emit({ ...device, status: 0, reason: null });
    world.lane.emit({ type: 'bus-disconnected', bus: 'b', epoch: 1n, reason: 'closed' });
    world.lane.emit({ type: 'bus-refused', bus: 'b', peer, reason: 'EACCES' });
    await world.service.delete('attachments', 'a');
    assert.deepEqual(
      events.map(({ type, data }) => [type, data.state ?? data.reason ?? null]),
      [
        ['object-created', null],
        ['attachment-state', 'active'],
        ['bus-connected', null],
        ['device-status', 'descriptor loop'],
        ['attachment-state', 'degraded'],
        ['device-status', null],
        ['attachment-state', 'active'],
        ['bus-disconnected', 'closed'],
        ['bus-refused', 'EACCES'],
        ['attachment-state', 'detaching'],
        ['object-deleted', null],
      ],
    );
    const ids = events.map(({ id }) => id);
    assert.deepEqual(
      ids,
      ids.map((_, index) => ids[0]! + index),
    );
    assert.equal(events[0]?.time, '2026-01-02T00:00:00.000Z');
  });

  it('are kept for those who come back', async (t) => {
    const { service } = await startWorld(t);
    for (let i = 0; i < limits.eventHistoryEvents + 5; i += 1) {
      await service.put('domains', 'vm1', { description: `${i}` });
    }
    const collect = (after?: number) => {
      const ids: number[] = [];
      const subscription = service.subscribe(({ id }) => ids.push(id), after);
      subscription.close();
      return { ids, complete: subscription.complete };
    };
    const last = limits.eventHistoryEvents + 5;
    assert.deepEqual(collect(), { ids: [], complete: true });
    assert.deepEqual(collect(last - 2), { ids: [last - 1, last], complete: true });
    assert.equal(collect(5).complete, true);
    assert.equal(collect(5).ids.length, limits.eventHistoryEvents);
    assert.equal(collect(4).complete, false);
    assert.equal(collect(last + 1).complete, false);
  });
});
