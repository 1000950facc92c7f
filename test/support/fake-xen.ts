import assert from 'node:assert/strict';
import { type Scheduler, systemScheduler } from '../../src/kit/scheduler.ts';
import type { Closable } from '../../src/kit/scope.ts';
import {
  asDomid,
  type Domid,
  type EventChannels,
  type GrantMapper,
  type GrantSharer,
  type Hypervisor,
  type Xenstore,
  type XenstorePermission,
} from '../../src/ports/hypervisor.ts';
import { FakeEventChannels, FakePorts } from './fake-xen-events.ts';
import { FakeGrantMapper, FakeGrantSharer, FakeGrantTable } from './fake-xen-grants.ts';
import { FakeStored, FakeXenstore } from './fake-xen-store.ts';

export interface FakeXenOptions {
  /** Xen's module SILO: guests reach nothing of each other. */
  readonly silo?: boolean;
  /** The references of one share are not consecutive. */
  readonly scatteredReferences?: boolean;
  readonly scheduler?: Scheduler;
}

/** What is open, of one domain or one process. */
export interface FakeCensus {
  readonly mappings: number;
  readonly shares: number;
  readonly channels: number;
  readonly watches: number;
}

interface FakeDomain {
  readonly uuid: string;
  readonly table: FakeGrantTable;
  readonly processes: Set<FakeHypervisor>;
  introduced: boolean;
  paused: boolean;
}

const zero = asDomid(0)!;
const nothing: FakeCensus = { mappings: 0, shares: 0, channels: 0, watches: 0 };

/** A machine with Xen, xenstored and dom0, all in memory. Close it at the end of a test. */
export class FakeXen implements Closable {
  readonly scheduler: Scheduler;
  readonly ports: FakePorts;
  readonly stored: FakeStored;
  readonly #options: FakeXenOptions;
  readonly #domains = new Map<number, FakeDomain>();
  #nextDomid = 1;

  constructor(options: FakeXenOptions = {}) {
    this.#options = options;
    this.scheduler = options.scheduler ?? systemScheduler;
    this.ports = new FakePorts(this);
    this.stored = new FakeStored(this);
    this.#add(zero, '');
    // The few nodes of xen-init-dom0.
    this.#mknod('/local/domain/0/name', 'Domain-0', [{ domid: zero, access: 'none' }]);
    this.#mknod('/local/domain/0/domid', '0', [{ domid: zero, access: 'none' }]);
    this.introduce(zero);
  }

