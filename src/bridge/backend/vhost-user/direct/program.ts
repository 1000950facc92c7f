import { VmsgError } from '../../../../kit/errors.ts';
import { limits } from '../../../../kit/limits.ts';
import { Pace } from '../../../../kit/pace.ts';
import { Scope } from '../../../../kit/scope.ts';
import { type Connection, type ConnectionEvents, type ConnectionParts, openConnection } from '../connection.ts';
import { type ServedDescription, unlike } from '../describe.ts';

export interface ProgramEvents extends Pick<ConnectionEvents, 'configChanged' | 'used'> {
  /** The last event: no process of it runs any more. Not told after `close`. */
  ended(reason: string): void;
  /** Another one serves the next guest. */
  renewed(description: ServedDescription): void;
  /** A queue is broken, it says. */
  broken(): void;
}

/**
 * A program that may have memory of a guest, over the connections that it serves, one after the other. What is asked of it
 * is done in order. Once something fails, it is ended.
 */
export class Program {
  readonly description: ServedDescription;
  readonly events: ProgramEvents;
  readonly #parts: ConnectionParts;
  /** Undefined when there will be none. */
  #connection: Promise<Connection | undefined>;
  /** Ends the connection, or its opening. */
  #scope: Scope;
  #chain: Promise<void> = Promise.resolve();
  #end: Promise<void> | undefined;
  #closed = false;
  #isOpening = false;
  #fail: () => void = () => {};
  readonly #failed = new Promise<undefined>((resolve) => {
    this.#fail = () => resolve(undefined);
  });
  readonly #pace: Pace;

  private constructor(parts: ConnectionParts, events: ProgramEvents, connection: Connection) {
    this.#parts = parts;
    this.#pace = new Pace(parts.clock, limits.programRenewalBurst, limits.programRenewalIntervalMs);
    this.events = events;
    this.description = connection.description;
    this.#connection = Promise.resolve(connection);
    this.#scope = connection.scope;
  }

  /** @throws VmsgError as `openConnection` */
  static async open(parts: ConnectionParts, events: ProgramEvents): Promise<Program> {
    let program: Program | undefined;
    let early: string | undefined;
    const told = relay(
      () => program,
      (reason) => {
        early = reason;
      },
    );
    program = new Program(parts, events, await openConnection(parts, told, new Scope(), async (opened) => opened));
    if (early !== undefined) void program.fail(early);
    return program;
  }

  /**
   * Does something with the connection after everything that was asked before. Resolves when it is done, or when the
   * program has ended over it.
   */
  do(work: (connection: Connection) => Promise<void>): Promise<void> {
    this.#chain = this.#chain.then(async () => {
      // A race leaves something behind at the one that loses: not for each of what may be many.
      const connection = await (this.#isOpening ? Promise.race([this.#connection, this.#failed]) : this.#connection);
      if (this.#end !== undefined || connection === undefined) {
        await this.#end;
        return;
      }
      try {
        await this.#inTime(() => work(connection));
      } catch (error) {
        await this.fail(reasonOf(error));
      }
    });
    return this.#chain;
  }

  async #inTime(work: () => Promise<void>): Promise<void> {
    const limitMs = limits.vhostUserResetTimeoutMs;
    const why = `it does not do what it shall in ${limitMs / 1000} s`;
    const late = this.#parts.clock.after(limitMs, () => void this.fail(why));
    try {
      await work();
    } finally {
      late.cancel();
    }
  }

  /**
   * Takes from the program what it has of the guest, by ending it. What is asked afterwards is asked of a new one.
   * Resolves when the old one is gone.
   */
  renew(): Promise<void> {
    return this.do(async ({ scope }) => {
      this.#parts.endpoint.renewed?.();
      scope.close();
      await this.#parts.endpoint.surelyGone?.();
      if (this.#end === undefined) this.#connection = this.#openAgain();
    });
  }

  /** There is none yet that could have something of a guest. */
  get isOpening(): boolean {
    return this.#isOpening;
  }

  async #openAgain(): Promise<Connection | undefined> {
    this.#scope = new Scope();
    this.#isOpening = true;
    const limitMs = limits.programRenewalTimeoutMs;
    const why = `there is no new one in ${limitMs / 1000} s`;
    const late = this.#parts.clock.after(limitMs, () => void this.fail(why));
    try {
      await this.#pause();
      const told = relay(
        () => this,
        () => {},
      );
      const connection = await openConnection(this.#parts, told, this.#scope, async (opened) => opened);
      const problem = unlike(this.description, connection.description);
      if (problem !== undefined) throw new VmsgError('backend-unusable', problem);
      this.events.renewed(connection.description);
      return connection;
    } catch (error) {
      await this.fail(reasonOf(error));
      return undefined;
    } finally {
      this.#isOpening = false;
      late.cancel();
    }
  }

  /** A guest that comes and goes cannot have programs started as fast as it likes. */
  async #pause(): Promise<void> {
    for (let waitMs = this.#pace.take(); waitMs > 0; waitMs = this.#pace.take()) {
      await new Promise<void>((resolve) => {
        this.#parts.clock.after(waitMs, resolve);
      });
      if (this.#end !== undefined) throw new VmsgError('unavailable', 'the program was given up');
    }
  }

  /** Ends it. @returns when no process of it runs any more */
  fail(reason: string): Promise<void> {
    this.#end ??= this.#finish(reason);
    this.#fail();
    return this.#end;
  }

  async #finish(why: string): Promise<void> {
    let reason = why;
    try {
      this.#scope.close();
    } catch (error) {
      reason = `${reason}; ${reasonOf(error)}`;
    }
    await this.#parts.endpoint.surelyGone?.();
    if (!this.#closed) this.events.ended(reason);
  }

  /** As `renew`, when there is to be no new one; `close` is still needed. */
  async retire(): Promise<void> {
    this.#closed = true;
    await this.fail('it was closed');
  }

  async close(): Promise<void> {
    // One that cannot be killed keeps neither its device nor the service from ending: the endpoint waits for a time.
    void this.retire();
    await this.#parts.endpoint.close();
  }
}

/** Whatever goes wrong about one program, also by a mistake of ours, ends that program and nothing else. */
const reasonOf = (error: unknown): string =>
  error instanceof VmsgError ? error.message : `an error of the service: ${(error as Error).stack ?? String(error)}`;

const relay = (to: () => Program | undefined, early: (reason: string) => void): ConnectionEvents => ({
  used: (queue) => to()?.events.used(queue),
  configChanged: () => to()?.events.configChanged(),
  broken: () => to()?.events.broken(),
  closed: (reason) => {
    const program = to();
    if (program === undefined) early(reason);
    else void program.fail(reason);
  },
});
