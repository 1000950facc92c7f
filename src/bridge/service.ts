import { toErrorData, VmsgError } from '../kit/errors.ts';
import type {
  Channel,
  Commands,
  Kind,
  Kinds,
  MessageRecord,
  Page,
  PageOf,
  PageRequest,
  Precondition,
  PutResult,
  Resource,
  Share,
} from './commands.ts';
import type { EventSource, ServiceEvent, Subscription } from './events.ts';
import type { LaneSnapshot } from './lane/protocol.ts';
import { DomainBook, type DomainSource, type DomainView, incarnationOf } from './service/domains.ts';
import { lowestFreeDomid } from './service/domids.ts';
import { EventHub } from './service/event-hub.ts';
import { type Entry, Inventory, makeEntry } from './service/inventory.ts';
import { reportLaneEvent } from './service/lane-events.ts';
import { LaneLink } from './service/lane-link.ts';
import { type BusSources, busAddress, laneBackendSpec, laneBusSpec } from './service/lane-specs.ts';
import { ObjectLocks } from './service/locks.ts';
import type { ServiceLog } from './service/log.ts';
import { type ConfiguredObjects, merge } from './service/merge.ts';
import { channelOf, recordOf, sharesOf } from './service/observations.ts';
import type { ServiceOptions } from './service/options.ts';
import { checkLimit, pageOf } from './service/paging.ts';
import { locksFor, Reconciler } from './service/reconciler.ts';
import {
  checkAttachment,
  checkBus,
  checkChange,
  checkDomain,
  checkLimits,
  checkPrecondition,
  checkReferences,
  checkShape,
  checkUnused,
  checkWritable,
  nameOf,
} from './service/rules.ts';
import { resourceOf, type StatusSources } from './service/status.ts';
import { actOnStuck } from './service/stuck-policy.ts';
import type { StoreState } from './store.ts';

export type { ConfiguredObjects, DomainSource, DomainView, ServiceLog };

/** The control plane: keeps the desired state, and the lane as it says. */
export class Service implements Commands, EventSource {
  readonly #options: ServiceOptions;
  readonly #inventory = new Inventory();
  readonly #locks = new ObjectLocks();
  readonly #events: EventHub;
  readonly #link: LaneLink;
  readonly #reconciler: Reconciler;
  readonly #domains: DomainBook;
  readonly #busSources: BusSources;
  #phase: 'starting' | 'running' | 'stopping' = 'starting';

  constructor(options: ServiceOptions) {
    this.#options = options;
    this.#events = new EventHub(options.wallMs);
    this.#link = new LaneLink(options.lane, (event) => {
      this.#reconciler.follow(event);
      if (event.type === 'share-stuck') void actOnStuck(event, { ...options, inventory: this.#inventory });
      reportLaneEvent(event, { inventory: this.#inventory, events: this.#events, log: options.log });
    });
    const { clock, log, store } = options;
    const parts = { inventory: this.#inventory, events: this.#events, clock, log };
    this.#domains = new DomainBook({
      ...parts,
      source: options.xen,
      onChange: (domain) => void this.#followDomain(domain.id),
    });
    this.#busSources = {
      ...options,
      inventory: this.#inventory,
      loopbackDomid: (domain) => store.state.domids.get(domain) ?? 0,
      presenceOf: (domain) => this.#domains.presenceOf(domain),
    };
    this.#reconciler = new Reconciler({
      ...parts,
      locks: this.#locks,
      link: this.#link,
      laneBusSpec: (entry) => laneBusSpec(entry, this.#busSources),
      laneBackendSpec: (entry) => laneBackendSpec(entry, options.programs),
      incarnationOf: ({ spec }) => {
        const domain = this.#inventory.get('domains', spec.domain);
        return domain === undefined ? null : incarnationOf(this.#domains.presenceOf(domain).running);
      },
    });
  }

