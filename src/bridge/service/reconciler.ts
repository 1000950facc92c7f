import type { Clock } from '../../kit/clock.ts';
import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import { retryDelayMs } from '../../kit/retry.ts';
import type { Kind, Kinds } from '../commands.ts';
import type { LaneBackendSpec, LaneBusSpec, LaneEvent } from '../lane/protocol.ts';
import { AwaitedError } from './domains.ts';
import type { EventHub } from './event-hub.ts';
import { type Entry, type Inventory, referencesOf, stateOutside } from './inventory.ts';
import type { LaneLink } from './lane-link.ts';
import type { LockRequest, ObjectLocks } from './locks.ts';
import type { ServiceLog } from './log.ts';
import { checkAttachment, checkBus, checkReferences, isServedElsewhere, nameOf } from './rules.ts';

export interface ReconcilerParts {
  readonly inventory: Inventory;
  readonly locks: ObjectLocks;
  readonly link: LaneLink;
  readonly events: EventHub;
  readonly clock: Clock;
  readonly log: ServiceLog;
  /** @throws AwaitedError when its domain does not run */
  readonly laneBusSpec: (entry: Entry<'buses'>) => LaneBusSpec;
  /** @throws VmsgError when it cannot be opened as it is wanted */
  readonly laneBackendSpec: (entry: Entry<'backends'>) => LaneBackendSpec;
  /** The life of a Xen domain that the bus has to be open for; null: its domain does not run, or is none of Xen's. */
  readonly incarnationOf: (entry: Entry<'buses'>) => string | null;
}

/** What an operation on an object locks: itself, and against removal what it refers to. */
export function locksFor(kind: Kind, id: string, spec?: Kinds[Kind]['spec']): LockRequest[] {
  const own: LockRequest = { key: `${kind}/${id}`, mode: 'exclusive' };
  const references = spec === undefined ? [] : referencesOf(kind, spec);
  return [own, ...references.map((to): LockRequest => ({ key: `${to.kind}/${to.id}`, mode: 'shared' }))];
}

const hasCode = (error: unknown, code: string): boolean => error instanceof VmsgError && error.code === code;
/** Who would serve the device is not there now, or has just gone. */
const isAbsence = (error: unknown): boolean => hasCode(error, 'unavailable') || hasCode(error, 'backend-lost');

/** Brings buses and attachments into the lane and out of it, and tries again what could not enter. */
export class Reconciler {
  readonly #parts: ReconcilerParts;
  #stopped = false;
  #holdsGuests = true;

  constructor(parts: ReconcilerParts) {
    this.#parts = parts;
  }

  /**
   * Opens a bus, attaches an attachment; other kinds need nothing. The caller holds the locks.
   * @throws VmsgError as the lane answers; the object is then not in the lane
   */
  async enter(entry: Entry): Promise<void> {
    if (entry.kind !== 'buses' && entry.kind !== 'attachments') return;
    const { lane } = entry;
    lane.retry?.cancel();
    lane.retry = null;
    lane.state = 'entering';
    try {
      if (entry.kind === 'buses') await this.#openBus(entry);
      else lane.deviceNumber = await this.#attach(entry);
    } catch (error) {
      // Without an answer the lane may or may not have it.
      if (hasCode(error, 'timeout')) await this.#tellToLeave(entry).catch(() => {});
      this.#isOut(entry);
      throw error;
    }
    Object.assign(lane, { state: 'in', reason: null, tries: 0, waits: false, degraded: false });
  }

  /**
   * Takes an object out of the lane if it is in. The caller holds the locks.
   * @throws VmsgError as the lane answers; the object then counts as still in
   */
  async leave(entry: Entry): Promise<void> {
    const { lane } = entry;
    lane.retry?.cancel();
    lane.retry = null;
    if (lane.state !== 'in') return;
    lane.state = 'leaving';
    try {
      await this.#tellToLeave(entry);
    } catch (error) {
      lane.state = 'in';
      throw error;
    }
    this.#isOut(entry);
  }

