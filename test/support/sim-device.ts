import { FeatureSet, feature } from '../../src/virtio/features.ts';
import { status } from '../../src/virtio/status.ts';
import type { TransportRequest } from '../../src/virtio-msg/transport-messages.ts';
import type { SimGuest } from './sim-guest.ts';

/** A step of the device's life did not work out. */
export class Aborted extends Error {}

export const running = status.ACKNOWLEDGE | status.DRIVER | status.FEATURES_OK | status.DRIVER_OK;
const ringFeatures = [feature.INDIRECT_DESC, feature.EVENT_IDX, feature.RING_PACKED, feature.IN_ORDER];
/** Nothing that has to end takes longer. */
export const stuckAfterMs = 60_000;

/** What a driver asks its device by messages. */
export abstract class SimDevice {
  readonly deviceNumber: number;
  readonly identity: string | undefined;
  readonly guest: SimGuest;
  protected features: FeatureSet = FeatureSet.empty;
  /** Counts what excuses a set-up that fails. */
  protected disturbances = 0;
  protected lastDisturbanceMs = 0;

  constructor(guest: SimGuest, deviceNumber: number) {
    this.guest = guest;
    this.deviceNumber = deviceNumber;
    this.identity = guest.identify(deviceNumber);
  }

  protected abstract readonly wantedFeatures: readonly number[];
  protected abstract readonly deviceType: number;
  abstract get isGone(): boolean;

  get name(): string {
    return `${this.guest.process.name} device ${this.deviceNumber}`;
  }

  protected fault(what: string): void {
    if (!this.guest.noisy) this.guest.loop.fail(`${this.name}: ${what}`);
  }

  protected sleep(ms: number): Promise<void> {
    return this.guest.loop.sleep(this.guest.process, ms);
  }

  protected disturbed(): void {
    this.disturbances += 1;
    this.lastDisturbanceMs = this.guest.loop.nowMs;
  }

  /** @throws Aborted */
  protected require(condition: boolean, what: string): void {
    if (!condition) throw new Aborted(what);
  }

  /** @throws Aborted when there is no answer */
  protected async ask(message: Omit<TransportRequest, 'kind'>): Promise<Record<string, unknown>> {
    // Another device may have the number by now.
    if (this.isGone) throw new Aborted('the device is gone');
    const outcome = await this.guest.request(this.deviceNumber, { kind: 'request', ...message } as TransportRequest);
    if (this.isGone) throw new Aborted('the device is gone');
    if (outcome.kind === 'response') return outcome.body;
    // A lost connection and a device that is gone excuse; so does a service that gave up a slow reset of a queue.
    this.disturbed();
    throw new Aborted(`${message.name}: ${outcome.kind === 'failure' ? `errno ${outcome.errno}` : 'lost'}`);
  }

  protected async setStatus(value: number): Promise<number> {
    return (await this.ask({ name: 'SET_DEVICE_STATUS', body: { status: value } })).status as number;
  }

  protected async getStatus(): Promise<number> {
    return (await this.ask({ name: 'GET_DEVICE_STATUS', body: {} })).status as number;
  }

  /** Resets and waits for the end of it. @throws Aborted */
  protected async resetDevice(): Promise<void> {
    const begunMs = this.guest.loop.nowMs;
    let value = await this.setStatus(0);
    for (let wait = 1; value !== 0; wait = Math.min(wait * 2, 500)) {
      if (this.guest.loop.nowMs - begunMs > stuckAfterMs) this.fault('the reset does not end');
      await this.sleep(wait);
      value = await this.getStatus();
    }
  }

  /** From reset to FEATURES_OK, with some of the features that are offered (virtio 1.3, 3.1.1). @throws Aborted */
  protected async negotiate(): Promise<void> {
    const { random } = this.guest.loop;
    await this.setStatus(status.ACKNOWLEDGE);
    await this.setStatus(status.ACKNOWLEDGE | status.DRIVER);
    const info = await this.ask({ name: 'GET_DEVICE_INFO', body: {} });
    this.require(info.deviceId === this.deviceType, `device type ${info.deviceId}`);
    const body = { blockIndex: 0, blockCount: info.featureBlockCount as number };
    const offered = FeatureSet.fromBlocks((await this.ask({ name: 'GET_DEVICE_FEATURES', body })).blocks as number[]);
    const optional = [...ringFeatures, feature.RING_RESET, ...this.wantedFeatures];
    const chosen = optional.filter((bit) => offered.has(bit) && random.chance(0.7));
    this.features = FeatureSet.of(feature.VERSION_1, feature.ACCESS_PLATFORM, ...chosen);
    const blocks = this.features.toBlocks(body.blockCount);
    await this.ask({ name: 'SET_DRIVER_FEATURES', body: { ...body, blocks } });
    const negotiated = running & ~status.DRIVER_OK;
    this.require(((await this.setStatus(negotiated)) & status.FEATURES_OK) !== 0, 'FEATURES_OK was refused');
  }
}
