import type { Scheduler } from '../kit/scheduler.ts';
import type { Backend, BackendMemory, BackendRequest } from '../ports/backend.ts';
import type { FeatureSet } from '../virtio/features.ts';
import type { InflightLog } from '../virtio/inflight.ts';
import { QueueFault } from '../virtio/queue.ts';
import { openDeviceQueue } from '../virtio/rings.ts';
import type { DeviceLink } from './endpoint.ts';
import type { EnabledQueue, QueueEngine, QueueEngineOwner } from './queue-engine.ts';
import { QueueRunner } from './queue-runner.ts';

/** Takes chains from the queues of a device and hands them to its backend, in this process. */
export class LocalQueues implements QueueEngine {
  readonly #backend: Backend;
  readonly #scheduler: Scheduler;
  readonly #owner: QueueEngineOwner;
  readonly #runners = new Map<number, QueueRunner>();
  readonly #work = { requests: 0, bytes: 0 };
  #link: DeviceLink | undefined;

  constructor(backend: Backend, scheduler: Scheduler, owner: QueueEngineOwner) {
    this.#backend = backend;
    this.#scheduler = scheduler;
    this.#owner = owner;
  }

  get work(): { requests: number; bytes: number } {
    return { ...this.#work };
  }

  connect(link: DeviceLink): void {
    this.#link = link;
  }

  disconnect(link: DeviceLink, done: () => void): void {
    if (this.#link === link) this.#link = undefined;
    done();
  }

  activate(features: FeatureSet, memory: BackendMemory): void {
    this.#backend.activate((bit) => features.has(bit), memory);
  }

  start(queue: EnabledQueue, log: InflightLog | undefined, resume: boolean): void {
    const link = this.#link;
    if (link === undefined) return;
    const { index } = queue;
    const opened = openDeviceQueue(queue, link.space, log);
    if (opened instanceof QueueFault) {
      this.#owner.failed(`queue ${index}: ${opened.detail}`);
      return;
    }
    const owner = {
      handle: (request: BackendRequest) => this.#backend.handle(this.#counted(request)),
      cancel: (queueIndex: number, finish: boolean) => this.#backend.cancel?.(queueIndex, finish),
      notifyUsed: (queueIndex: number) => this.#link?.used(queueIndex),
      faulted: (queueIndex: number, fault: QueueFault) => this.#owner.failed(`queue ${queueIndex}: ${fault.detail}`),
    };
    const runner = new QueueRunner(opened, owner, this.#scheduler, this.#backend.description.maxInFlight);
    this.#runners.set(index, runner);
    runner.kick();
    // What the last process published may not have been announced.
    if (resume && opened.needsInterrupt()) link.used(index);
  }

  #counted(request: BackendRequest): BackendRequest {
    this.#work.requests += 1;
    this.#work.bytes += request.readableBytes + request.writableBytes;
    return request;
  }

  kick(index: number): boolean {
    const runner = this.#runners.get(index);
    runner?.kick();
    return runner !== undefined;
  }

  inFlight(index: number): number {
    return this.#runners.get(index)?.inFlight ?? 0;
  }

  stop(index: number, done: () => void): void {
    const runner = this.#runners.get(index);
    const ended = (): void => {
      this.#runners.delete(index);
      done();
    };
    if (runner === undefined) ended();
    else runner.stop(ended);
  }

  halt(): void {
    for (const runner of this.#runners.values()) runner.stop(() => {});
  }

  stopAll(done: () => void): void {
    this.#endAll((runner, ended) => runner.stop(ended), done);
  }

  drainAll(done: () => void): void {
    this.#endAll((runner, ended) => runner.drain(ended), done);
  }

  #endAll(end: (runner: QueueRunner, ended: () => void) => void, done: () => void): void {
    let left = this.#runners.size;
    if (left === 0) done();
    for (const [index, runner] of [...this.#runners]) {
      end(runner, () => {
        this.#runners.delete(index);
        left -= 1;
        if (left === 0) done();
      });
    }
  }

  deactivate(): void {
    this.#backend.deactivate();
  }
}
