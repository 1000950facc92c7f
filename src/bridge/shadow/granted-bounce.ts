import { type Domid, type GrantSharer, grantPageBytes } from '../../ports/hypervisor.ts';
import { directoryPages, writeDirectory } from '../../virtio-msg/grant-directory.ts';
import type { BounceMemory } from './bounce-memory.ts';

/**
 * Memory that is granted to the domain of a serving guest, with a directory of its references.
 * @param own domain that grants: ours
 * @param bytes a multiple of 4096
 * @throws VmsgError hypervisor-call: for example the kernel's limit of granted pages
 */
export function grantedBounce(sharer: GrantSharer, server: Domid, own: Domid, bytes: number): BounceMemory {
  const pages = sharer.share(server, bytes / grantPageBytes);
  try {
    const directory = sharer.share(server, directoryPages(bytes / grantPageBytes));
    const words = new Uint32Array(directory.bytes.buffer, directory.bytes.byteOffset, directory.bytes.length / 4);
    writeDirectory(words, directory.references, pages.references);
    return {
      bytes: pages.bytes,
      name: () => ({ reference: directory.references[0]!, domain: own }),
      named: () => directory.close(),
      close() {
        directory.close();
        pages.close();
      },
    };
  } catch (error) {
    pages.close();
    throw error;
  }
}
