import assert from 'node:assert/strict';
import { limits } from '../../src/kit/limits.ts';
import type { Closable } from '../../src/kit/scope.ts';
import {
  type Domid,
  type EndNotice,
  type GrantMapper,
  type GrantMapping,
  type GrantSharer,
  grantPageBytes,
  type HandedPages,
  HypervisorFault,
  type SharedPages,
} from '../../src/ports/hypervisor.ts';
import type { Access } from '../../src/ports/memory.ts';
import { HypervisorError } from '../../src/xen/errors.ts';
import type { FakePort, FakePorts } from './fake-xen-events.ts';
import { FakeMemory, type FakeView } from './fake-xen-memory.ts';

interface Grant {
  readonly frame: number;
  readonly remote: number;
  readonly readOnly: boolean;
  maps: number;
  ended: boolean;
}

const firstReference = 8;

/** The memory of one domain and what it grants of it. */
export class FakeGrantTable implements Closable {
  readonly memory: FakeMemory;
  readonly #grants = new Map<number, Grant>();
  readonly #scattered: boolean;
  #closed = false;

  constructor(domid: number, scattered: boolean) {
    this.memory = new FakeMemory(`fake-xen-${domid}`);
    this.#scattered = scattered;
  }

  /** @returns references, ascending; consecutive ones unless the machine scatters them */
  add(frames: readonly number[], remote: number, readOnly: boolean): Uint32Array {
    const step = this.#scattered ? 2 : 1;
    let first = firstReference;
    while (frames.some((_, i) => this.#grants.has(first + i * step))) first++;
    const references = Uint32Array.from(frames, (_, i) => first + i * step);
    for (const [i, reference] of references.entries()) {
      this.#grants.set(reference, { frame: frames[i]!, remote, readOnly, maps: 0, ended: false });
    }
    return references;
  }

  /** Ends a grant; a page that is mapped stays as it is until it is not. */
  end(reference: number): void {
    const grant = this.#grants.get(reference)!;
    grant.ended = true;
    this.#reclaim(reference, grant);
  }

  /** Counts mappings of these references. @returns their frames; undefined, and nothing counted, if one is not granted so */
  take(references: Uint32Array, mapper: number, access: Access): number[] | undefined {
    const grants = Array.from(references, (reference) => this.#grants.get(reference));
    // As in Xen, a grant that is mapped cannot be ended yet, and can be mapped again until then.
    const allowed = (grant: Grant | undefined): grant is Grant =>
      grant !== undefined && grant.remote === mapper && (access === 'read' || !grant.readOnly);
    if (this.#closed || !grants.every(allowed)) return undefined;
    for (const grant of grants) grant.maps++;
    return grants.map((grant) => grant.frame);
  }

  give(references: Uint32Array): void {
    for (const reference of references) {
      const grant = this.#grants.get(reference)!;
      grant.maps--;
      this.#reclaim(reference, grant);
    }
  }

  /** The domain is gone: nothing can be mapped any more, what is mapped stays. */
  close(): void {
    this.#closed = true;
    this.memory.close();
  }

  #reclaim(reference: number, grant: Grant): void {
    if (this.#closed || !grant.ended || grant.maps > 0) return;
    this.#grants.delete(reference);
    this.memory.free(grant.frame);
  }
}

/** What grants need of the machine. */
export interface GrantMachine {
  readonly ports: FakePorts;
  table(domid: number): FakeGrantTable | undefined;
  /** Whether Xen's security module keeps these two apart. */
  separates(one: number, other: number): boolean;
}

interface FakeNotice {
  readonly byte: number;
  readonly port: FakePort;
}

/** Pages in one process, with what happens when they go. */
class FakePages implements GrantMapping, SharedPages {
  readonly references: Uint32Array;
  readonly #view: FakeView;
  readonly #notice: FakeNotice | undefined;
  readonly #ended: () => void;
  #closed = false;

  constructor(view: FakeView, references: Uint32Array, notice: FakeNotice | undefined, ended: () => void) {
    this.#view = view;
    this.references = references;
    this.#notice = notice;
    this.#ended = ended;
  }

  get bytes(): Uint8Array<ArrayBuffer> {
    return this.#view.bytes;
  }

  close(): void {
    this.end(true);
  }

  /** @param notify false: the domain died, so its kernel does nothing any more */
  end(notify: boolean): void {
    if (this.#closed) return;
    this.#closed = true;
    if (this.#notice !== undefined) {
      const { byte, port } = this.#notice;
      if (notify) {
        this.#view.bytes[byte] = 0;
        port.send();
      }
      port.release();
    }
    this.#view.close();
    this.#ended();
  }
}

type Kind = 'mapper' | 'sharer';

/** gntdev and gntalloc of one process. */
class FakeGrants {
  protected readonly machine: GrantMachine;
  protected readonly domid: Domid;
  readonly #pages = new Set<FakePages>();
  readonly #kind: Kind;
  #closed = false;

  constructor(machine: GrantMachine, domid: Domid, kind: Kind) {
    this.machine = machine;
    this.domid = domid;
    this.#kind = kind;
  }

  census(): { mappings: number; shares: number } {
    const count = this.#pages.size;
    return { mappings: this.#kind === 'mapper' ? count : 0, shares: this.#kind === 'sharer' ? count : 0 };
  }

  close(): void {
    this.end(true);
  }

  end(notify: boolean): void {
    this.#closed = true;
    for (const pages of this.#pages) pages.end(notify);
  }

  protected check(call: string, pages: number, notice: EndNotice | undefined): void {
    if (this.#closed) throw new HypervisorError(call, 'EBADF');
    assert.ok(pages >= 1 && pages <= limits.grantMapMaxPages, `${pages} pages`);
    // A notice concerns the first page; gntdev gives one for a page that is mapped alone only.
    assert.ok(notice === undefined || notice.byte < grantPageBytes);
    assert.ok(notice === undefined || this.#kind === 'sharer' || pages === 1);
  }

  protected track(
    view: FakeView,
    references: Uint32Array,
    notice: EndNotice | undefined,
    ended: () => void,
  ): FakePages {
    const port = notice === undefined ? undefined : this.machine.ports.find(this.domid, notice.port);
    port?.hold();
    const bound = notice === undefined || port === undefined ? undefined : { byte: notice.byte, port };
    const pages = new FakePages(view, references, bound, () => {
      this.#pages.delete(pages);
      ended();
    });
    this.#pages.add(pages);
    return pages;
  }

  protected noticeIsUsable(notice: EndNotice | undefined): boolean {
    return notice === undefined || this.machine.ports.find(this.domid, notice.port) !== undefined;
  }
}

export class FakeGrantMapper extends FakeGrants implements GrantMapper {
  constructor(machine: GrantMachine, domid: Domid) {
    super(machine, domid, 'mapper');
  }

  map(domid: Domid, references: Uint32Array, access: Access, notice?: EndNotice): GrantMapping | HypervisorFault {
    const call = notice === undefined ? 'xengnttab_map_domain_grant_refs' : 'xengnttab_map_grant_ref_notify';
    this.check(call, references.length, notice);
    const own = references.slice();
    const table = this.machine.table(domid);
    const apart = this.machine.separates(this.domid, domid);
    const possible = !apart && this.noticeIsUsable(notice) && (notice === undefined || access === 'write');
    const frames = possible ? table?.take(own, this.domid, access) : undefined;
    if (table === undefined || frames === undefined) {
      // gntdev has no other word for a refusal, that of a security module included.
      return new HypervisorFault(call, 'EINVAL', domid, own[0]!, own.length);
    }
    const view = table.memory.view(frames, access === 'write');
    return this.track(view, own, notice, () => table.give(own));
  }

  /** Grants that were handed over count as mapped until the descriptor is closed here: nobody tells of other processes. */
  handOver(domid: Domid, references: Uint32Array): HandedPages | HypervisorFault {
    const own = references.slice();
    const table = this.machine.table(domid);
    const frames = this.machine.separates(this.domid, domid) ? undefined : table?.take(own, this.domid, 'write');
    const handed = frames === undefined ? undefined : table?.memory.handOver(frames);
    if (table === undefined || handed === undefined) {
      if (frames !== undefined) table?.give(own);
      return new HypervisorFault('ioctl(GNTDEV_MAP_GRANT_REF)', 'EINVAL', domid, own[0]!, own.length);
    }
    let open = true;
    return {
      ...handed,
      close: () => {
        if (open) table.give(own);
        open = false;
      },
    };
  }
}

export class FakeGrantSharer extends FakeGrants implements GrantSharer {
  constructor(machine: GrantMachine, domid: Domid) {
    super(machine, domid, 'sharer');
  }

  /** @param readOnly as only a kernel driver grants: gntalloc here always grants for writing */
  share(domid: Domid, pages: number, notice?: EndNotice, readOnly = false): SharedPages {
    const call = notice === undefined ? 'xengntshr_share_pages' : 'xengntshr_share_page_notify';
    this.check(call, pages, notice);
    const table = this.machine.table(this.domid)!;
    if (!this.noticeIsUsable(notice)) throw new HypervisorError(call, 'EINVAL', { domid });
    const frames = table.memory.allocate(pages);
    if (frames === undefined) throw new HypervisorError(call, 'ENOSPC', { domid, what: `${pages} pages` });
    const references = table.add(frames, domid, readOnly);
    return this.track(table.memory.view(frames, true), references, notice, () => {
      for (const reference of references) table.end(reference);
    });
  }
}
