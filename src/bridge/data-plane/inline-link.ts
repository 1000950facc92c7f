import { limits } from '../../kit/limits.ts';
import type { Scheduler } from '../../kit/scheduler.ts';
import { Scope } from '../../kit/scope.ts';
import { EpollPoller } from '../../libc/epoll.ts';
import type { Poller } from '../../libc/poll.ts';
import { SignalBatch } from '../../libc/signal-batch.ts';
import type { EventChannels } from '../../ports/hypervisor.ts';
import { carryOut } from './commands.ts';
import type { JoinLink } from './data-plane.ts';
import { JoinEngine } from './engine.ts';
import { countAt, type JoinCounts, type JoinOutcome, type JoinRequest, newCounts, readCounts } from './protocol.ts';

export interface InlineLinkParts {
  /** Of the event loop of this thread. */
  readonly poller: Poller;
  readonly openChannels: () => EventChannels;
  readonly scheduler: Scheduler;
  /** See `DataPlaneOptions`. */
  readonly ended: (reason: string) => void;
}

/** Joins in the thread of their caller: an epoll set within its event loop. */
export class InlineLink implements JoinLink {
  readonly #scope = new Scope();
  readonly #engine: JoinEngine;
  readonly #scheduler: Scheduler;
  readonly #counts = newCounts();

  /** @throws SystemCallError */
  constructor({ poller, openChannels, scheduler, ended }: InlineLinkParts) {
    this.#scope.defer(() => ended('the data plane is closed'));
    this.#scheduler = scheduler;
    const edges = this.#scope.own(new EpollPoller(limits.dataPlaneBatchEvents));
    this.#engine = new JoinEngine({
      watchEdges: (fd, onEdge) => edges.watchEdges(fd, onEdge),
      signals: this.#scope.own(new SignalBatch(limits.dataPlaneBatchSignals)),
      openChannels,
      wake: () => scheduler.soon(this.#forward),
      counts: this.#counts,
    });
    this.#scope.own(this.#engine);
    this.#scope.own(poller.watch(edges.fd, () => edges.dispatch(0)));
  }

  async call(command: JoinRequest): Promise<JoinOutcome> {
    return carryOut(this.#engine, command);
  }

  counts(): JoinCounts {
    return readCounts(this.#counts);
  }

  async close(): Promise<void> {
    this.#scope.close();
  }

  readonly #forward = (): void => {
    if (this.#scope.closed) return;
    this.#counts[countAt.rounds]!++;
    if (this.#engine.forward()) this.#scheduler.later(this.#forward);
  };
}
