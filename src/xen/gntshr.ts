import { readFileSync } from 'node:fs';
import { assert } from '../kit/assert.ts';
import { limits } from '../kit/limits.ts';
import { linux } from '../libc/constants.ts';
import { errnoName } from '../libc/errno.ts';
import type { Fd } from '../libc/fd.ts';
import { isMapFailed, lastErrno, mmap, munmap } from '../libc/native.ts';
import { type Domid, type EndNotice, type GrantSharer, grantPageBytes, type SharedPages } from '../ports/hypervisor.ts';
import { HypervisorError } from './errors.ts';
import { callFailed, openNode } from './handle.ts';
import { ioctl } from './native.ts';
import { XenPages } from './pages.ts';

/** Where Linux tells, and root sets, how many pages gntalloc grants in all. */
export const gntallocLimitFile = '/sys/module/xen_gntalloc/parameters/limit';

/** Pages that all processes of this domain together may grant through gntalloc; undefined where there is no gntalloc. */
export function gntallocLimitPages(): number | undefined {
  try {
    return Number(readFileSync(gntallocLimitFile, 'latin1'));
  } catch {
    return undefined;
  }
}

/** Requests of gntalloc: number, and bytes of the argument's fixed part (uapi/xen/gntalloc.h). */
const alloc = { request: 0x184705, headBytes: 16, leastBytes: 24 } as const;
const dealloc = { request: 0x104706, bytes: 16 } as const;
const setNotice = { request: 0x104707, bytes: 16 } as const;
const writable = 1;
const clearByte = 1;
const sendEvent = 2;

/** Pages that gntalloc has made: `offsets` are where its device file has them. */
interface Granted {
  readonly index: number;
  readonly references: Uint32Array;
  readonly offsets: readonly number[];
}

/**
 * /dev/xen/gntalloc, by its requests: libxengntshr gives a notice for a single page only, and pages in the order in
 * which the kernel found references. Linux hands out those that were freed last first, which makes them descend.
 */
export class XenGrantSharer implements GrantSharer {
  readonly #device: Fd;
  readonly #shares = new Set<XenPages>();

  /** @throws HypervisorError */
  constructor() {
    this.#device = openNode('/dev/xen/gntalloc');
  }

  share(domid: Domid, pages: number, notice?: EndNotice): SharedPages {
    assert(!this.#device.closed, 'a closed sharer shares nothing');
    assert(pages >= 1 && pages <= limits.grantMapMaxPages, `${pages} pages are shared at once`);
    assert(notice === undefined || notice.byte < grantPageBytes, 'a notice is about a byte of the first page');
    const granted = this.#grant(domid, pages);
    let address: number;
    try {
      address = this.#map(granted.offsets);
      try {
        if (notice !== undefined) this.#notice(granted.offsets[0]!, notice);
      } catch (error) {
        munmap(address, pages * grantPageBytes);
        throw error;
      }
    } finally {
      this.#forget(granted.index, pages);
    }
    const mapped = new XenPages(address, pages, () => {
      this.#shares.delete(mapped);
      if (munmap(address, pages * grantPageBytes) !== 0) callFailed('munmap', { domid, what: `${pages} pages` });
    });
    this.#shares.add(mapped);
    return { bytes: mapped.bytes, references: granted.references, close: () => mapped.close() };
  }

  #grant(domid: Domid, pages: number): Granted {
    const argument = new Uint8Array(Math.max(alloc.leastBytes, alloc.headBytes + pages * 4));
    const view = new DataView(argument.buffer);
    view.setUint16(0, domid, true);
    view.setUint16(2, writable, true);
    view.setUint32(4, pages, true);
    if (ioctl(this.#device.number, alloc.request, argument) !== 0) {
      const errno = errnoName(lastErrno());
      const hint =
        errno === 'ENOSPC' ? `The kernel allows ${gntallocLimitPages()} pages (${gntallocLimitFile}).` : undefined;
      throw new HypervisorError('IOCTL_GNTALLOC_ALLOC_GREF', errno, { domid, what: `${pages} pages` }, hint);
    }
    const index = Number(view.getBigUint64(8, true));
    const given = new Uint32Array(argument.buffer, alloc.headBytes, pages);
    const order = Array.from(given.keys()).sort((a, b) => given[a]! - given[b]!);
    return {
      index,
      references: Uint32Array.from(order, (page) => given[page]!),
      offsets: order.map((page) => index + page * grantPageBytes),
    };
  }

  /** Maps pages of the device file side by side. */
  #map(offsets: readonly number[]): number {
    const reserve = linux.MAP_PRIVATE | linux.MAP_ANONYMOUS | linux.MAP_NORESERVE;
    const base = mappedAt(mmap(0, offsets.length * grantPageBytes, linux.PROT_NONE, reserve, -1, 0));
    try {
      for (let from = 0, to = 0; from < offsets.length; from = to) {
        for (to = from + 1; offsets[to] === offsets[to - 1]! + grantPageBytes; ) to += 1;
        const at = base + from * grantPageBytes;
        const access = linux.PROT_READ | linux.PROT_WRITE;
        const flags = linux.MAP_SHARED | linux.MAP_FIXED;
        mappedAt(mmap(at, (to - from) * grantPageBytes, access, flags, this.#device.number, offsets[from]!));
      }
      return base;
    } catch (error) {
      munmap(base, offsets.length * grantPageBytes);
      throw error;
    }
  }

  #notice(offset: number, { byte, port }: EndNotice): void {
    const argument = new Uint8Array(setNotice.bytes);
    const view = new DataView(argument.buffer);
    view.setBigUint64(0, BigInt(offset + byte), true);
    view.setUint32(8, clearByte | sendEvent, true);
    view.setUint32(12, port, true);
    if (ioctl(this.#device.number, setNotice.request, argument) !== 0) {
      callFailed('IOCTL_GNTALLOC_SET_UNMAP_NOTIFY', { what: `port ${port}` });
    }
  }

  /** Takes pages out of the device file, so that they end with their mapping. */
  #forget(index: number, pages: number): void {
    const argument = new Uint8Array(dealloc.bytes);
    const view = new DataView(argument.buffer);
    view.setBigUint64(0, BigInt(index), true);
    view.setUint32(8, pages, true);
    if (ioctl(this.#device.number, dealloc.request, argument) !== 0) callFailed('IOCTL_GNTALLOC_DEALLOC_GREF');
  }

  close(): void {
    if (this.#device.closed) return;
    for (const mapped of this.#shares) mapped.close();
    this.#device.close();
  }
}

function mappedAt(address: number | bigint): number {
  return isMapFailed(address) ? callFailed('mmap', { what: '/dev/xen/gntalloc' }) : address;
}
