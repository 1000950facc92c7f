import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { limits } from '../../src/kit/limits.ts';
import { loopback, settle, startWorld } from '../api/support.ts';
import { watch, withBus } from './service-world.ts';

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
            role: 'driver',
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
        dataPathReason: null,
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
    assert.ok(spec?.transport === 'loopback');
    assert.equal(spec.socketMode, 0o666);
    assert.deepEqual(spec.admittedUids, [1000, 1001]);
    assert.equal(spec.maxMessageSizeBytes, 264);
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
