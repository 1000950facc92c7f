import { assert } from '../kit/assert.ts';
import { limits } from '../kit/limits.ts';
import type { Scheduler } from '../kit/scheduler.ts';
import type { BackendRequest } from '../ports/backend.ts';
import { type Chain, type DeviceQueue, QueueFault } from '../virtio/queue.ts';

export interface QueueRunnerOwner {
  /** Hands a request to the backend. */
  handle(request: BackendRequest): void;
  /** Asks the backend to release what it only keeps. @param finish what is completed still reaches the driver */
  cancel(queue: number, finish: boolean): void;
  /** The driver wants to know about used buffers. */
  notifyUsed(queue: number): void;
  faulted(queue: number, fault: QueueFault): void;
}

/** One chain on its way through the backend. */
class RunningRequest implements BackendRequest {
  readonly queue: number;
  readonly #chain: Chain;
  readonly #ended: (chain: Chain, writtenBytes: number | undefined) => void;
  #open = true;

  /** @param ended without bytes when the request was released */
  constructor(queue: number, chain: Chain, ended: (chain: Chain, writtenBytes: number | undefined) => void) {
    this.queue = queue;
    this.#chain = chain;
    this.#ended = ended;
  }

  get readable(): readonly Uint8Array[] {
    return this.#chain.readable;
  }

  get writable(): readonly Uint8Array[] {
    return this.#chain.writable;
  }

  get readableBytes(): number {
    return this.#chain.readableBytes;
  }

  get writableBytes(): number {
    return this.#chain.writableBytes;
  }

  complete(writtenBytes: number): void {
    assert(this.#open, 'a request is completed once');
    this.#open = false;
    this.#ended(this.#chain, writtenBytes);
  }

  release(): void {
    assert(this.#open, 'a request is released once');
    this.#open = false;
    this.#ended(this.#chain, undefined);
  }
}

/** Moves chains of one enabled queue to the backend and back, in batches, with a bounded number in flight. */
export class QueueRunner {
  readonly #queue: DeviceQueue;
  readonly #owner: QueueRunnerOwner;
  readonly #scheduler: Scheduler;
  readonly #maxInFlight: number;
  /** running: takes chains; draining: completes what it has; stopped: gives up what it has. */
  #mode: 'running' | 'draining' | 'stopped' = 'running';
  #idle: (() => void) | undefined;
  #inFlight = 0;
  #pumping = false;
  #pumpPlanned = false;
  #flushPlanned = false;
  #completedRequests = 0;

  constructor(queue: DeviceQueue, owner: QueueRunnerOwner, scheduler: Scheduler, maxInFlight: number) {
    this.#queue = queue;
    this.#owner = owner;
    this.#scheduler = scheduler;
    this.#maxInFlight = maxInFlight;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  get completedRequests(): number {
    return this.#completedRequests;
  }

  /** The driver made something available, or may have. */
  kick(): void {
    if (this.#pumping || this.#pumpPlanned || this.#mode !== 'running') return;
    this.#pump();
  }

  #pump(): void {
    this.#pumping = true;
    const more = this.#takeChains();
    this.#pumping = false;
    if (more) {
      this.#pumpPlanned = true;
      this.#scheduler.later(() => {
        this.#pumpPlanned = false;
        this.kick();
      });
    }
  }

  /** @returns true when there may be more but others should get their turn */
  #takeChains(): boolean {
    this.#queue.suppressKicks();
    for (let budget: number = limits.queueBatchChains; this.#mode === 'running'; ) {
      if (this.#inFlight >= this.#maxInFlight) return false;
      if (budget === 0) return true;
      const chain = this.#queue.pop();
      if (chain instanceof QueueFault) {
        this.#mode = 'draining';
        this.#owner.faulted(this.#queue.index, chain);
        return false;
      }
      if (chain === undefined) {
        if (!this.#queue.enableKicks()) return false;
        this.#queue.suppressKicks();
        continue;
      }
      budget -= 1;
      this.#inFlight += 1;
      this.#owner.handle(new RunningRequest(this.#queue.index, chain, (c, n) => this.#completed(c, n)));
    }
    return false;
  }

  #completed(chain: Chain, writtenBytes: number | undefined): void {
    this.#inFlight -= 1;
    if (this.#mode === 'stopped' || writtenBytes === undefined) this.#queue.abandon(chain);
    else {
      this.#completedRequests += 1;
      this.#queue.push(chain, writtenBytes);
      this.#planFlush();
    }
    this.#endWhenIdle();
  }

  #planFlush(): void {
    if (this.#flushPlanned) return;
    this.#flushPlanned = true;
    this.#scheduler.soon(() => {
      this.#flushPlanned = false;
      if (this.#mode === 'stopped') return;
      this.#queue.publish();
      if (this.#queue.needsInterrupt()) this.#owner.notifyUsed(this.#queue.index);
      if (this.#mode === 'running') this.kick();
      else this.#endWhenIdle();
    });
  }

  /**
   * Takes no more chains, completes those in flight towards the driver, then calls `done`. Those that the backend
   * releases stay with the device: an in-flight log keeps them.
   */
  drain(done: () => void): void {
    this.#end('draining', done);
  }

  /** Takes no more chains and writes nothing more to the rings; `done` when the backend has let go of guest memory. */
  stop(done: () => void): void {
    this.#end('stopped', done);
  }

  #end(mode: 'draining' | 'stopped', done: () => void): void {
    if (this.#mode !== 'stopped') this.#mode = mode;
    const earlier = this.#idle;
    this.#idle = () => {
      earlier?.();
      done();
    };
    if (this.#inFlight > 0) this.#owner.cancel(this.#queue.index, this.#mode === 'draining');
    this.#endWhenIdle();
  }

  #endWhenIdle(): void {
    if (this.#idle === undefined || this.#inFlight > 0) return;
    if (!(this.#flushPlanned && this.#mode === 'draining')) this.#ended();
  }

  #ended(): void {
    this.#queue.close();
    const idle = this.#idle;
    this.#idle = undefined;
    idle?.();
  }
}
