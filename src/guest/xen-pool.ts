import { type Domid, grantPageBytes } from '../ports/hypervisor.ts';
import { directoryPages, writeDirectory } from '../virtio-msg/grant-directory.ts';
import type { OwnRegion } from './access.ts';
import type { XenShares } from './xen-shares.ts';

/** A region granted to a domain once, with the directory that lists its references. @throws as `XenShares.share` */
export function makePool(shares: XenShares, domid: Domid, bytes: number): OwnRegion {
  const pages = bytes / grantPageBytes;
  const region = shares.share(domid, pages);
  try {
    const directory = shares.share(domid, directoryPages(pages));
    const { buffer, byteOffset, length } = directory.bytes;
    writeDirectory(new Uint32Array(buffer, byteOffset, length / 4), directory.references, region.references);
    return {
      bytes: region.bytes,
      offer: () => directory.references[0]!,
      close() {
        region.close();
        directory.close();
      },
    };
  } catch (error) {
    region.close();
    throw error;
  }
}
