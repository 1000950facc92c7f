import { GuestBus } from './bus.ts';
import type { BusOptions } from './bus-types.ts';
import { type LoopbackOptions, loopbackFactory } from './loopback-transport.ts';

/** Where the bus is, and how to use it. */
export type ConnectOptions = LoopbackOptions & BusOptions;

/**
 * Connects to a loopback bus as its guest and shares a first memory region.
 * @throws VmsgError 'unavailable' nobody serves the path; 'bus-busy' another guest is connected; 'bus-refused' this
 *   user may not; 'timeout'; 'protocol-violation'
 */
export function connect(options: ConnectOptions): Promise<GuestBus> {
  return GuestBus.open(loopbackFactory(options), options);
}
