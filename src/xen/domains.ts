import { assert } from '../kit/assert.ts';
import { limits } from '../kit/limits.ts';
import { type Closable, Scope } from '../kit/scope.ts';
import { asDomid, type Domid, type Xenstore } from '../ports/hypervisor.ts';

export interface RunningDomain {
  readonly domid: Domid;
  readonly name: string;
  /** Lower case, 8-4-4-4-12 hexadecimal digits. */
  readonly uuid: string;
}

export interface DomainEvents {
  /** Its name and uuid are known, which may be later than its start. */
  appeared(domain: RunningDomain): void;
  /** It ended, though its pages may live on while they are mapped; or its name changed: then it appears anew. */
  gone(domain: RunningDomain): void;
}

interface Tracked {
  readonly watches: Scope;
  /** Undefined until name and uuid are known. */
  identity: RunningDomain | undefined;
}

const domainsPath = '/local/domain';
const vmPattern = /^\/vm\/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$/i;

/** Knows which domains run, by the toolstack's nodes in xenstore, which guests cannot write. Needs dom0. */
export class DomainWatcher implements Closable {
  readonly #xenstore: Xenstore;
  readonly #events: DomainEvents;
  readonly #tracked = new Map<Domid, Tracked>();
  readonly #scope = new Scope();

  /** @param xenstore stays the caller's */
  constructor(xenstore: Xenstore, events: DomainEvents) {
    this.#xenstore = xenstore;
    this.#events = events;
  }

  get domains(): RunningDomain[] {
    return [...this.#tracked.values()].flatMap(({ identity }) => identity ?? []);
  }

  /** Reports the domains that run already from within this call. @throws HypervisorError */
  start(): void {
    assert(!this.#scope.closed, 'a closed watcher does not start');
    for (const path of ['@introduceDomain', '@releaseDomain']) {
      this.#scope.own(this.#xenstore.watch(path, () => this.#scan()));
    }
    this.#scan();
  }

  close(): void {
    for (const { watches } of this.#tracked.values()) watches.close();
    this.#tracked.clear();
    this.#scope.close();
  }

  #scan(): void {
    const running = new Set(this.#runningNow());
    for (const [domid, tracked] of this.#tracked) if (!running.has(domid)) this.#forget(domid, tracked);
    for (const domid of running) {
      if (this.#scope.closed) return;
      if (this.#tracked.has(domid)) this.#identify(domid);
      else if (this.#tracked.size < limits.xenDomainsMax) this.#track(domid);
    }
  }

  #runningNow(): Domid[] {
    return (this.#xenstore.directory(domainsPath) ?? []).flatMap((name) => {
      const domid = /^\d+$/.test(name) ? asDomid(Number(name)) : undefined;
      return domid !== undefined && this.#xenstore.isIntroduced(domid) ? domid : [];
    });
  }

  #track(domid: Domid): void {
    const watches = new Scope();
    this.#tracked.set(domid, { watches, identity: undefined });
    for (const node of ['name', 'vm']) {
      watches.own(this.#xenstore.watch(`${domainsPath}/${domid}/${node}`, () => this.#identify(domid)));
    }
    this.#identify(domid);
  }

  /** Compares what is known of a domain with what xenstore says now; the number may even be another domain's. */
  #identify(domid: Domid): void {
    const tracked = this.#tracked.get(domid);
    if (tracked === undefined) return;
    const name = this.#xenstore.read(`${domainsPath}/${domid}/name`);
    const uuid = vmPattern.exec(this.#xenstore.read(`${domainsPath}/${domid}/vm`) ?? '')?.[1]?.toLowerCase();
    // What ends is told by @releaseDomain; nodes that are gone a little earlier do not count.
    if (name === undefined || name === '' || uuid === undefined) return;
    const { identity } = tracked;
    if (identity?.name === name && identity.uuid === uuid) return;
    tracked.identity = { domid, name, uuid };
    if (identity !== undefined) this.#events.gone(identity);
    // The listener may have closed us.
    if (this.#tracked.get(domid) === tracked) this.#events.appeared(tracked.identity);
  }

  #forget(domid: Domid, { watches, identity }: Tracked): void {
    watches.close();
    this.#tracked.delete(domid);
    if (identity !== undefined) this.#events.gone(identity);
  }
}