  /** As the toolstack does it: xenstore nodes, then the introduction. @param introduce false: `introduce` comes later */
  createDomain(name: string, uuid: string = randomUuid(this.#nextDomid), introduce = true): Domid {
    const domid = asDomid(this.#nextDomid++)!;
    this.#add(domid, uuid);
    this.#populate(domid, name);
    if (introduce) this.introduce(domid);
    return domid;
  }

  introduce(domid: Domid): void {
    this.#domain(domid).introduced = true;
    this.stored.publishSpecial('@introduceDomain');
  }

  /**
   * `xl destroy`: no kernel of the domain cleans up, and what others have mapped stays. Nodes of the domain go; those of
   * others for devices that xl does not know stay.
   */
  destroy(domid: Domid): void {
    const domain = this.#domain(domid);
    this.#domains.delete(domid);
    for (const process of domain.processes) process.end(false);
    this.ports.drop(domid);
    domain.table.close();
    for (const path of this.stored.tree.ownedBy(domid)) this.#remove(path);
    this.stored.publishSpecial('@releaseDomain');
    for (const path of [`/local/domain/${domid}`, `/vm/${domain.uuid}`, `/libxl/${domid}`]) this.#remove(path);
  }

  /** A paused domain gets no events; they come after `unpause`. */
  pause(domid: Domid): void {
    this.#domain(domid).paused = true;
  }

  unpause(domid: Domid): void {
    this.#domain(domid).paused = false;
    this.ports.redeliver(domid);
    this.stored.redeliver(domid);
  }

  /** A new process of a domain: what it opens counts as its own, and ends with `kill`. */
  hypervisorFor(domid: Domid): FakeHypervisor {
    const { processes } = this.#domain(domid);
    const process = new FakeHypervisor(this, domid);
    processes.add(process);
    return process;
  }

  /** What all processes of a domain, or of all domains, have open. */
  census(domid?: Domid): FakeCensus {
    const domains = domid === undefined ? [...this.#domains.values()] : [this.#domains.get(domid)];
    return sum(domains.flatMap((domain) => [...(domain?.processes ?? [])].map((process) => process.census())));
  }

  table(domid: number): FakeGrantTable | undefined {
    return this.#domains.get(domid)?.table;
  }

  separates(one: number, other: number): boolean {
    return this.#options.silo === true && one !== 0 && other !== 0 && one !== other;
  }

  isPaused(domid: number): boolean {
    return this.#domains.get(domid)?.paused === true;
  }

  exists(domid: number): boolean {
    return this.#domains.has(domid);
  }

  isIntroduced(domid: number): boolean {
    return this.#domains.get(domid)?.introduced === true;
  }

  close(): void {
    for (const domain of this.#domains.values()) {
      for (const process of domain.processes) process.end(false);
      domain.table.close();
    }
    this.#domains.clear();
  }

  #add(domid: Domid, uuid: string): void {
    const table = new FakeGrantTable(domid, this.#options.scatteredReferences === true);
    this.#domains.set(domid, { uuid, table, processes: new Set(), introduced: false, paused: false });
  }

  #domain(domid: Domid): FakeDomain {
    const domain = this.#domains.get(domid);
    assert.ok(domain !== undefined, `no domain ${domid}`);
    return domain;
  }

  /** The nodes that matter here, with the permissions that libxl gives them. */
  #populate(domid: Domid, name: string): void {
    const home = `/local/domain/${domid}`;
    const { uuid } = this.#domain(domid);
    const readOnly: XenstorePermission[] = [
      { domid: zero, access: 'none' },
      { domid, access: 'read' },
    ];
    const own: XenstorePermission[] = [{ domid, access: 'none' }];
    const nodes: readonly (readonly [string, string, XenstorePermission[]])[] = [
      [home, '', readOnly],
      [`/vm/${uuid}`, '', readOnly],
      [`/vm/${uuid}/uuid`, uuid, readOnly],
      [`/vm/${uuid}/name`, name, readOnly],
      [`${home}/vm`, `/vm/${uuid}`, readOnly],
      [`${home}/name`, name, readOnly],
      [`${home}/domid`, String(domid), readOnly],
      [`${home}/device`, '', readOnly],
      [`${home}/data`, '', own],
      [`/libxl/${domid}`, '', [{ domid: zero, access: 'none' }]],
    ];
    for (const [path, value, permissions] of nodes) this.#mknod(path, value, permissions);
  }

  #mknod(path: string, value: string, permissions: readonly XenstorePermission[]): void {
    this.stored.publish(this.stored.tree.write(0, path, value));
    this.stored.publish(this.stored.tree.setPermissions(0, path, permissions));
  }

  #remove(path: string): void {
    this.stored.publish(this.stored.tree.remove(0, path));
  }
}

const randomUuid = (domid: number): string => `00000000-0000-4000-8000-${String(domid).padStart(12, '0')}`;

function sum(all: readonly Partial<FakeCensus>[]): FakeCensus {
  return all.reduce<FakeCensus>(
    (total, part) => ({
      mappings: total.mappings + (part.mappings ?? 0),
      shares: total.shares + (part.shares ?? 0),
      channels: total.channels + (part.channels ?? 0),
      watches: total.watches + (part.watches ?? 0),
    }),
    nothing,
  );
}

interface FakeHandle {
  census(): Partial<FakeCensus>;
  end(notify: boolean): void;
}

/** The hypervisor as one process of one domain sees it. */
export class FakeHypervisor implements Hypervisor {
  readonly domid: Domid;
  readonly #machine: FakeXen;
  readonly #handles: FakeHandle[] = [];

  constructor(machine: FakeXen, domid: Domid) {
    this.#machine = machine;
    this.domid = domid;
  }

  openGrantMapper(): GrantMapper {
    return this.#own(new FakeGrantMapper(this.#machine, this.domid));
  }

  /** Of a class that can grant read-only as well, as a kernel driver can. */
  openGrantSharer(): GrantSharer & FakeGrantSharer {
    return this.#own(new FakeGrantSharer(this.#machine, this.domid));
  }

  openEventChannels(): EventChannels {
    return this.#own(new FakeEventChannels(this.#machine.ports, this.domid));
  }

  openXenstore(): Xenstore {
    return this.#own(new FakeXenstore(this.#machine.stored, this.domid));
  }

  /** SIGKILL: the kernel of the domain unmaps and unshares, with the notices, and closes ports and watches. */
  kill(): void {
    this.end(true);
  }

  /** @param notify false: the domain died with its kernel */
  end(notify: boolean): void {
    // The notices come first or last in a kernel; they hold on to their ports themselves.
    for (const handle of this.#handles) handle.end(notify);
  }

  census(): FakeCensus {
    return sum(this.#handles.map((handle) => handle.census()));
  }

  #own<T extends FakeHandle>(handle: T): T {
    this.#handles.push(handle);
    return handle;
  }
}
