import type { Clock } from '../../kit/clock.ts';
import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import type { Kind, Kinds } from '../commands.ts';
import type { LaneBackendSpec, LaneBusSpec } from '../lane/protocol.ts';
import type { EventHub } from './event-hub.ts';
import { type Entry, type Inventory, referencesOf } from './inventory.ts';
import type { LaneLink } from './lane-link.ts';
import type { LockRequest, ObjectLocks } from './locks.ts';
import { checkAttachment, checkReferences, nameOf } from './rules.ts';

/** Where the service writes for its operator; the shape of a pino logger. Nothing is logged per message. */
export interface ServiceLog {
  info(data: object, message: string): void;
  warn(data: object, message: string): void;
}

export interface ReconcilerParts {
  readonly inventory: Inventory;
  readonly locks: ObjectLocks;
  readonly link: LaneLink;
  readonly events: EventHub;
  readonly clock: Clock;
  readonly log: ServiceLog;
  readonly laneBusSpec: (entry: Entry<'buses'>) => LaneBusSpec;
}

/** What an operation on an object locks: itself, and against removal what it refers to. */
export function locksFor(kind: Kind, id: string, spec?: Kinds[Kind]['spec']): LockRequest[] {
  const own: LockRequest = { key: `${kind}/${id}`, mode: 'exclusive' };
  const references = spec === undefined ? [] : referencesOf(kind, spec);
  return [own, ...references.map((to): LockRequest => ({ key: `${to.kind}/${to.id}`, mode: 'shared' }))];
}

const hasCode = (error: unknown, code: string): boolean => error instanceof VmsgError && error.code === code;

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
    lane.state = 'entering';
    try {
      if (entry.kind === 'buses') await this.#openBus(entry);
      else lane.deviceNumber = await this.#attach(entry);
    } catch (error) {
      // Without an answer the lane may or may not have it.
      if (hasCode(error, 'timeout')) await this.#tellToLeave(entry).catch(() => {});
      lane.state = 'out';
      throw error;
    }
    Object.assign(lane, { state: 'in', reason: null, tries: 0, degraded: false });
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
    Object.assign(lane, { state: 'out', deviceNumber: null, degraded: false });
  }

  /** Lets an object that is not in the lane enter; when it cannot, says why and tries again later. */
  async attempt(entry: Entry): Promise<void> {
    const { locks, inventory } = this.#parts;
    try {
      await locks.run(locksFor(entry.kind, entry.id, entry.spec), async () => {
        const { lane, phase } = entry;
        if (inventory.get(entry.kind, entry.id) !== entry || phase !== 'present' || lane.state !== 'out') return;
        checkReferences(inventory, entry.kind, entry.spec);
        const holds = (other: Entry) => other.phase === 'creating' || other.lane.state !== 'out';
        if (entry.kind === 'attachments') checkAttachment(inventory, entry.id, entry.spec, holds);
        await this.enter(entry);
        this.announce(entry);
      });
    } catch (error) {
      this.#noteFailure(entry, error);
      return;
    }
    this.kick(inventory.users(entry.kind, entry.id));
  }

  /** Tries at once what waits for its next try. */
  kick(entries: Iterable<Entry>): void {
    for (const entry of entries) {
      if (entry.lane.retry === null) continue;
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
    const outside = lane.reason === null ? 'pending' : 'failed';
    const state = phase === 'deleting' ? 'detaching' : lane.state === 'in' ? inLane : outside;
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
   * that are there. Later ones let guests in at once. A bus that cannot is taken out and tried again.
   */
  async admitGuests(): Promise<void> {
    this.#holdsGuests = false;
    for (const bus of this.#parts.inventory.all('buses')) {
      if (bus.lane.state !== 'in') continue;
      try {
        await this.#parts.link.call('listenBus', { bus: bus.id });
      } catch (error) {
        await this.leave(bus).catch(() => {});
        this.#noteFailure(bus, error);
      }
    }
  }

  async #openBus(entry: Entry<'buses'>): Promise<void> {
    const { link, laneBusSpec } = this.#parts;
    await link.call('openBus', laneBusSpec(entry));
    if (this.#holdsGuests) return;
    try {
      await link.call('listenBus', { bus: entry.id });
    } catch (error) {
      await this.#tellToLeave(entry).catch(() => {});
      throw error;
    }
  }

  /**
   * As `enter`, but what waits for another side, which is not there now, is tried again instead of refused.
   * @throws VmsgError as `enter`
   */
  async enterOrWait(entry: Entry): Promise<void> {
    try {
      await this.enter(entry);
    } catch (error) {
      const backend =
        entry.kind === 'attachments' ? this.#parts.inventory.get('backends', entry.spec.backend) : undefined;
      const servedElsewhere = backend?.spec.type === 'guest' || backend?.spec.type === 'bridge';
      if (!servedElsewhere || !hasCode(error, 'unavailable')) throw error;
      entry.lane.reason = (error as Error).message;
    }
  }

  /** The lane has lost what served an attachment. */
  lost(attachment: string, reason: string): void {
    const entry = this.#parts.inventory.get('attachments', attachment);
    if (entry?.lane.state !== 'in') return;
    Object.assign(entry.lane, { state: 'out', deviceNumber: null, degraded: false, reason });
    this.announce(entry);
    if (entry.phase === 'present') this.#schedule(entry, limits.reconcileRetryMinMs);
  }

  /** The guest of a bus serves other devices now: attachments that wait for one are tried at once. */
  servedDevicesChanged(bus: string): void {
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
    if (bus?.lane.state !== 'in' || backend === undefined) {
      const why = bus?.lane.reason ?? 'it was not opened yet';
      throw new VmsgError('unavailable', `${nameOf('buses', busId)} is not open: ${why}`);
    }
    const attached = await link.call('attach', {
      bus: busId,
      attachment: entry.id,
      ...(deviceNumber === undefined ? {} : { deviceNumber }),
      backend: laneBackendSpec(backend),
    });
    return attached.deviceNumber;
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
    const news = entry.lane.reason !== reason;
    entry.lane.reason = reason;
    if (news) {
      log.warn({ kind: entry.kind, id: entry.id, reason }, 'object cannot be used, trying again');
      this.announce(entry);
    }
    const delayMs = Math.min(limits.reconcileRetryMinMs * 2 ** entry.lane.tries, limits.reconcileRetryMaxMs);
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

/** A virtio-blk identifier has 20 bytes (virtio 1.3, section 5.2.6). */
const serialMaxChars = 20;

function laneBackendSpec({ id, spec }: Entry<'backends'>): LaneBackendSpec {
  switch (spec.type) {
    case 'rng':
      return { type: 'rng', source: spec.source ?? '/dev/urandom' };
    case 'console': {
      const ports = spec.ports.map(({ name = '', ...where }) => ({ name, ...where }));
      return { ...spec, ports };
    }
    case 'shm':
      return { type: 'shm', bytes: spec.bytes ?? limits.shmRegionDefaultBytes };
    case 'template':
      return { type: 'template', greeting: spec.greeting ?? 'Hello' };
    case 'guest':
    case 'bridge':
      return spec;
    case 'blk': {
      const { path, readOnly = false, serial = id.slice(0, serialMaxChars), queues } = spec;
      return { type: 'blk', path, readOnly, serial, ...(queues === undefined ? {} : { queues }) };
    }
  }
}
