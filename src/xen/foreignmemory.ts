import { assert } from '../kit/assert.ts';
import { limits } from '../kit/limits.ts';
import type { Closable } from '../kit/scope.ts';
import { linux } from '../libc/constants.ts';
import { errnoName } from '../libc/errno.ts';
import { lastErrno } from '../libc/native.ts';
import { type Domid, HypervisorFault } from '../ports/hypervisor.ts';
import { checkedHandle } from './handle.ts';
import type { ForeignCalls } from './native.ts';
import { XenPages } from './pages.ts';

/** Pages of a guest that it has not granted: what only dom0 may look at, for diagnosis. Never written. */
export class ForeignMemory implements Closable {
  readonly #calls: ForeignCalls;
  readonly #handle: number;
  readonly #pages = new Set<XenPages>();
  #closed = false;

  /** @throws HypervisorError */
  constructor(calls: ForeignCalls) {
    this.#calls = calls;
    this.#handle = checkedHandle(calls.open(calls.logger, 0), 'xenforeignmemory_open', '/dev/xen/privcmd');
  }

  /** Maps guest frames side by side, read-only: a store ends the process. All or none. */
  map(domid: Domid, frames: readonly bigint[]): XenPages | HypervisorFault {
    const count = frames.length;
    assert(!this.#closed, 'closed foreign memory maps nothing');
    assert(count >= 1 && count <= limits.grantMapMaxPages, `${count} frames are mapped at once`);
    const errors = new Int32Array(count);
    const own = BigUint64Array.from(frames);
    const address = this.#calls.map(this.#handle, domid, linux.PROT_READ, count, own, errors);
    const fault = (errno: string, at: number) =>
      new HypervisorFault('xenforeignmemory_map', errno, domid, Number(own[at]), count);
    if (address === 0) return fault(errnoName(lastErrno()), 0);
    const failing = errors.findIndex((error) => error !== 0);
    if (failing >= 0) {
      this.#calls.unmap(this.#handle, address, count);
      return fault(errnoName(Math.abs(errors[failing]!)), failing);
    }
    const pages = new XenPages(address, count, () => {
      this.#pages.delete(pages);
      this.#calls.unmap(this.#handle, address, count);
    });
    this.#pages.add(pages);
    return pages;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const pages of this.#pages) pages.close();
    this.#calls.close(this.#handle);
  }
}
