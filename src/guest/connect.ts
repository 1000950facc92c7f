import { LoopPoller, type Poller } from '../libc/poll.ts';
import type { Hypervisor } from '../ports/hypervisor.ts';
import { XenHypervisor } from '../xen/hypervisor.ts';
import { GuestBus } from './bus.ts';
import type { BusOptions } from './bus-types.ts';
import { LoopbackAccess } from './loopback-access.ts';
import { type LoopbackOptions, loopbackFactory } from './loopback-transport.ts';
import { XenAccess, type XenOptions } from './xen-access.ts';

/** Where the bus is, and how to use it. */
export type ConnectOptions = LoopbackOptions & BusOptions;

/**
 * Connects to a loopback bus as its guest and shares a first memory region.
 * @throws VmsgError 'unavailable' nobody serves the path; 'bus-busy' another guest is connected; 'bus-refused' this
 *   user may not; 'timeout'; 'protocol-violation'
 */
export function connect(options: ConnectOptions): Promise<GuestBus> {
  return GuestBus.open(new LoopbackAccess(loopbackFactory(options), options.poller), options);
}

export interface XenConnectOptions extends XenOptions, BusOptions {
  readonly poller?: Poller;
  /** Another one than this machine's, for tests. */
  readonly hypervisor?: Hypervisor;
}

/**
 * Connects to a bus of this Xen domain, through xenstore, event channels and gntalloc. A first region is shared unless
 * `memory` is 'grants'.
 * @throws VmsgError 'unavailable' no Xen here, no such bus, or nobody serves it; 'bus-busy' another process of this
 *   domain is connected; 'limit-reached' gntalloc shares too little; 'timeout'; 'protocol-violation'
 */
export async function connectXen(options: XenConnectOptions = {}): Promise<GuestBus> {
  const hypervisor = options.hypervisor ?? new XenHypervisor(options.poller ?? new LoopPoller());
  return await GuestBus.open(new XenAccess({ ...options, hypervisor, role: 'driver' }), options);
}
