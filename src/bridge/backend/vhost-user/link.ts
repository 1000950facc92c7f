import type { Timer } from '../../../kit/clock.ts';
import { VmsgError } from '../../../kit/errors.ts';
import { limits } from '../../../kit/limits.ts';
import { retryDelayMs } from '../../../kit/retry.ts';
import { type Closable, Scope } from '../../../kit/scope.ts';
import type { ConnectionEvents, ConnectionParts } from './connection.ts';
import { type ServedDescription, unlike } from './describe.ts';
import { Session } from './session.ts';

export interface LinkEvents extends Omit<ConnectionEvents, 'closed'> {
  /** The connection has ended. With a device that keeps state it is the last event. */
  lost(reason: string): void;
  /** Another try to connect has failed. */
  away(reason: string): void;
  /** A back-end is connected again. */
  back(): void;
}

interface Waiter {
  readonly resolve: (session: Session) => void;
  readonly reject: (error: Error) => void;
}

/**
 * The way to a back-end over the life of a device: one connection after another, where the device keeps no state. The
 * memory of a connection that has ended stays until `forgetOld`.
 */
export class Link implements Closable {
  /** What the driver is shown. */
  readonly description: ServedDescription;
  readonly #parts: ConnectionParts;
  readonly #old: Session[] = [];
  #events: LinkEvents | undefined;
  /** Lost before somebody listened. */
  #lostEarly: string | undefined;
  #latest: Session;
  #connected = true;
  #tries = 0;
  #timer: Timer | undefined;
  /** What a connection under way has open. */
  #opening = new Scope();
  #waiting: Waiter[] = [];
  #closed = false;

  private constructor(parts: ConnectionParts, first: Session) {
    this.#parts = parts;
    this.#latest = first;
    this.description = first.description;
  }

  /** @throws VmsgError as `Session.open` */
  static async open(parts: ConnectionParts): Promise<Link> {
    const events = new Relay();
    const session = await Session.open(parts, events, new Scope());
    const link = new Link(parts, session);
    link.#follow(session, events);
    return link;
  }

  /** To be called once. */
  listen(events: LinkEvents): void {
    this.#events = events;
    if (this.#lostEarly !== undefined) events.lost(this.#lostEarly);
  }

  /** The latest connection, which may have ended. */
  get latest(): Session {
    return this.#latest;
  }

  /** The connection, if there is one now. */
  get session(): Session | undefined {
    return this.#connected ? this.#latest : undefined;
  }

  /** A connection, when there is one. @throws VmsgError unavailable: the link was closed */
  ready(): Promise<Session> {
    if (this.#closed) return Promise.reject(closedError());
    if (this.#connected) return Promise.resolve(this.#latest);
    return new Promise((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
    });
  }

  /** Nobody looks at the memory of earlier connections any more. */
  forgetOld(): void {
    for (const session of this.#old.splice(0)) session.close();
  }

  /** The back-end does not do what it should: its connection ends. */
  drop(session: Session, reason: string): void {
    if (session !== this.session) return;
    this.#connected = false;
    session.disconnect();
    // One that comes and goes without doing anything is not connected to all the time.
    if (session.isProven) this.#tries = 0;
    if (this.#events === undefined) this.#lostEarly = reason;
    else this.#events.lost(reason);
    if (this.#parts.shape.stateless) this.#plan();
  }

  #follow(session: Session, relay: Relay): void {
    const now = (): boolean => session === this.session;
    relay.to({
      used: (queue) => now() && this.#events?.used(queue),
      configChanged: () => now() && this.#events?.configChanged(),
      broken: () => now() && this.#events?.broken(),
      closed: (reason) => this.drop(session, reason),
    });
  }

  #plan(): void {
    if (this.#closed) return;
    const delayMs = retryDelayMs(this.#tries, limits.vhostUserRetryMinMs);
    this.#timer = this.#parts.clock.after(delayMs, () => void this.#again());
    this.#tries += 1;
  }

  async #again(): Promise<void> {
    const relay = new Relay();
    this.#opening = new Scope();
    try {
      const session = await Session.open(this.#parts, relay, this.#opening);
      const problem = this.#closed ? 'the back-end was given up' : unlike(this.description, session.description);
      if (problem !== undefined) {
        session.close();
        throw new VmsgError('backend-unusable', problem);
      }
      this.#replace(session, relay);
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      if (this.#closed) return;
      this.#events?.away(error.message);
      this.#plan();
    }
  }

  #replace(session: Session, relay: Relay): void {
    if (this.#latest.isUsed) this.#old.push(this.#latest);
    else this.#latest.close();
    this.#latest = session;
    this.#connected = true;
    this.#follow(session, relay);
    // It may have gone already.
    if (this.session === undefined) return;
    this.#events?.back();
    for (const { resolve } of this.#waiting.splice(0)) resolve(session);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#connected = false;
    this.#timer?.cancel();
    this.#opening.close();
    this.forgetOld();
    this.#latest.close();
    for (const { reject } of this.#waiting.splice(0)) reject(closedError());
  }
}

const closedError = (): VmsgError => new VmsgError('unavailable', 'the back-end was given up');

/** Events of a connection that nobody follows yet: only its end matters before. */
class Relay implements ConnectionEvents {
  #target: ConnectionEvents | undefined;
  #ended: string | undefined;

  to(target: ConnectionEvents): void {
    this.#target = target;
    if (this.#ended !== undefined) target.closed(this.#ended);
  }

  used(queue: number): void {
    this.#target?.used(queue);
  }

  configChanged(): void {
    this.#target?.configChanged();
  }

  broken(): void {
    this.#target?.broken();
  }

  closed(reason: string): void {
    this.#ended = reason;
    this.#target?.closed(reason);
  }
}
