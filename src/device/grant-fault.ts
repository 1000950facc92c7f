import { type Domid, type GrantMapper, HypervisorFault } from '../ports/hypervisor.ts';
import type { Access } from '../ports/memory.ts';

/** Errors that say nothing about the grant: the side that maps is short of something. */
const ownErrors: ReadonlySet<string> = new Set(['ENOMEM', 'ENOSPC', 'EMFILE', 'ENFILE', 'EBADF']);

/** Which of several references it is: the kernel does not tell. Maps at most twice as many pages as there are. */
function firstBad(mapper: GrantMapper, domid: Domid, references: Uint32Array, access: Access): number {
  let from = 0;
  let to = references.length;
  while (to - from > 1) {
    const middle = (from + to) >>> 1;
    const half = mapper.map(domid, references.subarray(from, middle), access);
    if (half instanceof HypervisorFault) {
      to = middle;
    } else {
      half.close();
      from = middle;
    }
  }
  return from;
}

/** Why grants of a guest could not be mapped, for a person: which one, whose, the errno, what to check. */
export function explainMapFault(
  mapper: GrantMapper,
  fault: HypervisorFault,
  references: Uint32Array,
  access: Access,
): string {
  const { domid, call, errno } = fault;
  const use = access === 'write' ? 'writing' : 'reading';
  if (ownErrors.has(errno)) {
    return `${references.length} grants of domain ${domid} cannot be mapped: ${call} gives ${errno}; the side that maps is short of memory or of grant mappings`;
  }
  const at = firstBad(mapper, domid, references, access);
  const place = references.length > 1 ? ` (page ${at + 1} of ${references.length})` : '';
  return `grant reference ${references[at]} of domain ${domid}${place} cannot be mapped for ${use}: ${call} gives ${errno}; check that domain ${domid} granted it to the domain that maps it, for ${use}, before it named it, and has not ended it`;
}
