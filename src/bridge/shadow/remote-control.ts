import { ConfigSpace } from '../../guest/config-space.ts';
import { type DeviceInfo, deviceInfo } from '../../guest/device-info.ts';
import { offeredFeatures, writeFeatures } from '../../guest/feature-blocks.ts';
import type { DeviceRequests } from '../../guest/requests.ts';
import { assert } from '../../kit/assert.ts';
import type { Clock } from '../../kit/clock.ts';
import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import { FeatureSet, feature, isDeviceBit } from '../../virtio/features.ts';
import type { RingAddresses } from '../../virtio/queue.ts';
import { describeStatus, status } from '../../virtio/status.ts';
import {
  setVqueueFlags,
  type TransportRequest,
  type TransportResponse,
  vqueueEnabled,
} from '../../virtio-msg/transport-messages.ts';
import type { RemoteResult } from '../remote/peer.ts';
import type { RemoteBus } from '../remote/remote-bus.ts';
import type { ShadowControl, ShadowDescription } from './control.ts';
import { ShadowMemory } from './shadow-memory.ts';

const resetPollMs = 20;
const required = FeatureSet.of(feature.VERSION_1, feature.ACCESS_PLATFORM);
/** What the rings towards the serving side use when they may. */
const wantedOfRings = FeatureSet.of(feature.INDIRECT_DESC, feature.EVENT_IDX, feature.RING_RESET);

interface Offer {
  readonly info: DeviceInfo;
  readonly features: FeatureSet;
}

/** The control path to one device of a serving side. Every wait is bounded. */
export class RemoteControl implements ShadowControl {
  readonly #bus: RemoteBus;
  readonly #number: number;
  readonly #clock: Clock;
  readonly #requests: DeviceRequests;
  #offer: Offer | undefined;
  #memory: ShadowMemory | undefined;

