import type { Clock, Timer } from '../../kit/clock.ts';
import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import type { Scheduler } from '../../kit/scheduler.ts';
import type { Backend, BackendDescription, BackendHost, BackendRequest } from '../../ports/backend.ts';
import { FeatureSet, feature } from '../../virtio/features.ts';
import type { DriverQueue } from '../../virtio/queue.ts';
import { status } from '../../virtio/status.ts';
import type { TransportEvent } from '../../virtio-msg/transport-messages.ts';
import type { ShadowControl, ShadowDescription } from './control.ts';
import { bounceBytes, ShadowQueue } from './shadow-queue.ts';
import { ShadowRing } from './shadow-ring.ts';

export interface ShadowParts {
  /** The device behind the path, for people. */
  readonly name: string;
  /** Why its data is copied. */
  readonly shadowReason: string;
  readonly resumes?: boolean;
  readonly remote: ShadowDescription;
  readonly control: ShadowControl;
  readonly host: BackendHost;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  /** Largest configuration write that the device takes, bytes. */
  readonly configWriteMaxBytes: number;
  /** Gives the device up. */
  readonly close: () => Promise<void>;
}

/** One time between DRIVER_OK and reset of our driver. */
interface Activation {
  readonly has: (bit: number) => boolean;
  /** Agreed with the serving side, once it is set up. */
  features: FeatureSet;
  failed: boolean;
}

/**
 * A device that a guest serves, with the data copied through memory of ours: our driver sees a device of the bridge,
 * the serving side sees a driver. What our driver wants and what the serving side is set up for are brought together
 * in the background; requests wait for that.
 */
export class ShadowBackend implements Backend {
  readonly description: BackendDescription;
  readonly shadowReason: string;
  readonly resumes: boolean;
  readonly #o: ShadowParts;
  readonly #queues: readonly ShadowQueue[];
  readonly #config: Uint8Array;
  /** What our driver wants, and what the serving side was last set up for; undefined: in reset. */
  #wanted: Activation | undefined;
  #settled: Activation | undefined;
  /** Queues that our driver has reset while the serving side has requests of them. */
  readonly #stopping = new Set<ShadowQueue>();
  /** The device forgot what it was set up for, and what it was asked. */
  #forgotten = false;
  #settling = false;
  #pumpPlanned = false;
  #drain: Timer | undefined;
  #configTimer: Timer | undefined;
  /** What our driver has written to the configuration since the device was set up. */
  #written: { readonly offset: number; readonly data: Uint8Array }[] = [];
  #closed = false;

  constructor(parts: ShadowParts) {
    this.#o = parts;
    this.shadowReason = parts.shadowReason;
    this.resumes = parts.resumes ?? true;
    const { type, vendorId, uuid, deviceBits, config, driverConfig, queueSizes, queueReset } = parts.remote;
    this.#config = config.slice();
    this.#queues = queueSizes.map((_, index) => new ShadowQueue(index, () => this.#planPump()));
    this.description = {
      deviceType: type,
      vendorId,
      uuid,
      featureBits: deviceBits,
      queueSizes,
      config: config.slice(),
      ...(driverConfig === undefined ? {} : { driverConfig }),
      maxInFlight: limits.shadowInFlightRequests,
      queueReset,
    };
  }

  activate(has: (featureBit: number) => boolean): void {
    this.#wanted = { has, features: FeatureSet.empty, failed: false };
    this.#settle();
  }

  deactivate(): void {
    this.#stopDrain();
    this.#wanted = undefined;
    this.#written = [];
    for (const queue of this.#queues) queue.hold();
    this.#settle();
  }

  handle(request: BackendRequest): void {
    const queue = this.#queues[request.queue]!;
    queue.add(request);
    const { largest } = this.#o.control.memory.space;
    const bytes = bounceBytes(request);
    if (bytes > largest) {
      this.#fail(
        `a request of ${bytes} bytes does not fit into the ${largest} bytes that the shadow path can copy at once`,
      );
    }
  }

