import { grantPool } from '../device/granted-pool.ts';
import type { Domid } from '../ports/hypervisor.ts';
import type { OwnRegion } from './access.ts';
import type { XenShares } from './xen-shares.ts';

/** A region granted to a domain once, with the directory that lists its references. @throws as `XenShares.share` */
export function makePool(shares: XenShares, domid: Domid, bytes: number): OwnRegion {
  const pool = grantPool((pages) => shares.share(domid, pages), bytes);
  // The directory stays: each connection names the region anew.
  return { bytes: pool.bytes, offer: () => pool.reference, close: () => pool.close() };
}
