import { assert } from '../kit/assert.ts';
import type { Closable } from '../kit/scope.ts';
import { detach } from '../libc/detach.ts';
import { viewMemory } from '../libc/native.ts';
import { grantPageBytes } from '../ports/hypervisor.ts';

/** Pages that a Xen library has mapped, seen without a copy; `close` empties every view of `bytes.buffer` first. */
export class XenPages implements Closable {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly #release: () => void;
  #closed = false;

  /** @param release gives the pages back; called once */
  constructor(address: number, pages: number, release: () => void) {
    this.bytes = new Uint8Array(viewMemory(address, pages * grantPageBytes));
    this.#release = release;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    assert(detach(this.bytes.buffer), 'a view of mapped pages can be emptied');
    this.#release();
  }
}
