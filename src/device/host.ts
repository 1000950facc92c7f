import { assert } from '../kit/assert.ts';
import { BoundedQueue } from '../kit/bounded-queue.ts';
import type { Clock, Timer } from '../kit/clock.ts';
import { type ErrnoName, errno } from '../kit/errno.ts';
import { limits } from '../kit/limits.ts';
import type { Scheduler } from '../kit/scheduler.ts';
import type { Backend, BackendHost } from '../ports/backend.ts';
import type { QueueWay } from '../ports/bus.ts';
import { FeatureSet, feature } from '../virtio/features.ts';
import { ringLayout } from '../virtio/geometry.ts';
import type { TransportRequest, TransportResponse } from '../virtio-msg/transport-messages.ts';
import type { DeviceLink, ServedDevice, SharedDeviceMemory } from './endpoint.ts';
import { LocalQueues } from './local-queues.ts';
import type { DeviceModel, DeviceState } from './model.ts';
import type { QueueEngine, RingBackend } from './queue-engine.ts';
import type { DeviceRecovery } from './recovery.ts';
import { restoredConfig } from './restored-config.ts';
import { type DeviceEffect, type DeviceInput, initialState, isRunning, step } from './state.ts';

export interface DeviceHostOptions {
  readonly model: DeviceModel;
  readonly backend: Backend | RingBackend;
  readonly scheduler: Scheduler;
  readonly clock: Clock;
  readonly recovery: DeviceRecovery | undefined;
  /** Status or reason changed; for the event stream. */
  readonly onStatus: (status: number, reason: string | null) => void;
}

const notificationData = FeatureSet.of(feature.NOTIFICATION_DATA);

interface PendingRequest {
  readonly request: TransportRequest;
  readonly token: number;
}

/**
 * Runs one device: feeds the state machine, carries out its effects with the backend and the queues. It outlives
 * connections of the bus; each new one starts with the device in reset, or resumed.
 */
export class DeviceHost implements ServedDevice, BackendHost {
  readonly recovery: 'resume' | 'reset';
  readonly dataPath: 'direct' | 'shadow';
  readonly #o: DeviceHostOptions;
  #model: DeviceModel;
  #state: DeviceState;
  #link: DeviceLink | undefined;
  readonly #engine: QueueEngine;
  /** Queues that continue from their in-flight log at the driver's first kick. */
  readonly #suspended = new Set<number>();
  readonly #waiting = new BoundedQueue<PendingRequest>(limits.devicePendingRequests);
  #current: PendingRequest | undefined;
  #deadline: Timer | undefined;
  #reason: string | null = null;
  /** Why what serves the device is away. */
  #away: string | null = null;
  #activated = false;
  /** What the backend asked to keep since the last reset. */
  #kept = new Uint8Array(0);
  /** The service or the attachment ends: no queue starts any more, also for a driver that sets the device up now. */
  #ending = false;

  constructor(options: DeviceHostOptions) {
    this.#o = options;
    this.recovery = options.recovery === undefined ? 'reset' : 'resume';
    this.dataPath = options.backend.shadowReason === undefined ? 'direct' : 'shadow';
    this.#model = options.model;
    this.#state = initialState(options.model, options.backend.description.config);
    const owner = { failed: (reason: string) => this.failed(reason) };
    const { backend, scheduler } = options;
    this.#engine = 'openQueues' in backend ? backend.openQueues(owner) : new LocalQueues(backend, scheduler, owner);
  }

  get deviceType(): number {
    return this.#o.model.deviceType;
  }

  get status(): number {
    return this.#state.status;
  }

  get reason(): string | null {
    return this.#reason ?? this.#away;
  }

  get work(): ServedDevice['work'] {
    return this.#engine.work;
  }

  get hasProgram(): boolean {
    return this.#engine.useWay !== undefined;
  }

  useWay(queue: number, way: QueueWay | undefined): number | Promise<number> {
    return this.#engine.useWay?.(queue, way) ?? errno.EPERM;
  }

  get sharedMemory(): readonly SharedDeviceMemory[] {
    return this.#o.backend.sharedMemory ?? [];
  }

  get queueCount(): number {
    return this.#o.model.queueMaxSizes.length;
  }

  get resetting(): boolean {
    return this.#state.resetting;
  }

