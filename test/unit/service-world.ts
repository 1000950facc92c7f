import assert from 'node:assert/strict';
import type { ServiceEvent } from '../../src/bridge/events.ts';
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
