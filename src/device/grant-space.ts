import type { Clock, Timer } from '../kit/clock.ts';
import { errno } from '../kit/errno.ts';
import { limits } from '../kit/limits.ts';
import type { GrantSnapshot, GrantSpace } from '../ports/bus.ts';
import {
  type Domid,
  type GrantMapper,
  type GrantMapping,
  grantPageBytes,
  HypervisorFault,
} from '../ports/hypervisor.ts';
import { type Access, type Lease, TranslateFault } from '../ports/memory.ts';
import { grantOfAddress } from '../virtio-msg/xen-bus.ts';
import { explainMapFault } from './grant-fault.ts';

export interface GrantSpaceOptions {
  readonly mapper: GrantMapper;
  /** Who grants. */
  readonly domid: Domid;
  /** feature-persistent was agreed: mappings are kept for later descriptors until GRANT_RELEASE. */
  readonly persistent: boolean;
  readonly clock: Clock;
  /** Gets the text of each grant that does not map. */
  readonly diagnosed: (text: string) => void;
}

const referenceMax = 0xffff_ffff;

/** Consecutive references, mapped side by side. */
class Run {
  readonly first: number;
  readonly count: number;
  readonly writable: boolean;
  readonly mapping: GrantMapping;
  readonly #idle: (run: Run) => void;
  /** Requests that wait until it is unmapped. */
  readonly waiting = new Set<Release>();
  /** Stays mapped when nobody uses it. */
  kept = false;
  uses = 0;

  constructor(first: number, count: number, writable: boolean, mapping: GrantMapping, idle: (run: Run) => void) {
    this.first = first;
    this.count = count;
    this.writable = writable;
    this.mapping = mapping;
    this.#idle = idle;
  }

  /** Which descriptors find it again: those that begin where it begins. */
  get key(): number {
    return keyOf(this.first, this.writable);
  }

  end(): void {
    this.uses -= 1;
    if (this.uses === 0) this.#idle(this);
  }
}

const keyOf = (first: number, writable: boolean): number => first * 2 + (writable ? 1 : 0);

class RunLease implements Lease {
  #run: Run | undefined;

  constructor(run: Run) {
    this.#run = run;
    run.uses += 1;
  }

  release(): void {
    const run = this.#run;
    this.#run = undefined;
    run?.end();
  }
}

/** A GRANT_RELEASE that waits for I/O. */
class Release {
  readonly #runs: Set<Run>;
  readonly #timer: Timer;
  readonly #ended: (release: Release, result: number) => void;