  queues(): { index: number; size: number; inFlight: number }[] {
    return this.#state.queues.flatMap((queue, index) =>
      queue.enabled ? [{ index, size: queue.size, inFlight: this.#engine.inFlight(index) }] : [],
    );
  }

  /** A driver is there. `resume` keeps what the recovery memory holds; otherwise the device is in reset. */
  connect(link: DeviceLink, resume: boolean): void {
    this.#link = link;
    this.#engine.connect(link);
    this.#model = this.#modelFor(link);
    const { model, recovery } = this.#o;
    const saved = resume ? recovery?.load(model, this.#state.config) : undefined;
    if (saved === undefined) {
      recovery?.clear();
      return;
    }
    const refused = (reason: string): void => this.failed(reason);
    const config = restoredConfig(this.#o.backend, this.#state.config, saved.savedConfig, refused);
    this.#kept = saved.kept;
    this.#setState({ ...saved.state, config });
    if (!isRunning(saved.state)) return;
    this.#activate();
    for (const [index, queue] of saved.state.queues.entries()) if (queue.enabled) this.#suspended.add(index);
    if (Buffer.compare(saved.savedConfig, config) !== 0) this.configChanged(0, config);
  }

  /** What this driver sees of the device. */
  #modelFor(link: DeviceLink): DeviceModel {
    const { model } = this.#o;
    const sharedMemory = new Map(
      this.sharedMemory.flatMap(({ id, length }) => {
        const address = link.sharedMemory.get(id);
        return address === undefined ? [] : [[id, { length: BigInt(length), address }] as const];
      }),
    );
    // Kicks by descriptor carry no data, so a driver must not rely on it.
    const offered = link.outOfBandKicks ? model.offered.minus(notificationData) : model.offered;
    return { ...model, offered, maxMessageSize: link.maxMessageSize, sharedMemory };
  }

  /** The driver is gone: back to reset, without answers. `done` when the backend has let go of its memory. */
  disconnect(done: () => void): void {
    const link = this.#link;
    this.#link = undefined;
    this.#dropRequests();
    const resetting = this.#state.resetting;
    this.#setState({ ...this.#state, resetting: true, waiting: null });
    // A reset that the driver asked for goes on by itself.
    const left = (): void => {
      if (link === undefined) done();
      else this.#engine.disconnect(link, done);
    };
    if (resetting) this.#stopQueues(left);
    else this.#reset(left);
  }

  /** Lets requests in flight complete towards the driver and keeps everything that a resume needs. */
  suspend(done: () => void): void {
    this.#ending = true;
    this.#dropRequests();
    this.#engine.drainAll(done);
  }

  onRequest(request: TransportRequest, token: number): void {
    if (this.#waiting.push({ request, token })) this.#next();
    else this.#link?.fail(token, request.name, 'EBUSY');
  }

  /** The driver made buffers available. Hot path: anything but a running queue is ignored. */
  onAvailable(queue: number): void {
    if (!this.#engine.kick(queue) && this.#suspended.delete(queue)) this.#startQueue(queue, true);
  }

  onRevoked(area: number): void {
    this.failed(`the guest removed area ${area} while the device used it`);
  }

  configChanged(offset: number, data: Uint8Array): void {
    this.#feed({ kind: 'config-changed', offset, data });
  }

  away(reason: string | null): void {
    if (reason === this.#away) return;
    this.#away = reason;
    this.#o.onStatus(this.#state.status, this.reason);
  }

  failed(reason: string): void {
    this.#reason = reason;
    this.#feed({ kind: 'fault' });
  }

  #next(): void {
    while (this.#current === undefined) {
      const next = this.#waiting.shift();
      if (next === undefined) return;
      this.#current = next;
      this.#feed({ kind: 'request', request: next.request });
      if (this.#current === next && this.#deadline === undefined) {
        this.#deadline = this.#o.clock.after(limits.requestTimeoutMs, () => this.#expire());
      }
    }
  }

  /** An effect took too long: the driver sees the failure, and the device has to be reset. */
  #expire(): void {
    const { request, token } = this.#current!;
    this.#endRequest();
    this.#link?.fail(token, request.name, 'ETIMEDOUT');
    this.failed(`${request.name} was not carried out in ${limits.requestTimeoutMs} ms`);
    this.#next();
  }

  #endRequest(): PendingRequest | undefined {
    const current = this.#current;
    this.#current = undefined;
    this.#deadline?.cancel();
    this.#deadline = undefined;
    return current;
  }

  /** Ends every request that has no response yet, visibly. */
  failRequests(error: ErrnoName): void {
    const current = this.#endRequest();
    if (current !== undefined) this.#link?.fail(current.token, current.request.name, error);
    for (let next = this.#waiting.shift(); next !== undefined; next = this.#waiting.shift()) {
      this.#link?.fail(next.token, next.request.name, error);
    }
  }

  #dropRequests(): void {
    this.#endRequest();
    this.#waiting.clear();
  }

  #setState(state: DeviceState): void {
    const before = this.#state;
    this.#state = state;
    if (state === before) return;
    if (state.resetting || state.status === 0) this.#o.recovery?.clear();
    else this.#o.recovery?.save(state, this.#kept);
    if (state.status === before.status) return;
    if (state.status === 0) this.#reason = null;
    this.#o.onStatus(state.status, this.reason);
  }

