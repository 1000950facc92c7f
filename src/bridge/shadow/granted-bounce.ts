import { grantPool } from '../../device/granted-pool.ts';
import type { Domid, GrantSharer } from '../../ports/hypervisor.ts';
import type { BounceMemory } from './bounce-memory.ts';

/**
 * Memory that is granted to the domain of a serving guest, with a directory of its references.
 * @param own domain that grants: ours
 * @param bytes a multiple of 4096
 * @throws VmsgError hypervisor-call: for example the kernel's limit of granted pages
 */
export function grantedBounce(sharer: GrantSharer, server: Domid, own: Domid, bytes: number): BounceMemory {
  const pool = grantPool((pages) => sharer.share(server, pages), bytes);
  return {
    bytes: pool.bytes,
    name: () => ({ reference: pool.reference, domain: own }),
    named: () => pool.dropDirectory(),
    close: () => pool.close(),
  };
}