  /**
   * Merges the config file's objects with the stored ones, opens all buses and attaches their devices. Resolves after
   * one try each: what fails shows why and is tried again.
   * @throws VmsgError `system-call` when the store cannot be written, `limit-reached`
   */
  async start(): Promise<void> {
    const { store, configured, log } = this.#options;
    merge(this.#inventory, store, configured, (kind, id) => {
      log.warn({ kind, id }, 'stored object is hidden by one of the same id in the config file');
      this.#events.emit({ type: 'object-hidden', kind, object: id, data: {} });
    });
    this.#domains.refresh();
    this.#sweepXenstore();
    // All buses first: a device that one of them serves may be attached to another.
    const buses = [...this.#inventory.all('buses')];
    await Promise.all(buses.map((bus) => this.#reconciler.attempt(bus)));
    const attached = new Set<Entry>();
    await Promise.all(
      buses.map(async ({ id }) => {
        for (const attachment of this.#inventory.attachmentsOf('buses', id)) {
          attached.add(attachment);
          await this.#reconciler.attempt(attachment);
        }
      }),
    );
    for (const orphan of this.#inventory.all('attachments')) {
      if (!attached.has(orphan)) await this.#reconciler.attempt(orphan);
    }
    await this.#reconciler.admitGuests();
    if (this.#phase !== 'starting') return;
    this.#phase = 'running';
    // Domains that came or went meanwhile.
    for (const domain of this.#inventory.all('domains')) void this.#followDomain(domain.id);
  }

  /** Brings the buses of a Xen domain to where it is now: gone, there, or there with another number. */
  async #followDomain(domain: string): Promise<void> {
    if (this.#phase !== 'running') return;
    const buses = this.#inventory.users('domains', domain).filter((user) => user.kind === 'buses');
    await Promise.all(buses.filter(({ spec }) => spec.transport === 'xen').map((bus) => this.#reconciler.attempt(bus)));
    this.#sweepXenstore();
  }

  /** Toolstacks do not know of our directories: what is left of domains and buses that are gone is removed here. */
  #sweepXenstore(): void {
    const buses = [...this.#inventory.all('buses')].filter(({ spec }) => spec.transport === 'xen');
    const domidOf = ({ spec }: Entry<'buses'>): number | undefined => {
      const domain = this.#inventory.get('domains', spec.domain);
      return domain && this.#domains.presenceOf(domain).running?.domid;
    };
    this.#domains.sweep((domid, index) =>
      buses.some((bus) => (bus.spec.index ?? 0) === index && (bus.lane.domid === domid || domidOf(bus) === domid)),
    );
  }

  /** Refuses new commands and lets the lane finish and release everything. Idempotent. */
  async stop(): Promise<void> {
    if (this.#phase === 'stopping') return;
    this.#phase = 'stopping';
    this.#reconciler.stop();
    this.#domains.close();
    try {
      if (this.#link.failure === null) await this.#link.call('shutdown', {});
    } catch (error) {
      this.#options.log.warn({ reason: toErrorData(error).message }, 'the lane did not shut down in order');
    } finally {
      this.#link.close();
    }
  }

  readiness(): string | null {
    if (this.#link.failure !== null) return `the lane failed: ${this.#link.failure}`;
    return this.#phase === 'running' ? null : `the service is ${this.#phase}`;
  }

  subscribe(listener: (event: ServiceEvent) => void, after?: number): Subscription {
    return this.#events.subscribe(listener, after);
  }

  async put<K extends Kind>(
    kind: K,
    id: string,
    spec: Kinds[K]['spec'],
    condition?: Precondition,
  ): Promise<PutResult<K>> {
    checkShape(kind, id, spec);
    const { outcome, entry } = await this.#locks.run(locksFor(kind, id, spec), async () => {
      this.#checkReady();
      const existing = this.#inventory.get(kind, id) as Entry | undefined;
      if (existing !== undefined) checkWritable(existing);
      checkPrecondition(existing, condition, nameOf(kind, id));
      if (existing === undefined) return { outcome: 'created' as const, entry: await this.#create(kind, id, spec) };
      return { outcome: this.#change(existing, spec), entry: existing };
    });
    // The put is done: a lane that cannot be asked now only leaves the status without its numbers.
    const snapshot = await this.#snapshotFor(kind).catch(() => null);
    return { outcome, resource: resourceOf<K>(entry, this.#sources(snapshot)) };
  }

  async get<K extends Kind>(kind: K, id: string): Promise<Resource<K>> {
    this.#visible(kind, id);
    const snapshot = await this.#snapshotFor(kind);
    return resourceOf<K>(this.#visible(kind, id) as Entry, this.#sources(snapshot));
  }

  async list<K extends Kind>(kind: K, request: PageRequest): Promise<Page<K>> {
    checkLimit(request);
    const snapshot = await this.#snapshotFor(kind);
    const { items, next } = pageOf(this.#visibleOf(kind), ({ id }) => id, request);
    const sources = this.#sources(snapshot);
    return { items: items.map((entry) => resourceOf<K>(entry as Entry, sources)), next };
  }

  readonly dataPlane = async (): Promise<LaneSnapshot['dataPlane'] | null> =>
    (await this.#snapshotFor('buses'))?.dataPlane ?? null;

  async listChannels(request: PageRequest): Promise<PageOf<Channel>> {
    checkLimit(request);
    const sources = this.#sources(await this.#snapshotFor('buses'));
    const { items, next } = pageOf(this.#visibleOf('buses'), ({ id }) => id, request);
    return { items: items.map((entry) => channelOf(entry, sources)), next };
  }

  async getChannel(bus: string): Promise<Channel> {
    this.#visible('buses', bus);
    const sources = this.#sources(await this.#snapshotFor('buses'));
    return channelOf(this.#visible('buses', bus), sources);
  }

  async listRecords(bus: string, request: PageRequest<number>): Promise<PageOf<MessageRecord, number>> {
    checkLimit(request);
    const isOpen = this.#visible('buses', bus).lane.state === 'in';
    const records = isOpen ? await this.#link.call('records', { bus }) : [];
    const { items, next } = pageOf(records, ({ sequence }) => sequence, request);
    return { items: items.map(recordOf), next };
  }

  async listShares(request: PageRequest): Promise<PageOf<Share>> {
    checkLimit(request);
    return pageOf(await this.#shares(), ({ id }) => id, request);
  }

  async getShare(id: string): Promise<Share> {
    const share = (await this.#shares()).find((one) => one.id === id);
    if (share === undefined) throw new VmsgError('not-found', `share "${id}" does not exist`);
    return share;
  }

  async delete(kind: Kind, id: string, condition?: Precondition): Promise<void> {
    await this.#locks.run(locksFor(kind, id), async () => {
      this.#checkReady();
      const entry = this.#visible(kind, id);
      checkWritable(entry);
      checkPrecondition(entry, condition, nameOf(kind, id));
      checkUnused(this.#inventory, entry);
      await this.#remove(entry);
    });
  }

  async #create<K extends Kind>(kind: K, id: string, spec: Kinds[K]['spec']): Promise<Entry> {
    const inventory = this.#inventory;
    checkLimits(inventory, kind);
    checkReferences(inventory, kind, spec);
    const revision = this.#options.store.state.lastRevision;
    const entry = makeEntry({ kind, id, origin: 'api', revision, spec, phase: 'creating' });
    if (entry.kind === 'attachments') checkAttachment(inventory, id, entry.spec, () => true);
    if (entry.kind === 'domains') checkDomain(inventory, id, entry.spec);
    if (entry.kind === 'buses') checkBus(inventory, id, entry.spec, () => true);
    // Reserved from here on: others see it in the rules while the lane works.
    inventory.add(entry);
    try {
      await this.#reconciler.enterOrWait(entry);
      this.#save(entry);
    } catch (error) {
      await this.#reconciler.leave(entry).catch((cause) => {
        this.#options.log.warn({ kind, id, reason: toErrorData(cause).message }, 'refused object is still in the lane');
      });
      inventory.remove(entry);
      throw error;
    }
    entry.phase = 'present';
    this.#report('object-created', entry);
    this.#reconciler.announce(entry);
    if (kind === 'domains') this.#domains.refresh();
    if (kind === 'attachments' && entry.lane.state === 'out' && !entry.lane.waits) this.#reconciler.retry(entry);
    this.#reconciler.kick(inventory.users(kind, id));
    return entry;
  }

  #change(entry: Entry, spec: Kinds[Kind]['spec']): 'unchanged' | 'updated' {
    const outcome = checkChange(this.#inventory, entry, spec);
    if (outcome === 'unchanged') return outcome;
    this.#save({ ...entry, spec } as Entry);
    entry.spec = spec;
    entry.revision = this.#options.store.state.lastRevision;
    this.#report('object-updated', entry);
    return outcome;
  }

  async #remove(entry: Entry): Promise<void> {
    const { kind, id } = entry;
    entry.phase = 'deleting';
    try {
      if (kind === 'attachments') this.#reconciler.announce(entry);
      await this.#reconciler.leave(entry);
      this.#options.store.commit((draft) => {
        draft.objects[kind].delete(id);
        if (kind === 'domains') draft.domids.delete(id);
      });
    } catch (error) {
      entry.phase = 'present';
      if (kind === 'attachments') this.#reconciler.announce(entry);
      if (entry.lane.state === 'out') this.#reconciler.retry(entry);
      throw error;
    }
    this.#inventory.remove(entry);
    this.#report('object-deleted', entry);
    if (kind === 'domains') this.#domains.refresh();
    if (entry.kind !== 'attachments') return;
    // What it held, a disk or a device number, may be what another one waits for.
    this.#reconciler.kick(this.#inventory.users('buses', entry.spec.bus));
    this.#reconciler.kick(this.#inventory.users('backends', entry.spec.backend));
  }

  /** Makes an object of the API durable under the next revision. */
  #save(entry: Entry): void {
    const { kind, id, spec } = entry;
    this.#options.store.commit((draft) => {
      draft.lastRevision += 1;
      (draft.objects[kind] as StoreState['objects'][Kind]).set(id, { revision: draft.lastRevision, spec } as never);
      if (!('xen' in spec) && kind === 'domains' && !draft.domids.has(id)) {
        draft.domids.set(id, lowestFreeDomid(draft.domids));
      }
    });
    entry.revision = this.#options.store.state.lastRevision;
  }

  async #shares(): Promise<Share[]> {
    return sharesOf(this.#inventory, this.#sources(await this.#snapshotFor('buses')));
  }

  *#visibleOf<K extends Kind>(kind: K): Iterable<Entry<K>> {
    for (const entry of this.#inventory.all(kind)) if (entry.phase !== 'creating') yield entry;
  }

  #visible<K extends Kind>(kind: K, id: string): Entry<K> {
    const entry = this.#inventory.get(kind, id);
    if (entry === undefined || entry.phase === 'creating') {
      throw new VmsgError('not-found', `${nameOf(kind, id)} does not exist`);
    }
    return entry;
  }

  #checkReady(): void {
    const reason = this.readiness();
    if (reason !== null) throw new VmsgError('unavailable', reason);
  }

  /** Backends have nothing in the lane, and of domains only those that serve devices to others. */
  async #snapshotFor(kind: Kind): Promise<LaneSnapshot | null> {
    const serves = () => [...this.#inventory.all('buses')].some(({ spec }) => spec.role === 'device');
    const inLane = kind === 'buses' || kind === 'attachments' || (kind === 'domains' && serves());
    return inLane && this.#phase !== 'stopping' && this.#link.failure === null ? this.#link.snapshot() : null;
  }

  #sources(snapshot: LaneSnapshot | null): StatusSources {
    return {
      inventory: this.#inventory,
      snapshot,
      laneFailure: this.#link.failure,
      loopbackDomid: this.#busSources.loopbackDomid,
      presenceOf: this.#busSources.presenceOf,
      addressOf: (bus) => busAddress(bus, this.#busSources),
      programs: this.#options.programs,
    };
  }

  #report(type: 'object-created' | 'object-updated' | 'object-deleted', entry: Entry): void {
    const { kind, id, revision } = entry;
    this.#events.emit({ type, kind, object: id, data: { revision } });
    this.#options.log.info({ kind, id, revision }, type);
  }
}
