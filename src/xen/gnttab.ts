import { assert } from '../kit/assert.ts';
import { limits } from '../kit/limits.ts';
import { linux } from '../libc/constants.ts';
import { errnoName } from '../libc/errno.ts';
import { lastErrno } from '../libc/native.ts';
import {
  type Domid,
  type EndNotice,
  type GrantMapper,
  type GrantMapping,
  grantPageBytes,
  HypervisorFault,
} from '../ports/hypervisor.ts';
import type { Access } from '../ports/memory.ts';
import { callFailed, checkedHandle } from './handle.ts';
import type { GrantCalls } from './native.ts';
import { XenPages } from './pages.ts';

/** /dev/xen/gntdev. */
export class XenGrantMapper implements GrantMapper {
  readonly #calls: GrantCalls;
  readonly #handle: number;
  readonly #mappings = new Set<XenPages>();
  #closed = false;

  /** @throws HypervisorError */
  constructor(calls: GrantCalls) {
    this.#calls = calls;
    this.#handle = checkedHandle(calls.open(calls.logger, 0), 'xengnttab_open', '/dev/xen/gntdev');
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