  constructor(runs: readonly Run[], clock: Clock, ended: (release: Release, result: number) => void) {
    this.#runs = new Set(runs);
    this.#ended = ended;
    for (const run of runs) run.waiting.add(this);
    this.#timer = clock.after(limits.regionRemovalTimeoutMs, () => {
      this.drop();
      ended(this, errno.EBUSY);
    });
  }

  unmapped(run: Run): void {
    this.#runs.delete(run);
    if (this.#runs.size > 0) return;
    this.#timer.cancel();
    this.#ended(this, 0);
  }

  drop(): void {
    this.#timer.cancel();
    for (const run of this.#runs) run.waiting.delete(this);
  }
}

/** Grants of one domain, mapped when a descriptor names them and, where both sides agreed to it, kept for the next one. */
export class MappedGrants implements GrantSpace {
  readonly #o: GrantSpaceOptions;
  readonly #runs = new Set<Run>();
  readonly #kept = new Map<number, Run>();
  /** Those of `#kept` that nobody uses, the least recently used first. */
  readonly #idle = new Map<number, Run>();
  readonly #releases = new Set<Release>();
  readonly #references = new Uint32Array(limits.grantRunMaxPages);
  #keptPages = 0;
  #mappedPages = 0;
  #hits = 0;
  #misses = 0;
  #evictions = 0;
  #faults = 0;
  #closed = false;

  constructor(options: GrantSpaceOptions) {
    this.#o = options;
  }

  translate(hi: number, lo: number, length: number, access: Access, out: Uint8Array[]): Lease | TranslateFault {
    const first = grantOfAddress(hi, lo);
    const offset = lo & (grantPageBytes - 1);
    const pages = Math.ceil((offset + length) / grantPageBytes);
    const run = this.#find(first, pages, access) ?? this.#map(first, pages, access);
    if (typeof run === 'string') {
      this.#faults += 1;
      return new TranslateFault(run);
    }
    out.push(run.mapping.bytes.subarray(offset, offset + length));
    return new RunLease(run);
  }

  #find(first: number, pages: number, access: Access): Run | undefined {
    if (this.#kept.size === 0) return undefined;
    let run = this.#kept.get(keyOf(first, true));
    if (access === 'read' && (run === undefined || run.count < pages)) run = this.#kept.get(keyOf(first, false));
    if (run === undefined || run.count < pages) return undefined;
    this.#hits += 1;
    if (run.uses === 0) this.#idle.delete(run.key);
    return run;
  }

  /** @returns the mapping, or why there is none */
  #map(first: number, pages: number, access: Access): Run | string {
    const refused = this.#check(first, pages);
    if (refused !== undefined) return refused;
    this.#misses += 1;
    while (this.#mappedPages + pages > limits.grantMappedMaxPages && this.#evict());
    if (this.#mappedPages + pages > limits.grantMappedMaxPages) {
      return `more than ${limits.grantMappedMaxPages} pages of domain ${this.#o.domid} would be mapped at a time`;
    }
    const references = this.#references.subarray(0, pages);
    for (let i = 0; i < pages; i++) references[i] = first + i;
    const mapping = this.#o.mapper.map(this.#o.domid, references, access);
    if (mapping instanceof HypervisorFault) {
      const text = explainMapFault(this.#o.mapper, mapping, references, access);
      this.#o.diagnosed(text);
      return text;
    }
    const run = new Run(first, pages, access === 'write', mapping, (idle) => this.#onIdle(idle));
    this.#runs.add(run);
    this.#mappedPages += pages;
    if (this.#o.persistent) this.#keep(run);
    return run;
  }

  #check(first: number, pages: number): string | undefined {
    const { domid } = this.#o;
    if (this.#closed) return `the connection of domain ${domid} has ended`;
    if (first < 1) return `grant reference 0 of domain ${domid} names no grant`;
    if (pages > limits.grantRunMaxPages) {
      return `a descriptor names ${pages} grants of domain ${domid}, at most ${limits.grantRunMaxPages} are possible`;
    }
    if (first + pages - 1 > referenceMax) {
      return `${pages} grants of domain ${domid} from reference ${first} on: references have 32 bits`;
    }
    return undefined;
  }

  /** Keeps a run for later descriptors, as far as there is room. */
  #keep(run: Run): void {
    const shorter = this.#kept.get(run.key);
    if (shorter !== undefined) this.#forget(shorter);
    while (this.#keptPages + run.count > limits.grantCacheMaxPages) if (!this.#evict()) return;
    run.kept = true;
    this.#kept.set(run.key, run);
    this.#keptPages += run.count;
  }

  /** @returns false when all that is kept is in use */
  #evict(): boolean {
    const [oldest] = this.#idle.values();
    if (oldest === undefined) return false;
    this.#evictions += 1;
    this.#forget(oldest);
    return true;
  }

  /** Unmaps a run with its last use, or now. */
  #forget(run: Run): void {
    if (!run.kept) return;
    run.kept = false;
    this.#kept.delete(run.key);
    this.#idle.delete(run.key);
    this.#keptPages -= run.count;
    if (run.uses === 0) this.#unmap(run);
  }

  #onIdle(run: Run): void {
    if (run.kept) this.#idle.set(run.key, run);
    else this.#unmap(run);
  }

  #unmap(run: Run): void {
    this.#runs.delete(run);
    this.#mappedPages -= run.count;
    run.mapping.close();
    for (const release of run.waiting) release.unmapped(run);
  }

  release(first: number, count: number, done: (result: number) => void): void {
    if (first < 1 || count < 1 || first + count - 1 > referenceMax) {
      done(errno.EINVAL);
      return;
    }
    const used: Run[] = [];
    for (const run of this.#runs) {
      if (run.first >= first + count || first >= run.first + run.count) continue;
      this.#forget(run);
      if (run.uses > 0) used.push(run);
    }
    if (used.length === 0) {
      done(0);
    } else if (this.#releases.size >= limits.grantReleasesWaiting) {
      done(errno.EBUSY);
    } else {
      const release = new Release(used, this.#o.clock, (ended, result) => {
        this.#releases.delete(ended);
        done(result);
      });
      this.#releases.add(release);
    }
  }

  snapshot(): GrantSnapshot {
    return {
      persistent: this.#o.persistent,
      hits: this.#hits,
      misses: this.#misses,
      evictions: this.#evictions,
      faults: this.#faults,
      mappedPages: this.#mappedPages,
    };
  }

  /** Requests that wait get no answer any more. Idempotent. */
  close(): void {
    this.#closed = true;
    for (const release of this.#releases) release.drop();
    this.#releases.clear();
    for (const run of [...this.#kept.values()]) this.#forget(run);
  }
}
