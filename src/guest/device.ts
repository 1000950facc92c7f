import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import { deviceName } from '../virtio/device-ids.ts';
import { FeatureSet, feature } from '../virtio/features.ts';
import { describeStatus, status } from '../virtio/status.ts';
import type { GuestBuffer } from './buffer.ts';
import type { GuestBus } from './bus.ts';
import type { MemoryUse } from './bus-memories.ts';
import type { Attachment, DeviceHooks } from './bus-types.ts';
import { ConfigSpace } from './config-space.ts';
import { type DeviceInfo, deviceInfo } from './device-info.ts';
import { Emitter } from './emitter.ts';
import { offeredFeatures, writeFeatures } from './feature-blocks.ts';
import type { GuestMemory } from './memory.ts';
import { hasProgram } from './notifier.ts';
import type { QueueOptions, RingOptions, VirtQueue } from './queue.ts';
import { openQueue } from './queue-setup.ts';

export interface DeviceEvents {
  /** The configuration space has changed; read it again. */
  config: { readonly generation: number };
  /** The device needs a reset, broke its queue, was removed, or went with the bus. Nothing works any more. */
  failed: VmsgError;
}

export interface DeviceOptions extends RingOptions {
  /** virtio device type that it must have. */
  readonly type?: number;
  /** Bits of the device type that the driver understands; those of the bus and of the queues are added. */
  readonly features?: FeatureSet;
}

const pageBytes = 4096;
/** Bits that every device on this bus offers and every driver accepts. */
const required = FeatureSet.of(feature.VERSION_1, feature.ACCESS_PLATFORM);
/** What the queues of this library can do. */
const queueFeatures = FeatureSet.of(feature.INDIRECT_DESC, feature.EVENT_IDX, feature.NOTIFICATION_DATA);

/** The bits that `options` ask for. */
function wantedFeatures({ features = FeatureSet.empty, packed = false, inOrder = false }: DeviceOptions): FeatureSet {
  const rings = [...(packed ? [feature.RING_PACKED] : []), ...(inOrder ? [feature.IN_ORDER] : [])];
  return features.or(queueFeatures).with(...rings);
}

/**
 * A device that this guest drives. The life of it follows virtio 1.3, 3.1.1, carried by virtio-msg:
 * `open` resets it, agrees features and stops before the queues; `addQueue`; `start` sets DRIVER_OK; `close` resets.
 */
export class VirtioDevice extends Emitter<DeviceEvents> {
  readonly info: DeviceInfo;
  readonly config: ConfigSpace;
  readonly bus: GuestBus;
  /** Memory that this device can be pointed to; the bus's own, unless another domain serves the device itself. */
  readonly memory: GuestMemory;
  readonly #memoryUse: MemoryUse;
  readonly #attachment: Attachment;
  readonly #queues = new Map<number, VirtQueue>();
  readonly #buffers = new Set<GuestBuffer>();
  #features = FeatureSet.empty;
  /** As the device last confirmed it. */
  #status = 0;
  #failure: VmsgError | undefined;
  #hasProgram: Promise<boolean> | undefined;

  private constructor(bus: GuestBus, info: DeviceInfo, use: MemoryUse) {
    super();
    this.bus = bus;
    this.info = info;
    this.memory = use.memory;
    this.#memoryUse = use;
    this.config = new ConfigSpace(bus, info.number, info.configSize);
    const hooks: DeviceHooks = {
      onConfig: (event) => this.#onConfig(event),
      onUsed: (queue) => this.#queues.get(queue)?.onUsed(),
      rewire: async () => {
        for (const queue of this.#queues.values()) await queue.rewire();
      },
      resumed: () => this.#resumed(),
      lost: (error) => this.#lose(error),
    };
    this.#attachment = bus.attach(info.number, hooks);
  }

  /**
   * Takes a device: reads its description, resets it and agrees on features.
   * @throws VmsgError 'not-found', 'in-use', 'timeout', 'bus-lost'; 'invalid-request' when it is of another type;
   *   'device-failed' when it refuses the features; 'protocol-violation' when it does not offer VERSION_1 and
   *   ACCESS_PLATFORM
   */
  static async open(bus: GuestBus, number: number, options: DeviceOptions = {}): Promise<VirtioDevice> {
    const info = await deviceInfo(bus, number);
    if (options.type !== undefined && info.type !== options.type) {
      throw new VmsgError('invalid-request', `device ${number} is ${info.name}, not ${deviceName(options.type)}`);
    }
    const device = await VirtioDevice.#take(bus, info);
    try {
      await device.#reset();
      await device.#addStatus(status.ACKNOWLEDGE);
      await device.#addStatus(status.DRIVER);
      await device.#negotiate(wantedFeatures(options));
      return device;
    } catch (error) {
      await device.close();
      throw error;
    }
  }

  static async #take(bus: GuestBus, info: DeviceInfo): Promise<VirtioDevice> {
    const use = await bus.memoryFor(info.number);
    try {
      return new VirtioDevice(bus, info, use);
    } catch (error) {
      use.end();
      throw error;
    }
  }

