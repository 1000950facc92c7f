import type { ErrnoName } from '../../kit/errno.ts';
import type { Closable } from '../../kit/scope.ts';
import { Mapping } from '../../libc/mapping.ts';
import { createMemfd } from '../../libc/memfd.ts';

/** What REGION_ADD says of memory of ours. */
export interface BounceReference {
  readonly reference: number;
  /** Domain that granted it; 0 where it is a descriptor. */
  readonly domain: number;
}

/** Memory of ours that a serving side maps too. It may change at any time. */
export interface BounceMemory extends Closable {
  /** Empty once closed. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Names it to the serving side. @param give hands a descriptor over to it */
  name(give: (fd: number) => number | ErrnoName): BounceReference | ErrnoName;
  /** The serving side has answered: what only finding the memory needed goes. */
  named(): void;
}

/** Memory that is shared by its descriptor. @throws VmsgError system-call */
export function memfdBounce(bytes: number): BounceMemory {
  const fd = createMemfd('vmsg-shadow', bytes);
  let mapping: Mapping;
  try {
    mapping = Mapping.map(fd.number, 0, bytes, { writable: true });
  } catch (error) {
    fd.close();
    throw error;
  }
  return {
    bytes: mapping.bytes,
    name(give) {
      const reference = give(fd.number);
      return typeof reference === 'string' ? reference : { reference, domain: 0 };
    },
    named: () => fd.close(),
    close() {
      mapping.close();
      fd.close();
    },
  };
}