  cancel(index: number, finish: boolean): void {
    const queue = this.#queues[index]!;
    if (finish) {
      queue.releaseWaiting();
      if (queue.requests > 0) this.#drain ??= this.#o.clock.after(limits.shadowDrainMs, () => this.#endDrain());
      return;
    }
    // Our driver's memory is not the serving side's: it need not wait for that side.
    queue.release();
    if (queue.running === 0) return;
    queue.hold();
    // Else only the device as a whole is reset.
    if (this.description.queueReset === true) this.#stopping.add(queue);
    this.#settle();
  }

  /** The service ends: the serving side gives back what it has not completed. */
  #endDrain(): void {
    this.#stopDrain();
    this.#wanted = undefined;
    for (const queue of this.#queues) queue.releaseWaiting();
    this.#settle();
  }

  #stopDrain(): void {
    this.#drain?.cancel();
    this.#drain = undefined;
  }

  /** At the end of the turn: a driver's reset stops every queue first, and one reset of the device does for all. */
  #settle(): void {
    if (this.#settling || this.#closed) return;
    this.#settling = true;
    this.#o.scheduler.soon(() => void this.#bringTogether());
  }

  async #bringTogether(): Promise<void> {
    while (!this.#closed && (this.#isNew || this.#stopping.size > 0)) {
      const wanted = this.#wanted;
      try {
        if (this.#isNew) await this.#setUp(wanted);
        else await this.#resetQueues(wanted);
      } catch (error) {
        if (!(error instanceof VmsgError)) throw error;
        if (!this.#forgotten) this.#couldNot(wanted, error);
      }
      this.#settled = wanted;
    }
    this.#settling = false;
  }

  get #isNew(): boolean {
    return this.#wanted !== this.#settled || this.#forgotten;
  }

  /** The reset comes first: until then the serving side may use what it was given. */
  /** What the driver has written; and what it was shown, where that holds only once it is written. */
  #configToWrite({ has }: Activation): { readonly offset: number; readonly data: Uint8Array }[] {
    const { driverConfig = [] } = this.#o.remote;
    const shown = driverConfig.filter(({ feature, offset }) => {
      const isWritten = this.#written.some((each) => each.offset <= offset && offset < each.offset + each.data.length);
      return feature !== undefined && has(feature) && !isWritten;
    });
    const ofShown = shown.map(({ offset, length }) => ({ offset, data: this.#config.slice(offset, offset + length) }));
    return [...ofShown, ...this.#written];
  }

  async #setUp(wanted: Activation | undefined): Promise<void> {
    const { control } = this.#o;
    await control.reset();
    if (this.#closed) return;
    const again = this.#forgotten && wanted === this.#settled;
    this.#forgotten = false;
    this.#stopping.clear();
    for (const queue of this.#queues) queue.quiet(again);
    if (wanted === undefined || wanted !== this.#wanted) return;
    wanted.features = await control.agree(wanted.has);
    if (this.#closed) return;
    const rings = this.#queues.map(({ index }) => control.memory.openRing(index, wanted.features));
    for (const [index, { setup }] of rings.entries()) await control.enableQueue(index, setup.size, setup);
    await control.start();
    if (this.#closed || wanted !== this.#wanted) return;
    const config = control.config(this.#config.length);
    for (const { offset, data } of this.#configToWrite(wanted)) await config.write(offset, data);
    if (again) this.onConfigChanged();
    if (this.#closed || wanted !== this.#wanted) return;
    for (const [index, ring] of rings.entries()) this.#open(wanted, this.#queues[index]!, ring);
  }

  #open(wanted: Activation, queue: ShadowQueue, rings: DriverQueue): void {
    const { control, scheduler } = this.#o;
    const indirect = wanted.features.has(feature.INDIRECT_DESC);
    const owner = {
      kick: () => control.kick(queue.index),
      faulted: (detail: string) => {
        if (wanted === this.#wanted) this.#fail(`it broke queue ${queue.index}: ${detail}`);
      },
    };
    const { oneBuffer = false } = this.#o.remote;
    queue.open({ ring: new ShadowRing(rings, owner, scheduler), space: control.memory.space, indirect, oneBuffer });
  }

  async #resetQueues(wanted: Activation | undefined): Promise<void> {
    const { control } = this.#o;
    for (const queue of [...this.#stopping]) {
      this.#stopping.delete(queue);
      // A device that failed is reset as a whole.
      if (wanted === undefined || wanted.failed) continue;
      await control.resetQueue(queue.index);
      if (this.#closed || wanted !== this.#wanted) return;
      queue.quiet();
      const rings = control.memory.openRing(queue.index, wanted.features);
      await control.enableQueue(queue.index, rings.setup.size, rings.setup);
      if (this.#closed || wanted !== this.#wanted) return;
      this.#open(wanted, queue, rings);
    }
  }

  #couldNot(wanted: Activation | undefined, error: VmsgError): void {
    if (this.#closed) return;
    // Without an activation the service ends: nothing more comes of these requests.
    if (wanted === undefined) {
      if (this.#wanted === undefined) for (const queue of this.#queues) queue.release();
    } else if (wanted === this.#wanted) this.#fail(error.message);
  }

  /** The device needs a reset by our driver; then the serving side is set up anew. */
  #fail(why: string): void {
    const wanted = this.#wanted;
    if (wanted === undefined || wanted.failed || this.#closed) return;
    wanted.failed = true;
    this.#o.host.failed(`${this.#o.name}: ${why}`);
  }

  /** Memory has become free: the queues get their turn. */
  #planPump(): void {
    if (this.#pumpPlanned) return;
    this.#pumpPlanned = true;
    this.#o.scheduler.soon(() => {
      this.#pumpPlanned = false;
      if (this.#closed) return;
      for (const queue of this.#queues) queue.pump();
    });
  }

  onEvent(event: TransportEvent): void {
    if (event.name === 'EVENT_USED') this.onUsed(event.body.index);
    if (event.name !== 'EVENT_CONFIG') return;
    if (event.body.status & status.DEVICE_NEEDS_RESET && this.#wanted === this.#settled) this.#fail('it needs a reset');
    this.onConfigChanged();
  }

  /** The device that had gone is there again. One that is in use is looked at when it is set up. */
  onBack(): void {
    if (this.#wanted === undefined) this.onConfigChanged();
  }

  /** The device has completed requests of a queue. */
  onUsed(queue: number): void {
    this.#queues[queue]?.onUsed();
  }

  /** The device cannot go on before a reset. */
  onBroken(why: string): void {
    // Else it speaks of an earlier time.
    if (this.#wanted === this.#settled && !this.#forgotten) this.#fail(why);
  }

  /**
   * The device has gone and comes back, and knows nothing then: it is set up anew, which waits for it, and gets again
   * what it had not completed.
   */
  onForgotten(): void {
    if (this.#closed || this.#wanted === undefined) return;
    this.#forgotten = true;
    if (this.#drain !== undefined) this.#endDrain();
    for (const queue of this.#queues) queue.hold();
    this.#settle();
  }

  /** However often the device says that something has changed. */
  onConfigChanged(): void {
    if (this.#config.length === 0 || this.#closed) return;
    this.#configTimer ??= this.#o.clock.after(limits.shadowConfigReadMs, () => void this.#readConfig());
  }

  async #readConfig(): Promise<void> {
    const { control, host } = this.#o;
    const length = this.#config.length;
    this.#configTimer = undefined;
    // A space that changes all the time is read again after its next event.
    const now = await control
      .config(length)
      .read(0, length)
      .catch(() => undefined);
    if (now === undefined || this.#closed) return;
    const first = this.#config.findIndex((byte, i) => byte !== now[i]);
    if (first < 0) return;
    const last = this.#config.findLastIndex((byte, i) => byte !== now[i]);
    this.#config.set(now);
    host.configChanged(first, now.slice(first, last + 1));
  }

  /** All of it in one message, or not at all. */
  async writeConfig(offset: number, data: Uint8Array): Promise<boolean> {
    if (data.length > this.#o.configWriteMaxBytes) return false;
    try {
      await this.#o.control.config(this.#config.length).write(offset, data);
      this.#config.set(data, offset);
      this.#keepWritten(offset, data);
      return true;
    } catch (error) {
      if (error instanceof VmsgError) return false;
      throw error;
    }
  }

  /** The last write of each range counts. */
  #keepWritten(offset: number, data: Uint8Array): void {
    const others = this.#written.filter((each) => each.offset !== offset || each.data.length !== data.length);
    this.#written = [...others, { offset, data: data.slice() }];
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#stopDrain();
    this.#configTimer?.cancel();
    for (const queue of this.#queues) queue.close();
    await this.#o.close();
  }
}
