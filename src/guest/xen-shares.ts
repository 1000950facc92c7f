import { VmsgError } from '../kit/errors.ts';
import type { Closable } from '../kit/scope.ts';
import type { Domid, EndNotice, GrantSharer, SharedPages } from '../ports/hypervisor.ts';
import { HypervisorError } from '../xen/errors.ts';
import { gntallocLimitPages } from '../xen/gntshr.ts';

/** Everything that this guest grants, on one handle of gntalloc: that is closed with the last pages. */
export class XenShares implements Closable {
  readonly #sharer: GrantSharer;
  #pages = 0;
  /** While the service lets go of a connection: what to close afterwards. */
  #held: Array<() => void> | undefined;
  #closed = false;

  constructor(sharer: GrantSharer) {
    this.#sharer = sharer;
  }

  /** @throws VmsgError 'limit-reached' when the kernel shares no more; HypervisorError */
  share(domid: Domid, pages: number, notice?: EndNotice): SharedPages {
    let shared: SharedPages;
    try {
      shared = this.#sharer.share(domid, pages, notice);
    } catch (error) {
      const isFull = error instanceof HypervisorError && error.errno === 'ENOSPC';
      throw isFull ? limitError(pages, this.#pages, error) : error;
    }
    this.#pages += pages;
    let open = true;
    const end = (): void => {
      shared.close();
      this.#pages -= pages;
      this.#finish();
    };
    return {
      bytes: shared.bytes,
      references: shared.references,
      close: () => {
        if (!open) return;
        open = false;
        if (this.#held === undefined) end();
        else this.#held.push(end);
      },
    };
  }

  /** From now on pages stay when they are closed, until `letGo`. */
  hold(): void {
    this.#held ??= [];
  }

  letGo(): void {
    const held = this.#held ?? [];
    this.#held = undefined;
    for (const end of held) end();
  }

  /** Pages that are not closed yet stay usable. Idempotent. */
  close(): void {
    this.#closed = true;
    this.#finish();
  }

  #finish(): void {
    if (this.#closed && this.#pages === 0) this.#sharer.close();
  }
}

function limitError(wanted: number, shared: number, cause: HypervisorError): VmsgError {
  const allowed = gntallocLimitPages();
  const bound = allowed === undefined ? '' : `, gntalloc allows ${allowed}`;
  const needed = Math.max(allowed ?? 0, shared) + wanted;
  return new VmsgError(
    'limit-reached',
    `the kernel does not share ${wanted} pages more than the ${shared} of this guest${bound}: modprobe xen-gntalloc limit=${needed}`,
    { cause },
  );
}