  constructor(bus: RemoteBus, number: number, clock: Clock) {
    this.#bus = bus;
    this.#number = number;
    this.#clock = clock;
    this.#requests = {
      terms: { maxMessageSize: bus.peer.maxMessageSize, transportFeatures: 0 },
      request: (_device, name, body) => this.#ask({ kind: 'request', name, body } as TransportRequest) as never,
    };
  }

  get memory(): ShadowMemory {
    assert(this.#memory !== undefined, 'the device was described');
    return this.#memory;
  }

  async #ask(request: TransportRequest): Promise<TransportResponse['body']> {
    const result = await new Promise<RemoteResult<TransportResponse>>((resolve) => {
      this.#bus.request(this.#number, request, resolve);
    });
    if (typeof result !== 'string') return result.body;
    throw new VmsgError('unavailable', `${request.name} failed with ${result}`);
  }

  #error(what: string): VmsgError {
    return new VmsgError('protocol-violation', `device ${this.#number} of the serving side ${what}`);
  }

  /** Reads everything that a driver can read, and divides memory for it. The device is in reset. */
  async describe(bytes: Uint8Array<ArrayBuffer>): Promise<ShadowDescription> {
    const info = await deviceInfo(this.#requests, this.#number);
    if (info.maxVirtqueues < 1 || info.maxVirtqueues > limits.queuesPerDevice)
      throw this.#error(`has ${info.maxVirtqueues} queues, 1 to ${limits.queuesPerDevice} are possible`);
    if (info.configSize > limits.shadowConfigMaxBytes)
      throw this.#error(
        `has ${info.configSize} bytes of configuration, at most ${limits.shadowConfigMaxBytes} are possible`,
      );
    const features = await offeredFeatures(this.#requests, info);
    if (!required.isSubsetOf(features))
      throw this.#error(`does not offer ${required.minus(features).names().join(', ')}`);
    const queueSizes: number[] = [];
    for (let index = 0; index < info.maxVirtqueues; index++) queueSizes.push(await this.#queueSize(index));
    const config = await this.config(info.configSize).read(0, info.configSize);
    this.#offer = { info, features };
    this.#memory = new ShadowMemory(bytes, queueSizes);
    const { type, vendorId } = info;
    const deviceBits = features.bits().filter(isDeviceBit);
    const queueReset = features.has(feature.RING_RESET);
    return { type, vendorId, uuid: uuidBytes(info.uuid), deviceBits, config, queueSizes, queueReset };
  }

  config(bytes: number): ConfigSpace {
    return new ConfigSpace(this.#requests, this.#number, bytes);
  }

  async #queueSize(index: number): Promise<number> {
    const now = await this.#queue(index);
    if (now.maxSize === 0) throw this.#error(`has no queue ${index}, though it says so`);
    return Math.min(now.maxSize, limits.queueSizeMax);
  }

  async #queue(index: number) {
    const now = await this.#requests.request(this.#number, 'GET_VQUEUE', { index });
    if (now.index !== index) throw this.#error('answered GET_VQUEUE for another queue');
    return now;
  }

  /** Writes 0, then polls until the device says 0. From then on it touches no memory of ours, as it says. */
  async reset(): Promise<void> {
    const end = this.#clock.nowMs() + limits.resetTimeoutMs;
    let now = await this.#setStatus(0);
    while (now !== 0) {
      if (this.#clock.nowMs() > end) throw new VmsgError('timeout', 'it does not finish its reset');
      await new Promise<void>((resolve) => {
        this.#clock.after(resetPollMs, resolve);
      });
      now = (await this.#requests.request(this.#number, 'GET_DEVICE_STATUS', {})).status;
    }
  }

  async #setStatus(value: number): Promise<number> {
    return (await this.#requests.request(this.#number, 'SET_DEVICE_STATUS', { status: value })).status;
  }

  async #reach(value: number): Promise<void> {
    const now = await this.#setStatus(value);
    if ((now & value) === value && (now & status.DEVICE_NEEDS_RESET) === 0) return;
    throw this.#error(`has status ${describeStatus(now)} after ${describeStatus(value)} was written`);
  }

  async agree(has: (bit: number) => boolean): Promise<FeatureSet> {
    assert(this.#offer !== undefined, 'the device was described');
    const { info, features } = this.#offer;
    await this.#reach(status.ACKNOWLEDGE);
    await this.#reach(status.ACKNOWLEDGE | status.DRIVER);
    const deviceBits = features.bits().filter((bit) => isDeviceBit(bit) && has(bit));
    const chosen = required.or(features.and(wantedOfRings)).with(...deviceBits);
    await writeFeatures(this.#requests, info, chosen);
    await this.#reach(status.ACKNOWLEDGE | status.DRIVER | status.FEATURES_OK);
    return chosen;
  }

  async enableQueue(index: number, size: number, addresses: RingAddresses): Promise<void> {
    const { descAddr, driverAddr, deviceAddr } = addresses;
    const ring = { index, flags: setVqueueFlags.enable, size, reserved: 0, descAddr, driverAddr, deviceAddr };
    await this.#requests.request(this.#number, 'SET_VQUEUE', ring);
    const now = await this.#queue(index);
    if (now.size !== size || (now.flags & vqueueEnabled) === 0) throw this.#error(`did not take queue ${index} over`);
  }

  async resetQueue(index: number): Promise<void> {
    await this.#requests.request(this.#number, 'RESET_VQUEUE', { index });
    if ((await this.#queue(index)).flags & vqueueEnabled) throw this.#error(`did not reset queue ${index}`);
  }

  async start(): Promise<void> {
    await this.#reach(status.ACKNOWLEDGE | status.DRIVER | status.FEATURES_OK | status.DRIVER_OK);
  }

  kick(queue: number): void {
    this.#bus.sendEvent(this.#number, { kind: 'event', name: 'EVENT_AVAIL', body: { index: queue, next: 0 } });
  }
}

const uuidBytes = (text: string | undefined): Uint8Array =>
  text === undefined ? new Uint8Array(16) : new Uint8Array(Buffer.from(text.replaceAll('-', ''), 'hex'));
