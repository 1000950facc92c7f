import assert from 'node:assert/strict';
import type { ServiceEvent } from '../../src/bridge/events.ts';
import type { RunningDomain } from '../../src/bridge/service/domains.ts';
import { type ErrorCode, VmsgError } from '../../src/kit/errors.ts';
import { blk, type Cleanup, loopback, startWorld, type World, type WorldOptions } from '../api/support.ts';

/** Checks a rejection. */
export const refusedWith =
  (code: ErrorCode, pattern = /./) =>
  (error: unknown) => {
    assert.ok(error instanceof VmsgError, String(error));
    assert.equal(error.code, code, error.message);
    assert.match(error.message, pattern);
    return true;
  };

/** A service with one bus and one disk. */
export async function withBus(t: Cleanup, options: WorldOptions = {}): Promise<World> {
  const world = await startWorld(t, options);
  await world.service.put('domains', 'vm1', {});
  await world.service.put('buses', 'b', loopback);
  await world.service.put('backends', 'disk', blk);
  return world;
}

/** Collects what happens from now on. */
export const watch = ({ service }: World): ServiceEvent[] => {
  const events: ServiceEvent[] = [];
  service.subscribe((event) => events.push(event));
  return events;
};

/** The states that an attachment was told to have. */
export const statesOf = (events: readonly ServiceEvent[], object: string): unknown[] =>
  events.filter((event) => event.type === 'attachment-state' && event.object === object).map(({ data }) => data.state);

export const uuid = (digit: number): string => `${'0'.repeat(7)}${digit}-0000-4000-8000-000000000000`;
export const vm = (domid: number, name = 'guest', id = uuid(domid)): RunningDomain => ({
  domid,
  name,
  uuid: id,
});
export const xenBus = { domain: 'vm1', transport: 'xen', role: 'driver' } as const;

/** A service with one Xen domain, a bus of it, and a disk on that. */
export async function withXenBus(t: Cleanup, options: WorldOptions = {}): Promise<World> {
  const world = await startWorld(t, options);
  await world.service.put('domains', 'vm1', { xen: { name: 'guest' } });
  await world.service.put('buses', 'b', xenBus);
  await world.service.put('backends', 'disk', blk);
  await world.service.put('attachments', 'a', { bus: 'b', backend: 'disk' });
  return world;
}

export async function stateOf({ service }: World, kind: 'buses' | 'attachments', id: string): Promise<unknown[]> {
  const { state, reason } = (await service.get(kind, id)).status;
  return [state, reason];
}
