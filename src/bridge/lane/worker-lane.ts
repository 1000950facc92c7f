import { Worker } from 'node:worker_threads';
import { type ErrorData, fromErrorData, VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import { createEventfd, signalEventfd } from '../../libc/eventfd.ts';
import type { Fd } from '../../libc/fd.ts';
import type {
  Lane,
  LaneCommandName,
  LaneCommands,
  LaneEvent,
  LaneReply,
  LaneRequest,
  LaneSettings,
} from './protocol.ts';

/** What the Worker of a lane gets to start with. */
export interface LaneWorkerData {
  readonly settings: LaneSettings;
  /** An eventfd; when it is signalled the lane ends, whatever else it does. */
  readonly shutdownFd: number;
  /** One i32; the Worker sets and notifies it when nothing of the kernel can call into it any more. */
  readonly released: SharedArrayBuffer;
}

interface Pending {
  resolve(result: unknown): void;
  reject(error: Error): void;
  readonly timer: NodeJS.Timeout;
}

/** Commands that wait for guests' I/O take longer than others. */
const slowCommands: ReadonlySet<LaneCommandName> = new Set(['detach', 'closeBus', 'shutdown']);

/** A lane in a Worker. No guest message crosses: only commands, replies and events. */
export class WorkerLane implements Lane {
  readonly #worker: Worker;
  readonly #shutdown: Fd;
  readonly #pending = new Map<number, Pending>();
  readonly #released = new Int32Array(new SharedArrayBuffer(4));
  /**
   * Node ends the Workers with the process: one that is called by the kernel at that moment aborts it. The wait also
   * covers a Worker that sits in a system call.
   */
  readonly #onExit = (): void => {
    this.close();
    Atomics.wait(this.#released, 0, 0, limits.laneReleaseTimeoutMs);
  };
  #listener: ((event: LaneEvent) => void) | undefined;
  #nextCall = 1;
  #ended = false;

  /** @param entry module that runs `serveLane` */
  constructor(entry: URL, settings: LaneSettings) {
    this.#shutdown = createEventfd();
    const released = this.#released.buffer as SharedArrayBuffer;
    const workerData: LaneWorkerData = { settings, shutdownFd: this.#shutdown.number, released };
    this.#worker = new Worker(entry, { workerData });
    this.#worker.on('message', (reply: LaneReply) => this.#onReply(reply));
    this.#worker.on('error', (error) => this.#end(error.message));
    this.#worker.on('exit', (code) => this.#end(`the lane ended with code ${code}`));
    process.on('exit', this.#onExit);
  }

  onEvent(listener: (event: LaneEvent) => void): void {
    this.#listener = listener;
  }

  call<N extends LaneCommandName>(name: N, argument: LaneCommands[N]['argument']): Promise<LaneCommands[N]['result']> {
    if (this.#ended) return Promise.reject(new VmsgError('unavailable', 'the lane has ended'));
    const call = this.#nextCall++;
    const timeoutMs = slowCommands.has(name)
      ? limits.laneCallTimeoutMs + 2 * limits.resetTimeoutMs
      : limits.laneCallTimeoutMs;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#pending.delete(call);
        reject(new VmsgError('timeout', `the lane did not answer ${name} in ${timeoutMs} ms`));
      }, timeoutMs);
      this.#pending.set(call, { resolve: resolve as (result: unknown) => void, reject, timer });
      this.#worker.postMessage({ call, name, argument } satisfies LaneRequest);
    });
  }

  #onReply(reply: LaneReply): void {
    if ('event' in reply) {
      this.#listener?.(reply.event);
      return;
    }
    const pending = this.#pending.get(reply.call);
    if (pending === undefined) return;
    this.#pending.delete(reply.call);
    clearTimeout(pending.timer);
    if ('error' in reply) pending.reject(fromErrorData(reply.error as ErrorData));
    else pending.resolve(reply.result);
  }

  #end(reason: string): void {
    if (this.#ended) return;
    this.#ended = true;
    process.off('exit', this.#onExit);
    for (const { reject, timer } of this.#pending.values()) {
      clearTimeout(timer);
      reject(new VmsgError('unavailable', reason));
    }
    this.#pending.clear();
    this.#listener?.({ type: 'lane-failed', reason });
    this.#shutdown.close();
  }

  close(): void {
    if (this.#ended) return;
    // Not a failure: nobody is to be told.
    this.#listener = undefined;
    signalEventfd(this.#shutdown.number);
  }
}
