import type { Clock, Timer } from '../../kit/clock.ts';
import { toErrorData, VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import { retryDelayMs } from '../../kit/retry.ts';
import type { Closable } from '../../kit/scope.ts';
import type { EventHub } from './event-hub.ts';
import type { Entry, Inventory } from './inventory.ts';
import type { ServiceLog } from './log.ts';
import { xenIdentity } from './rules.ts';

/** A Xen domain that was introduced and not yet released. */
export interface RunningDomain {
  readonly domid: number;
  readonly name: string;
  /** Lower case. */
  readonly uuid: string;
}

/** The Xen domains of this machine. */
export interface DomainView extends Closable {
  domains(): readonly RunningDomain[];
  /** Removes what earlier runs of a service left in xenstore, except of the buses to keep. @throws VmsgError */
  sweep(keep: (domid: number, index: number) => boolean): void;
}

export interface DomainSource {
  /**
   * Begins to watch.
   * @param onChange never called from within this call
   * @throws VmsgError `unavailable` naming what is missing
   */
  open(onChange: () => void): DomainView;
}

/** What stands behind a domain object now. */
export interface DomainPresence {
  readonly running: RunningDomain | null;
  /** Why nobody can know, or what is doubtful. */
  readonly reason: string | null;
}

/**
 * What is waited for comes by itself: what needs it is tried again then, without a timer.
 */
export class AwaitedError extends VmsgError {
  constructor(message: string) {
    super('unavailable', message);
  }
}

interface DomainBookParts {
  readonly inventory: Inventory;
  readonly source: DomainSource;
  readonly clock: Clock;
  readonly log: ServiceLog;
  readonly events: EventHub;
  /** Another Xen domain, or none, stands behind this object now. */
  readonly onChange: (domain: Entry<'domains'>) => void;
}

/** Which Xen domain stands behind each domain object. Xen is first asked when an object names a Xen domain. */
export class DomainBook implements Closable {
  readonly #parts: DomainBookParts;
  readonly #seen = new Map<string, DomainPresence>();
  #view: DomainView | undefined;
  #failure = 'the service has not looked yet';
  #tries = 0;
  #retry: Timer | undefined;
  #closed = false;

  constructor(parts: DomainBookParts) {
    this.#parts = parts;
  }

  /** Looks again; to be called when domain objects came or went, too. */
  refresh(): void {
    const named = [...this.#parts.inventory.all('domains')].filter(
      ({ spec, phase }) => spec.xen !== undefined && phase !== 'creating',
    );
    if (named.length > 0 && this.#view === undefined) this.#open();
    const gone = new Set(this.#seen.keys());
    for (const domain of named) {
      gone.delete(domain.id);
      this.#note(domain);
    }
    for (const id of gone) this.#seen.delete(id);
  }

  presenceOf({ spec }: Entry<'domains'>): DomainPresence {
    if (this.#view === undefined || spec.xen === undefined) return { running: null, reason: this.#failure };
    const { field, text } = xenIdentity(spec.xen);
    const found = this.#view.domains().filter((domain) => domain[field] === text);
    // A domain that restarts may still be dying under its old number.
    const running = found.reduce<RunningDomain | null>((a, b) => (a === null || b.domid > a.domid ? b : a), null);
    if (found.length < 2) return { running, reason: null };
    const numbers = found.map(({ domid }) => domid).join(', ');
    return { running, reason: `the domains ${numbers} have the ${field} ${text}; the newest one is meant` };
  }

  /** Removes what is left in xenstore of buses that are not kept. */
  sweep(keep: (domid: number, index: number) => boolean): void {
    try {
      this.#view?.sweep(keep);
    } catch (error) {
      this.#parts.log.warn({ reason: toErrorData(error).message }, 'xenstore could not be swept');
    }
  }

  close(): void {
    this.#closed = true;
    this.#retry?.cancel();
    this.#view?.close();
    this.#view = undefined;
  }

  #open(): void {
    if (this.#closed) return;
    this.#retry?.cancel();
    try {
      this.#view = this.#parts.source.open(() => this.refresh());
      this.#tries = 0;
    } catch (error) {
      this.#failure = toErrorData(error).message;
      const delayMs = retryDelayMs(this.#tries);
      if (delayMs < limits.reconcileRetryMaxMs) this.#tries += 1;
      this.#retry = this.#parts.clock.after(delayMs, () => this.refresh());
    }
  }

  #note(domain: Entry<'domains'>): void {
    const { events, log, onChange } = this.#parts;
    const before = this.#seen.get(domain.id);
    const now = this.presenceOf(domain);
    this.#seen.set(domain.id, now);
    const about = { kind: 'domains', object: domain.id } as const;
    if (now.running !== null && now.reason !== null && now.reason !== before?.reason) {
      log.warn({ domain: domain.id, reason: now.reason }, 'a domain is not the only one of its name');
    }
    if (incarnationOf(before?.running) === incarnationOf(now.running)) return;
    if (before?.running) events.emit({ type: 'domain-gone', ...about, data: { domid: before.running.domid } });
    if (now.running !== null) events.emit({ type: 'domain-appeared', ...about, data: { ...now.running } });
    onChange(domain);
  }
}

/** Names one life of a domain: another one after a restart. Fit for a file name. */
export const incarnationOf = (domain: RunningDomain | null | undefined): string | null =>
  domain === null || domain === undefined ? null : `${domain.domid}.${domain.uuid}`;