  #isOut({ lane }: Entry): void {
    Object.assign(lane, { state: 'out', admits: false, domid: null, incarnation: null });
    Object.assign(lane, { deviceNumber: null, degraded: false });
  }

  /**
   * Lets an object that is not in the lane enter; when it cannot, says why and tries again later. A bus that is open
   * for a domain that is gone leaves first, and one that enters takes its attachments along before it lets guests in.
   */
  async attempt(entry: Entry): Promise<void> {
    const { inventory } = this.#parts;
    if (entry.kind === 'buses' && !(await this.#leaveGoneDomain(entry))) return;
    const entered = await this.#tryEnter(entry);
    if (entry.kind === 'buses' && !this.#holdsGuests && entry.lane.state === 'in' && !entry.lane.admits) {
      const attachments = inventory.attachmentsOf('buses', entry.id).filter(({ lane }) => lane.state === 'out');
      await Promise.all(attachments.map((attachment) => this.attempt(attachment)));
      await this.#admit(entry);
    }
    if (!entered) return;
    this.kick(inventory.users(entry.kind, entry.id));
    if (entry.kind === 'buses') this.#servedDevicesChanged(entry.id);
  }

  /** @returns whether the object has entered the lane now */
  async #tryEnter(entry: Entry): Promise<boolean> {
    const { locks, inventory } = this.#parts;
    try {
      return await locks.run(locksFor(entry.kind, entry.id, entry.spec), async () => {
        const { lane, phase } = entry;
        if (inventory.get(entry.kind, entry.id) !== entry || phase !== 'present' || lane.state !== 'out') return false;
        checkReferences(inventory, entry.kind, entry.spec);
        const holds = (other: Entry) => other.phase === 'creating' || other.lane.state !== 'out';
        if (entry.kind === 'attachments') checkAttachment(inventory, entry.id, entry.spec, holds);
        if (entry.kind === 'buses') checkBus(inventory, entry.id, entry.spec, holds);
        await this.enter(entry);
        this.announce(entry);
        return true;
      });
    } catch (error) {
      this.#noteFailure(entry, error);
      return false;
    }
  }

  /** @returns false when the bus has to leave and could not; it is tried again */
  async #leaveGoneDomain(bus: Entry<'buses'>): Promise<boolean> {
    const { lane } = bus;
    const isGone = () => lane.incarnation !== null && lane.incarnation !== this.#parts.incarnationOf(bus);
    if (!isGone()) return true;
    try {
      await this.#withWholeBus(bus, async () => {
        if (lane.state === 'in' && isGone())
          await this.#takeOut(bus, new AwaitedError(`domain ${bus.spec.domain} is not running`));
      });
      return true;
    } catch (error) {
      this.#parts.log.warn({ bus: bus.id, reason: (error as Error).message }, 'the bus of a domain that is gone stays');
      this.retry(bus);
      return false;
    }
  }

  /** Excludes all operations on a bus and on what is attached to it. */
  async #withWholeBus(bus: Entry<'buses'>, operation: () => Promise<void>): Promise<void> {
    const { inventory, locks } = this.#parts;
    for (let done = false; !done; ) {
      const attachments = inventory.attachmentsOf('buses', bus.id);
      const held = [bus, ...attachments].flatMap(({ kind, id }) => locksFor(kind, id));
      await locks.run(held, async () => {
        // One that came while we waited may be on its way out again.
        if (inventory.attachmentsOf('buses', bus.id).some((one) => !attachments.includes(one))) return;
        done = true;
        await operation();
      });
    }
  }

  /** Takes a bus out of the lane, and with it its devices. The caller excludes other operations on all of them. */
  async #takeOut(bus: Entry<'buses'>, why: unknown): Promise<void> {
    const { inventory } = this.#parts;
    await this.leave(bus);
    this.#noteFailure(bus, why);
    for (const attachment of inventory.attachmentsOf('buses', bus.id)) {
      if (attachment.lane.state !== 'in') continue;
      this.#isOut(attachment);
      this.#noteFailure(attachment, this.#notOpen(bus));
    }
  }

  /** Tries at once what waits for its next try. */
  kick(entries: Iterable<Entry>): void {
    for (const entry of entries) {
      if (entry.lane.retry === null && !entry.lane.waits) continue;
      entry.lane.tries = 0;
      this.#schedule(entry, 0);
    }
  }

  /** Tries again after the shortest wait; for an object that had to leave and then had to stay. */
  retry(entry: Entry): void {
    this.#schedule(entry, limits.reconcileRetryMinMs);
  }

  /** Tells watchers the state of a bus or an attachment. */
  announce(entry: Entry): void {
    if (entry.kind !== 'buses' && entry.kind !== 'attachments') return;
    const { lane, phase } = entry;
    const inLane = entry.kind === 'buses' ? 'listening' : lane.degraded ? 'degraded' : 'active';
    const state = phase === 'deleting' ? 'detaching' : lane.state === 'in' ? inLane : stateOutside(lane);
    const number = entry.kind === 'buses' ? {} : { bus: entry.spec.bus, deviceNumber: lane.deviceNumber };
    this.#parts.events.emit({
      type: entry.kind === 'buses' ? 'bus-state' : 'attachment-state',
      kind: entry.kind,
      object: entry.id,
      data: { state, reason: lane.reason, ...number },
    });
  }

  /**
   * Lets guests in: a bus opened before waits for its devices, because the first guest after a restart resumes those
   * that are there.
   */
  async admitGuests(): Promise<void> {
    this.#holdsGuests = false;
    for (const bus of this.#parts.inventory.all('buses')) await this.#admit(bus);
  }

  /** Lets guests onto a bus that is in the lane. One that cannot is taken out and tried again. */
  async #admit(bus: Entry<'buses'>): Promise<void> {
    if (bus.lane.state !== 'in' || bus.lane.admits) return;
    try {
      await this.#withWholeBus(bus, async () => {
        try {
          await this.#listen(bus);
        } catch (error) {
          await this.#takeOut(bus, error);
        }
      });
    } catch (error) {
      this.#parts.log.warn({ bus: bus.id, reason: (error as Error).message }, 'a bus cannot let guests in yet');
      this.retry(bus);
    }
  }

  async #listen({ id, lane }: Entry<'buses'>): Promise<void> {
    if (lane.state !== 'in' || lane.admits) return;
    await this.#parts.link.call('listenBus', { bus: id });
    lane.admits = true;
  }

  async #openBus(entry: Entry<'buses'>): Promise<void> {
    const { link, laneBusSpec } = this.#parts;
    const spec = laneBusSpec(entry);
    // Before the answer: the rules and the sweep of xenstore see where it is going.
    Object.assign(entry.lane, { domid: spec.domid, incarnation: spec.transport === 'xen' ? spec.incarnation : null });
    await link.call('openBus', spec);
  }

  /**
   * Lets a new object enter, and its guests. What waits for a domain or another side that is not there now is tried
   * again instead of refused.
   * @throws VmsgError as `enter`
   */
  async enterOrWait(entry: Entry): Promise<void> {
    try {
      await this.enter(entry);
      if (entry.kind === 'buses') await this.#listen(entry);
    } catch (error) {
      const backend =
        entry.kind === 'attachments' ? this.#parts.inventory.get('backends', entry.spec.backend) : undefined;
      const waits = error instanceof AwaitedError;
      if (!waits && !(isServedElsewhere(backend?.spec.type) && isAbsence(error))) throw error;
      Object.assign(entry.lane, { reason: (error as Error).message, waits });
    }
  }

  /** What the lane reports that changes what is in it. */
  follow(event: LaneEvent): void {
    const { inventory } = this.#parts;
    if (event.type === 'lane-failed') this.stop();
    if (event.type === 'attachment-lost') this.#lost(event.attachment, event.reason);
    if (event.type === 'served-devices') this.#servedDevicesChanged(event.bus);
    const entry = event.type === 'attachment-ready' ? inventory.get('attachments', event.attachment) : undefined;
    if (entry !== undefined) this.kick([entry]);
  }

  /** The lane has lost what served an attachment. */
  #lost(attachment: string, reason: string): void {
    const entry = this.#parts.inventory.get('attachments', attachment);
    if (entry?.lane.state !== 'in') return;
    this.#isOut(entry);
    const backend = this.#parts.inventory.get('backends', entry.spec.backend);
    const isFinal = backend !== undefined && this.#isLeftAlone(backend);
    entry.lane.reason = isFinal ? `${reason}; its program is not started again (restart: never)` : reason;
    this.announce(entry);
    if (entry.phase === 'present' && !isFinal) this.#schedule(entry, limits.reconcileRetryMinMs);
  }

  #isLeftAlone(backend: Entry<'backends'>): boolean {
    if (backend.spec.type !== 'program') return false;
    const spec = this.#parts.laneBackendSpec(backend);
    return spec.type === 'program' && spec.restart === 'never';
  }

  /** The guest of a bus serves other devices now: attachments that wait for one are tried at once. */
  #servedDevicesChanged(bus: string): void {
    for (const backend of this.#parts.inventory.all('backends')) {
      if (backend.spec.type !== 'guest' || backend.spec.bus !== bus) continue;
      this.kick(this.#parts.inventory.users('backends', backend.id));
    }
  }

  /** Ends all tries. */
  stop(): void {
    this.#stopped = true;
    for (const { lane } of this.#parts.inventory.everything()) {
      lane.retry?.cancel();
      lane.retry = null;
    }
  }

  async #attach(entry: Entry<'attachments'>): Promise<number> {
    const { inventory, link } = this.#parts;
    const { bus: busId, backend: backendId, deviceNumber } = entry.spec;
    const bus = inventory.get('buses', busId);
    const backend = inventory.get('backends', backendId);
    if (bus?.lane.state !== 'in' || backend === undefined) throw this.#notOpen(bus);
    const serving = backend.spec.type === 'guest' ? inventory.get('buses', backend.spec.bus) : bus;
    if (serving?.lane.state !== 'in') throw this.#notOpen(serving);
    const reservedNumbers = inventory.attachmentsOf('buses', busId).flatMap(({ spec }) => spec.deviceNumber ?? []);
    const attached = await link.call('attach', {
      bus: busId,
      attachment: entry.id,
      ...(deviceNumber === undefined ? { reservedNumbers } : { deviceNumber }),
      backend: this.#parts.laneBackendSpec(backend),
    });
    return attached.deviceNumber;
  }

  #notOpen(bus: Entry<'buses'> | undefined): VmsgError {
    const name = bus === undefined ? 'the bus' : nameOf('buses', bus.id);
    const message = `${name} is not open: ${bus?.lane.reason ?? 'it was not opened yet'}`;
    return bus?.lane.waits ? new AwaitedError(message) : new VmsgError('unavailable', message);
  }

  async #tellToLeave(entry: Entry): Promise<void> {
    const { link } = this.#parts;
    try {
      if (entry.kind === 'buses') await link.call('closeBus', { bus: entry.id });
      if (entry.kind === 'attachments') await link.call('detach', { bus: entry.spec.bus, attachment: entry.id });
    } catch (error) {
      if (!hasCode(error, 'not-found')) throw error;
    }
  }

  #noteFailure(entry: Entry, error: unknown): void {
    const { inventory, link, log } = this.#parts;
    if (inventory.get(entry.kind, entry.id) !== entry || entry.phase !== 'present' || entry.lane.state !== 'out')
      return;
    const reason = error instanceof Error ? error.message : String(error);
    const waits = error instanceof AwaitedError;
    const news = entry.lane.reason !== reason || entry.lane.waits !== waits;
    Object.assign(entry.lane, { reason, waits });
    if (news) {
      if (waits) log.info({ kind: entry.kind, id: entry.id, reason }, 'object waits');
      else log.warn({ kind: entry.kind, id: entry.id, reason }, 'object cannot be used, trying again');
      this.announce(entry);
    }
    if (waits) return;
    const delayMs = retryDelayMs(entry.lane.tries);
    if (delayMs < limits.reconcileRetryMaxMs) entry.lane.tries += 1;
    if (link.failure === null) this.#schedule(entry, delayMs);
  }

  #schedule(entry: Entry, delayMs: number): void {
    entry.lane.retry?.cancel();
    if (this.#stopped) return;
    entry.lane.retry = this.#parts.clock.after(delayMs, () => {
      entry.lane.retry = null;
      void this.attempt(entry);
    });
  }
}
