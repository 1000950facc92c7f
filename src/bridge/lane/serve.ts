import type { MessagePort } from 'node:worker_threads';
import { toErrorData } from '../../kit/errors.ts';
import { drainEventfd } from '../../libc/eventfd.ts';
import type { Poller } from '../../libc/poll.ts';
import { LaneCore, type LaneCoreOptions } from './core.ts';
import type { LaneReply, LaneRequest } from './protocol.ts';

/**
 * The Worker's side of a lane: answers commands, posts events, and ends the thread when the shutdown eventfd is
 * signalled. The kernel releases what a lane that is ended so still held of guests.
 */
export function serveLane(
  port: MessagePort,
  shutdownFd: number,
  poller: Poller,
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
  const watch = poller.watch(shutdownFd, () => {
    drainEventfd(shutdownFd);
    watch.close();
    port.close();
    process.exit(0);
  });
}
