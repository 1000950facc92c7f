import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { VmsgError } from '../../src/kit/errors.ts';
import { limits } from '../../src/kit/limits.ts';
import { settle } from '../api/support.ts';
import { refusedWith, withBus } from './service-world.ts';

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