  /** The bits that both sides agreed on. */
  get features(): FeatureSet {
    return this.#features;
  }

  /** Why nothing works any more. */
  get failure(): VmsgError | undefined {
    return this.#failure;
  }

  /** Reads the device status. */
  async readStatus(): Promise<number> {
    const response = await this.bus.request(this.info.number, 'GET_DEVICE_STATUS', {});
    this.#sawStatus(response.status);
    return response.status;
  }

  #sawStatus(value: number): void {
    this.#status = value;
    if (value & status.DEVICE_NEEDS_RESET) {
      this.#end(new VmsgError('device-failed', `device ${this.info.number} needs a reset`));
    }
  }

  async #writeStatus(value: number): Promise<number> {
    const response = await this.bus.request(this.info.number, 'SET_DEVICE_STATUS', { status: value });
    return response.status;
  }

  async #addStatus(bit: number): Promise<void> {
    this.#mustWork();
    const result = await this.#writeStatus(this.#status | bit);
    const before = this.#status;
    this.#sawStatus(result);
    this.#mustWork();
    if ((result & (before | bit)) !== (before | bit)) {
      const what = `device ${this.info.number} has status ${describeStatus(result)}`;
      throw new VmsgError('device-failed', `${what} after ${describeStatus(before | bit)} was written`);
    }
  }

  #mustWork(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** Writes 0, then polls until the device says 0: a reset may complete later (D5, SET_DEVICE_STATUS). */
  async #reset(): Promise<void> {
    const { clock } = this.bus;
    const deadlineMs = clock.nowMs() + limits.resetTimeoutMs;
    let value = await this.#writeStatus(0);
    for (let delayMs = 1; value !== 0; delayMs = Math.min(delayMs * 2, limits.guestResetPollMaxMs)) {
      if (clock.nowMs() + delayMs > deadlineMs) {
        throw new VmsgError('timeout', `device ${this.info.number} does not finish its reset`);
      }
      await new Promise<void>((resolve) => clock.after(delayMs, resolve));
      value = (await this.bus.request(this.info.number, 'GET_DEVICE_STATUS', {})).status;
    }
    this.#status = 0;
  }

  async #negotiate(wanted: FeatureSet): Promise<void> {
    const offered = await offeredFeatures(this.bus, this.info);
    if (!required.isSubsetOf(offered)) {
      const missing = required.minus(offered).names().join(', ');
      throw new VmsgError('protocol-violation', `device ${this.info.number} does not offer ${missing}`);
    }
    const chosen = offered.and(required.or(wanted));
    await writeFeatures(this.bus, this.info, chosen);
    try {
      await this.#addStatus(status.FEATURES_OK);
    } catch (error) {
      if (this.#failure !== undefined || !(error instanceof VmsgError) || error.code !== 'device-failed') throw error;
      const names = chosen.names(this.info.type).join(', ');
      throw new VmsgError('device-failed', `device ${this.info.number} refuses the features ${names}`);
    }
    if (((await this.readStatus()) & status.FEATURES_OK) === 0) {
      throw new VmsgError('device-failed', `device ${this.info.number} took FEATURES_OK back`);
    }
    this.#features = chosen;
  }

  /**
   * Sets a queue up, between `open` and `start`.
   * @throws VmsgError 'not-found' when the device has no such queue, 'limit-reached' when memory is short
   */
  async addQueue(index: number, options: QueueOptions = {}): Promise<VirtQueue> {
    this.#mustWork();
    if (this.#queues.has(index)) throw new VmsgError('in-use', `queue ${index} is set up already`);
    const { bus, memory } = this;
    const { number: device } = this.info;
    const askOnce = () => (this.#hasProgram ??= hasProgram(bus, device));
    const parts = { device, index, features: this.#features, bus, memory, options, hasProgram: askOnce };
    const queue = await openQueue(
      parts,
      (error) => this.#end(error),
      (made) => {
        this.#queues.set(index, made);
        if (this.#failure !== undefined) made.end(this.#failure);
      },
    );
    this.#mustWork();
    return queue;
  }

  /** Memory for requests of this device. It goes back with `release`, or when the device has let go of it. */
  alloc(bytes: number, align?: number): GuestBuffer {
    this.#mustWork();
    const buffer = this.memory.alloc(bytes, align);
    this.#buffers.add(buffer);
    return buffer;
  }

  /**
   * Several buffers of one size, aligned to pages: of `bytes` or, where there is no room for them or grants are not in a
   * row, half as much and so on, down to a page.
   */
  allocEqual(count: number, bytes: number): GuestBuffer[] {
    const buffers: GuestBuffer[] = [];
    try {
      while (buffers.length < count) buffers.push(this.alloc(bytes, pageBytes));
      return buffers;
    } catch (error) {
      for (const buffer of buffers) this.release(buffer);
      const isShort = error instanceof VmsgError && error.code === 'limit-reached';
      if (!isShort || bytes % (2 * pageBytes) !== 0) throw error;
      return this.allocEqual(count, bytes / 2);
    }
  }

  /** Gives memory of `alloc` back, unless a failed device may still write to it: then `close` does. */
  release(buffer: GuestBuffer): void {
    if (this.#failure !== undefined || !this.#buffers.delete(buffer)) return;
    buffer.free();
  }

  /** Sets DRIVER_OK: from now on the device works on the queues. */
  async start(): Promise<void> {
    await this.#addStatus(status.DRIVER_OK);
  }

  #onConfig(event: { readonly status: number; readonly generation: number }): void {
    if (event.status & status.DEVICE_NEEDS_RESET) this.#sawStatus(event.status);
    else this.emit('config', { generation: event.generation });
  }

  /** After a reconnection that resumed: the device may still not have been kept. */
  async #resumed(): Promise<void> {
    try {
      const before = this.#status;
      const now = (await this.bus.request(this.info.number, 'GET_DEVICE_STATUS', {})).status;
      if (now === 0 && before !== 0 && this.#status !== 0) {
        this.#lose(new VmsgError('bus-lost', `the service did not keep device ${this.info.number}`));
        return;
      }
      if (now & status.DEVICE_NEEDS_RESET) this.#sawStatus(now);
    } catch (error) {
      this.#end(error instanceof VmsgError ? error : new VmsgError('bus-lost', String(error)));
      return;
    }
    if ((this.#status & status.DRIVER_OK) === 0) return;
    for (const queue of this.#queues.values()) queue.resumed();
  }

  #stop(error: VmsgError): boolean {
    if (this.#failure !== undefined) return false;
    this.#failure = error;
    for (const queue of this.#queues.values()) queue.end(error);
    return true;
  }

  /** Nothing works any more; what waits ends with `error`. The device may still write to our memory. */
  #end(error: VmsgError): void {
    if (this.#stop(error)) this.emit('failed', error);
  }

  /** The device has gone, and has let go of our memory. */
  #lose(error: VmsgError): void {
    this.#end(error);
    this.#dispose(true);
  }

  #dispose(quiet: boolean): void {
    this.#attachment.end();
    for (const queue of this.#queues.values()) queue.close(quiet);
    if (quiet) for (const buffer of this.#buffers) buffer.free();
    this.#memoryUse.end();
  }

  /**
   * Resets the device and gives its memory back; what waits ends with 'bus-lost'. Memory that the device might still
   * write, because it does not finish its reset, is not used again. Never rejects.
   */
  async close(): Promise<void> {
    this.#stop(new VmsgError('bus-lost', `device ${this.info.number} was closed`));
    // Once it is not ours any more, somebody else may have opened it again.
    const quiet =
      !this.#attachment.active ||
      (await this.#reset().then(
        () => true,
        () => false,
      ));
    this.#dispose(quiet);
  }
}