  #feed(input: DeviceInput): void {
    const { state, effects } = step(this.#model, this.#state, input);
    this.#setState(state);
    for (const effect of effects) this.#perform(effect);
  }

  #perform(effect: DeviceEffect): void {
    switch (effect.kind) {
      case 'respond': {
        const current = this.#endRequest();
        if (current === undefined) return;
        this.#link?.respond(current.token, this.#withResultingStatus(effect.response));
        this.#next();
        return;
      }
      case 'refuse': {
        const current = this.#endRequest();
        if (current === undefined) return;
        this.#link?.fail(current.token, current.request.name, 'EMSGSIZE');
        this.#next();
        return;
      }
      case 'event':
        this.#link?.event(effect.event);
        return;
      case 'activate':
        this.#activate();
        return;
      case 'start-queue':
        this.#startQueue(effect.index, false);
        return;
      case 'stop-queue':
        this.#stopQueue(effect.index);
        return;
      case 'halt':
        this.#suspended.clear();
        this.#engine.halt();
        return;
      case 'reset':
        this.#resetForDriver();
        return;
      case 'write-config':
        this.#writeConfig(effect.offset, effect.data);
        return;
    }
  }

  #writeConfig(offset: number, data: Uint8Array): void {
    const accepted = this.#o.backend.writeConfig(offset, data);
    if (typeof accepted === 'boolean') {
      this.#feed({ kind: 'config-written', accepted });
      return;
    }
    const asked = this.#current;
    void accepted.then((taken) => {
      // Another request may have taken its place.
      if (asked !== undefined && this.#current === asked) this.#feed({ kind: 'config-written', accepted: taken });
    });
  }

  /** Starting the queues may have failed the device since the response was made. */
  #withResultingStatus(response: TransportResponse): TransportResponse {
    return response.name === 'SET_DEVICE_STATUS' ? { ...response, body: { status: this.#state.status } } : response;
  }

  #activate(): void {
    this.#activated = true;
    const keep = (bytes: Uint8Array): void => this.#keep(bytes);
    this.#engine.activate(this.#state.driverFeatures, { kept: this.#kept, keep });
  }

  #keep(bytes: Uint8Array): void {
    assert(bytes.length <= limits.backendMemoryMaxBytes, 'the bytes of a backend fit');
    this.#kept = bytes.slice();
    if (isRunning(this.#state)) this.#o.recovery?.save(this.#state, this.#kept);
  }

  #startQueue(index: number, resume: boolean): void {
    const queue = this.#state.queues[index];
    if (this.#link === undefined || queue === undefined || !isRunning(this.#state)) return;
    const { driverFeatures: features } = this.#state;
    const log = this.#o.recovery?.log(index, ringLayout(features), queue.size);
    if (!resume) log?.reset();
    if (!this.#ending) this.#engine.start({ ...queue, index, features }, log, resume);
  }

  #stopQueue(index: number): void {
    this.#suspended.delete(index);
    this.#engine.stop(index, () => {
      this.#o.recovery?.resetLog(index);
      this.#feed({ kind: 'queue-stopped', index });
    });
  }

  #resetForDriver(): void {
    let done = false;
    this.#reset(() => {
      done = true;
    });
    if (!done) this.#feed({ kind: 'reset-deferred' });
  }

  #reset(done: () => void): void {
    const stuck = this.#o.clock.after(limits.resetTimeoutMs, () => {
      this.#reason = `the backend did not complete its requests in ${limits.resetTimeoutMs} ms after a reset`;
      this.#o.onStatus(this.#state.status, this.reason);
    });
    this.#stopQueues(() => {
      stuck.cancel();
      if (this.#activated) this.#engine.deactivate();
      this.#activated = false;
      this.#kept = new Uint8Array(0);
      this.#o.recovery?.clear();
      this.#feed({ kind: 'reset-done' });
      done();
    });
  }

  #stopQueues(done: () => void): void {
    this.#suspended.clear();
    this.#engine.stopAll(done);
  }
}
