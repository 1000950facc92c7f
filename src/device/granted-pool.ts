import type { Closable } from '../kit/scope.ts';
import { grantPageBytes, type SharedPages } from '../ports/hypervisor.ts';
import { directoryPages, writeDirectory } from '../virtio-msg/grant-directory.ts';

/** Pages of ours that another domain may map, with the directory that lists them. */
export interface GrantedPool extends Closable {
  /** Empty after `close`. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Of the first directory page: what REGION_ADD names. */
  readonly reference: number;
  /** The other side has mapped the pages: it needs the directory no more. Idempotent. */
  dropDirectory(): void;
}

/**
 * @param share grants so many pages to the domain
 * @param bytes a multiple of 4096. @throws what `share` throws; nothing is granted then
 */
export function grantPool(share: (pages: number) => SharedPages, bytes: number): GrantedPool {
  const count = bytes / grantPageBytes;
  const pages = share(count);
  try {
    const directory = share(directoryPages(count));
    const { buffer, byteOffset, length } = directory.bytes;
    writeDirectory(new Uint32Array(buffer, byteOffset, length / 4), directory.references, pages.references);
    return {
      bytes: pages.bytes,
      reference: directory.references[0]!,
      dropDirectory: () => directory.close(),
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
