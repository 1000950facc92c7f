import { assert } from '../../kit/assert.ts';
import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import { type Closable, Scope } from '../../kit/scope.ts';
import { type EventChannel, type EventChannels, HypervisorFault } from '../../ports/hypervisor.ts';
import { countAt, type EventChannelRef, type GuestEnd, type JoinSpec } from './protocol.ts';

export interface EngineParts {
  /** Calls back for each edge of an eventfd, also for one before the watch. Does not read it. */
  readonly watchEdges: (fd: number, onEdge: () => void) => Closable;
  /** Signals eventfds that peers share: never waits. */
  readonly signals: { add(fd: number): void; flush(): void };
  /** Called when the first channel is joined; closed by the engine. */
  readonly openChannels: () => EventChannels;
  /** There is something to pass on, for the first time since `forward` has left nothing. */
  readonly wake: () => void;
  readonly counts: Float64Array;
}

/** One direction of one queue. At most once among those that wait, however often its source fires. */
interface Path {
  readonly signal: () => void;
  waiting: boolean;
  open: boolean;
}

/** A port of a guest that any number of queues uses, for kicks and calls. */
interface SharedPort {
  readonly channel: EventChannel;
  readonly kicks: Set<Path>;
  users: number;
}

/**
 * Passes notifications on between guests and programs. Sources only mark their path; `forward` signals marked paths in
 * the order in which they were marked, each once. So one that fires all the time has one turn in each round, as any other.
 */
export class JoinEngine implements Closable {
  readonly #p: EngineParts;
  readonly #joins = new Map<number, Scope>();
  readonly #ports = new Map<string, SharedPort>();
  readonly #waiting: Path[] = [];
  #channels: EventChannels | undefined;
  #closed = false;

  constructor(parts: EngineParts) {
    this.#p = parts;
  }

  /**
   * After this nothing that either side signals is lost; a signal without a cause may come first.
   * @returns what the hypervisor says of a port that cannot be bound; then nothing is joined, as after an exception
   * @throws SystemCallError, HypervisorError, VmsgError limit-reached
   */
  join(id: number, spec: JoinSpec): HypervisorFault | undefined {
    assert(!this.#closed && !this.#joins.has(id), `join ${id}`);
    if (this.#joins.size >= limits.dataPlaneJoinsPerWorker) {
      throw new VmsgError(
        'limit-reached',
        `a data-plane thread joins at most ${limits.dataPlaneJoinsPerWorker} queues`,
      );
    }
    const scope = new Scope();
    try {
      const fault = this.#connect(spec, scope);
      if (fault === undefined) this.#joins.set(id, scope);
      else scope.close();
      return fault;
    } catch (error) {
      scope.close();
      throw error;
    }
  }

  /** After this the descriptors of the join are not used any more, and its ports are free. */
  unjoin(id: number): void {
    const scope = this.#joins.get(id);
    this.#joins.delete(id);
    scope?.close();
  }

  /** Passes on a bounded number of signals. @returns whether some are left */
  forward(): boolean {
    const { signals, counts } = this.#p;
    const waiting = this.#waiting;
    const count = Math.min(waiting.length, limits.dataPlaneBatchSignals);
    for (let i = 0; i < count; i++) {
      const path = waiting[i]!;
      path.waiting = false;
      if (!path.open) continue;
      counts[countAt.signals]!++;
      path.signal();
    }
    signals.flush();
    if (count === waiting.length) waiting.length = 0;
    else waiting.splice(0, count);
    return waiting.length > 0;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const id of [...this.#joins.keys()]) this.unjoin(id);
    this.#channels?.close();
  }

  #connect({ kick, call }: JoinSpec, scope: Scope): HypervisorFault | undefined {
    const { signals } = this.#p;
    if (kick !== undefined) {
      const to = kick.to;
      const path = openPath(() => signals.add(to), scope);
      const fault = this.#source(kick.from, path, scope);
      if (fault !== undefined) return fault;
    }
    if (call === undefined) return undefined;
    const signal = this.#sink(call.to, scope);
    if (signal instanceof HypervisorFault) return signal;
    return this.#source({ eventfd: call.from }, openPath(signal, scope), scope);
  }

  #source(from: GuestEnd, path: Path, scope: Scope): HypervisorFault | undefined {
    if ('eventfd' in from) {
      scope.own(this.#p.watchEdges(from.eventfd, () => this.#mark(path)));
      return undefined;
    }
    const port = this.#port(from.channel, scope);
    if (port instanceof HypervisorFault) return port;
    port.kicks.add(path);
    scope.defer(() => port.kicks.delete(path));
    // Events for other queues of this port may have been for this one.
    this.#mark(path);
    return undefined;
  }

  #sink(to: GuestEnd, scope: Scope): (() => void) | HypervisorFault {
    if ('eventfd' in to) {
      const { eventfd } = to;
      return () => this.#p.signals.add(eventfd);
    }
    const port = this.#port(to.channel, scope);
    return port instanceof HypervisorFault ? port : () => port.channel.notify();
  }

  #port(ref: EventChannelRef, scope: Scope): SharedPort | HypervisorFault {
    const key = `${ref.domid} ${ref.port}`;
    const port = this.#ports.get(key) ?? this.#bind(key, ref);
    if (port instanceof HypervisorFault) return port;
    port.users++;
    scope.defer(() => {
      if (--port.users > 0) return;
      this.#ports.delete(key);
      port.channel.close();
    });
    return port;
  }

  #bind(key: string, { domid, port: remotePort }: EventChannelRef): SharedPort | HypervisorFault {
    const kicks = new Set<Path>();
    this.#channels ??= this.#p.openChannels();
    const channel = this.#channels.bindInterdomain(domid, remotePort, () => {
      for (const path of kicks) this.#mark(path);
    });
    if (channel instanceof HypervisorFault) return channel;
    const port: SharedPort = { channel, kicks, users: 0 };
    this.#ports.set(key, port);
    return port;
  }

  #mark(path: Path): void {
    this.#p.counts[countAt.events]!++;
    if (path.waiting) return;
    path.waiting = true;
    if (this.#waiting.push(path) === 1) this.#p.wake();
  }
}

function openPath(signal: () => void, scope: Scope): Path {
  const path: Path = { signal, waiting: false, open: true };
  scope.defer(() => {
    path.open = false;
  });
  return path;
}
