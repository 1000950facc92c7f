import type { Clock, Timer } from '../../../kit/clock.ts';
import { VmsgError } from '../../../kit/errors.ts';
import { limits } from '../../../kit/limits.ts';
import type { Closable, Scope } from '../../../kit/scope.ts';
import type { Fd } from '../../../libc/fd.ts';
import type { Poller, Watch } from '../../../libc/poll.ts';
import { UnixListener } from '../../../libc/unix-socket.ts';
import { type Endpoint, otherReason } from './endpoint.ts';

const listenOptions = { mode: 0o600, backlog: 1, type: 'stream' } as const;

/** A socket that back-ends connect to, one after the other: the next one waits until it is wanted. */
class Door implements Closable {
  readonly #listener: UnixListener;
  readonly #watch: Watch;
  #onKnock: (() => void) | undefined;

  /** @throws VmsgError invalid-request, system-call */
  constructor(path: string, poller: Poller) {
    this.#listener = UnixListener.listen(path, listenOptions);
    this.#watch = poller.watch(this.#listener.fd.number, () => {
      this.#watch.pause();
      const knocked = this.#onKnock;
      this.#onKnock = undefined;
      knocked?.();
    });
    this.#watch.pause();
  }

  /** @returns who waits, if somebody does. @throws VmsgError system-call */
  take(): Fd | undefined {
    return this.#listener.accept();
  }

  /** Tells once that somebody waits. It replaces what was to be told before. */
  onKnock(knocked: (() => void) | undefined): void {
    this.#onKnock = knocked;
    if (knocked === undefined) this.#watch.pause();
    else this.#watch.resume();
  }

  close(): void {
    this.#watch.close();
    this.#listener.close();
  }
}

/**
 * The sockets of a lane that back-ends connect to. One stays open while its device comes and goes, so that a back-end
 * may come first, and for a while after the last try to open the device.
 */
export class Doors implements Closable {
  readonly #poller: Poller;
  readonly #clock: Clock;
  readonly #open = new Map<string, { readonly door: Door; lease: Timer | undefined }>();

  constructor(poller: Poller, clock: Clock) {
    this.#poller = poller;
    this.#clock = clock;
  }

  /** Stays open until `release`. @throws VmsgError as `Door` */
  take(path: string): Door {
    const known = this.#open.get(path);
    if (known !== undefined) {
      known.lease?.cancel();
      known.lease = undefined;
      return known.door;
    }
    const door = new Door(path, this.#poller);
    this.#open.set(path, { door, lease: undefined });
    return door;
  }

  /** Longer than the service waits before it tries again. */
  release(path: string): void {
    const known = this.#open.get(path);
    if (known === undefined) return;
    known.lease?.cancel();
    known.lease = this.#clock.after(limits.reconcileRetryMaxMs + limits.laneCallTimeoutMs, () => {
      this.#open.delete(path);
      known.door.close();
    });
  }

  close(): void {
    for (const { door, lease } of this.#open.values()) {
      lease?.cancel();
      door.close();
    }
    this.#open.clear();
  }
}

/** A back-end that somebody else starts, and that connects to a socket of ours. */
export class ListeningEndpoint implements Endpoint {
  readonly name: string;
  readonly shadowReason = otherReason;
  readonly #path: string;
  readonly #doors: Doors;
  readonly #onReady: () => void;
  #hasServed = false;

  /** @param onReady told when a back-end comes after the first `connect` found none */
  constructor(path: string, doors: Doors, onReady: () => void) {
    this.name = `the back-end that connects to ${path}`;
    this.#path = path;
    this.#doors = doors;
    this.#onReady = onReady;
  }

  /** The first one does not wait: a device cannot be there before its back-end. */
  async connect(scope: Scope): Promise<Fd> {
    const door = this.#doors.take(this.#path);
    const waiting = door.take() ?? (this.#hasServed ? await this.#next(door, scope) : undefined);
    if (waiting === undefined) {
      door.onKnock(this.#onReady);
      throw new VmsgError('unavailable', `${this.#path}: no back-end has connected to it yet`);
    }
    this.#hasServed = true;
    return scope.own(waiting);
  }

  async #next(door: Door, scope: Scope): Promise<Fd> {
    for (;;) {
      await new Promise<void>((resolve) => {
        door.onKnock(resolve);
        scope.defer(resolve);
      });
      if (scope.closed) throw new VmsgError('unavailable', 'the back-end was given up');
      const fd = door.take();
      if (fd !== undefined) return fd;
    }
  }

  async close(): Promise<void> {
    this.#doors.release(this.#path);
  }
}
