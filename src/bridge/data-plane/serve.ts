import { type MessagePort, receiveMessageOnPort } from 'node:worker_threads';
import { limits } from '../../kit/limits.ts';
import { Scope } from '../../kit/scope.ts';
import { EpollPoller } from '../../libc/epoll.ts';
import type { Poller } from '../../libc/poll.ts';
import { SignalBatch } from '../../libc/signal-batch.ts';
import type { EventChannels } from '../../ports/hypervisor.ts';
import { carryOut } from './commands.ts';
import { JoinEngine } from './engine.ts';
import type { JoinCommand, JoinReply } from './protocol.ts';
import { Rounds } from './rounds.ts';
import { SpinBudget } from './spin.ts';

/** What the Worker of a data plane gets to start with. */
export interface JoinWorkerData {
  /** An eventfd that only the bridge has: commands wait, or the thread is to end. */
  readonly wakeFd: number;
  /** One i32, not 0 when the thread is to end. */
  readonly ending: SharedArrayBuffer;
  readonly counts: Float64Array<SharedArrayBuffer>;
  readonly spinUs: number;
}

/**
 * The Worker's side of a data plane; returns when it is to end. It never gives its thread back to the event loop: it
 * waits in epoll_wait, and takes commands from the port when the eventfd says that there are some.
 */
export function serveJoins(
  port: MessagePort,
  data: JoinWorkerData,
  openChannels: (poller: Poller) => EventChannels,
): void {
  const scope = new Scope();
  try {
    const { counts } = data;
    const poller = scope.own(new EpollPoller(limits.dataPlaneBatchEvents));
    const engine = scope.own(
      new JoinEngine({
        watchEdges: (fd, onEdge) => poller.watchEdges(fd, onEdge),
        signals: scope.own(new SignalBatch(limits.dataPlaneBatchSignals)),
        openChannels: () => openChannels(poller),
        // Marks are only made in a round, which forwards, and by commands, after which there is no wait.
        wake: () => {},
        counts,
      }),
    );
    // Commands may have come before the watch.
    let commanded = true;
    poller.watchEdges(data.wakeFd, () => {
      commanded = true;
    });
    const rounds = new Rounds({
      poll: (timeoutMs) => poller.dispatch(timeoutMs),
      forward: () => engine.forward(),
      spin: new SpinBudget(data.spinUs),
      nowUs: () => performance.now() * 1000,
      counts,
    });
    const ending = new Int32Array(data.ending);
    while (Atomics.load(ending, 0) === 0) {
      rounds.run(commanded ? 0 : limits.dataPlaneWaitMs);
      if (commanded) commanded = takeCommands(port, engine);
    }
  } finally {
    scope.close();
  }
}

/** @returns whether there may be more; there are when something was carried out, for it may have left marks as well */
function takeCommands(port: MessagePort, engine: JoinEngine): boolean {
  for (let taken = 0; taken < limits.dataPlaneBatchCommands; taken++) {
    const received = receiveMessageOnPort(port);
    if (received === undefined) return taken > 0;
    const command = received.message as JoinCommand;
    port.postMessage({ call: command.call, outcome: carryOut(engine, command) } satisfies JoinReply);
  }
  return true;
}
