import { Worker } from 'node:worker_threads';
import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import { createEventfd, signalEventfd } from '../../libc/eventfd.ts';
import type { JoinLink } from './data-plane.ts';
import {
  type JoinCommand,
  type JoinCounts,
  type JoinOutcome,
  type JoinReply,
  type JoinRequest,
  readCounts,
  sharedCounts,
} from './protocol.ts';
import type { JoinWorkerData } from './serve.ts';

interface Pending {
  resolve(outcome: JoinOutcome): void;
  reject(error: Error): void;
  readonly timer: NodeJS.Timeout;
}

/** Joins in a Worker that sits in epoll_wait. */
export class WorkerLink implements JoinLink {
  readonly #worker: Worker;
  readonly #wake = createEventfd();
  readonly #ending = new Int32Array(new SharedArrayBuffer(4));
  readonly #counts = sharedCounts();
  readonly #pending = new Map<number, Pending>();
  readonly #ended: Promise<void>;
  /** A thread in a system call would keep the process from ending. */
  readonly #onExit = (): void => this.#end();
  #failure: string | undefined;
  #nextCall = 1;

  /**
   * @param entry module that runs `serveJoins`
   * @param ended the thread is gone, and uses nothing any more
   */
  constructor(entry: URL, spinUs: number, ended: (reason: string) => void) {
    const workerData: JoinWorkerData = {
      wakeFd: this.#wake.number,
      ending: this.#ending.buffer as SharedArrayBuffer,
      counts: this.#counts,
      spinUs,
    };
    this.#worker = new Worker(entry, { workerData });
    this.#worker.on('message', ({ call, outcome }: JoinReply) => this.#take(call)?.resolve(outcome));
    this.#worker.on('error', (error) => this.#fail(error.message));
    this.#ended = new Promise((resolve) => {
      this.#worker.on('exit', () => {
        process.off('exit', this.#onExit);
        this.#fail('the data-plane thread has ended');
        this.#wake.close();
        ended(this.#failure ?? '');
        resolve();
      });
    });
    process.on('exit', this.#onExit);
  }

  call(command: JoinRequest): Promise<JoinOutcome> {
    if (this.#failure !== undefined) return Promise.reject(new VmsgError('unavailable', this.#failure));
    const call = this.#nextCall++;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#fail(`a data-plane thread did not answer in ${limits.dataPlaneReplyTimeoutMs} ms`);
        this.#end();
      }, limits.dataPlaneReplyTimeoutMs);
      this.#pending.set(call, { resolve, reject, timer });
      this.#worker.postMessage({ call, ...command } satisfies JoinCommand);
      signalEventfd(this.#wake.number);
    });
  }

  counts(): JoinCounts {
    return readCounts(this.#counts);
  }

  async close(): Promise<void> {
    this.#fail('the data plane is closed');
    this.#end();
    await this.#ended;
  }

  #take(call: number): Pending | undefined {
    const pending = this.#pending.get(call);
    this.#pending.delete(call);
    clearTimeout(pending?.timer);
    return pending;
  }

  #end(): void {
    Atomics.store(this.#ending, 0, 1);
    if (!this.#wake.closed) signalEventfd(this.#wake.number);
  }

  #fail(reason: string): void {
    this.#failure ??= reason;
    for (const call of [...this.#pending.keys()]) this.#take(call)?.reject(new VmsgError('unavailable', this.#failure));
  }
}
