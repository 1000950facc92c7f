import { assert } from '../kit/assert.ts';
import { limits } from '../kit/limits.ts';
import { linux } from '../libc/constants.ts';
import { errnoName } from '../libc/errno.ts';
import { ioctlPointer, lastErrno } from '../libc/native.ts';
import {
  type Domid,
  type EndNotice,
  type GrantMapper,
  type GrantMapping,
  grantPageBytes,
  type HandedPages,
  HypervisorFault,
} from '../ports/hypervisor.ts';
import type { Access } from '../ports/memory.ts';
import { callFailed, checkedHandle, openNode } from './handle.ts';
import type { GrantCalls } from './native.ts';
import { XenPages } from './pages.ts';

const node = '/dev/xen/gntdev';
/**
 * IOCTL_GNTDEV_MAP_GRANT_REF of Linux: u32 count, u32 padding, u64 index (out), then u32 domid and u32 reference each. Its
 * number counts the first reference only. The library has no call that leaves the mapping to another process.
 */
const mapGrantRef = 0x184700;
const requestWords = 4;
const indexWord = 2;

/** /dev/xen/gntdev. */
export class XenGrantMapper implements GrantMapper {
  readonly #calls: GrantCalls;
  readonly #handle: number;
  readonly #mappings = new Set<XenPages>();
  #closed = false;

  /** @throws HypervisorError */
  constructor(calls: GrantCalls) {
    this.#calls = calls;
    this.#handle = checkedHandle(calls.open(calls.logger, 0), 'xengnttab_open', node);
  }

  map(domid: Domid, references: Uint32Array, access: Access, notice?: EndNotice): GrantMapping | HypervisorFault {
    const pages = references.length;
    assert(!this.#closed, 'a closed mapper maps nothing');
    assert(pages >= 1 && pages <= limits.grantMapMaxPages, `${pages} references are mapped at once`);
    // The library reads them where they are: a view of shared memory could change under its checks.
    const own = references.slice();
    const protection = access === 'write' ? linux.PROT_READ | linux.PROT_WRITE : linux.PROT_READ;
    const address =
      notice === undefined
        ? this.#calls.mapRefs(this.#handle, pages, domid, own, protection)
        : this.#mapNoticed(domid, own, protection, notice);
    if (address === 0) {
      const call = notice === undefined ? 'xengnttab_map_domain_grant_refs' : 'xengnttab_map_grant_ref_notify';
      return new HypervisorFault(call, errnoName(lastErrno()), domid, own[0]!, pages);
    }
    const mapping = new XenPages(address, pages, () => {
      this.#mappings.delete(mapping);
      if (this.#calls.unmap(this.#handle, address, pages) !== 0) callFailed('xengnttab_unmap', { domid });
    });
    this.#mappings.add(mapping);
    return mapping;
  }

  handOver(domid: Domid, references: Uint32Array): HandedPages | HypervisorFault {
    const pages = references.length;
    assert(pages >= 1 && pages <= limits.grantMapMaxPages, `${pages} references are mapped at once`);
    const device = openNode(node);
    // What `close` of this descriptor frees is what was asked for through it, so each has one of its own.
    const request = new Uint32Array(requestWords + 2 * pages);
    request[0] = pages;
    for (const [i, reference] of references.entries()) request.set([domid, reference], requestWords + 2 * i);
    if (ioctlPointer(device.number, mapGrantRef, 'void *', request) === 0) {
      const offset = BigInt(request[indexWord]!) + (BigInt(request[indexWord + 1]!) << 32n);
      return { fd: device.number, offset, close: () => device.close() };
    }
    const errno = errnoName(lastErrno());
    device.close();
    return new HypervisorFault('ioctl(GNTDEV_MAP_GRANT_REF)', errno, domid, references[0]!, pages);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const mapping of this.#mappings) mapping.close();
    this.#calls.close(this.#handle);
  }

  #mapNoticed(domid: Domid, own: Uint32Array, protection: number, { byte, port }: EndNotice): number {
    assert(own.length === 1 && byte < grantPageBytes, 'a notice is about a byte of one page');
    return this.#calls.mapRefNotify(this.#handle, domid, own[0]!, protection, byte, port);
  }
}
