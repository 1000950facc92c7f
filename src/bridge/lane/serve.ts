import type { MessagePort } from 'node:worker_threads';
import { toErrorData } from '../../kit/errors.ts';
import type { Closable } from '../../kit/scope.ts';
import { drainEventfd } from '../../libc/eventfd.ts';
import type { Poller } from '../../libc/poll.ts';
import { LaneCore, type LaneCoreOptions } from './core.ts';
import type { LaneReply, LaneRequest } from './protocol.ts';
import type { LaneWorkerData } from './worker-lane.ts';

/**
 * The Worker's side of a lane: answers commands, posts events, and ends the thread when the shutdown eventfd is
 * signalled. The kernel releases what a lane that is ended so still held of guests.
 */
export function serveLane(
  port: MessagePort,
  { shutdownFd, released }: LaneWorkerData,
  poller: Poller & Closable,
  make: (emit: (event: Extract<LaneReply, { event: unknown }>['event']) => void) => LaneCoreOptions,
): void {
  const post = (reply: LaneReply): void => port.postMessage(reply);
  const core = new LaneCore(make((event) => post({ event })));
  const answer = async ({ call, name, argument }: LaneRequest): Promise<void> => {
    try {
      post({ call, result: await core.call(name, argument as never) });
    } catch (error) {
      post({ call, error: toErrorData(error) });
    }
  };
  port.on('message', (request: LaneRequest) => void answer(request));
  poller.watch(shutdownFd, () => {
    drainEventfd(shutdownFd);
    poller.close();
    port.close();
    const flag = new Int32Array(released);
    Atomics.store(flag, 0, 1);
    Atomics.notify(flag, 0);
    process.exit(0);
  });
}
