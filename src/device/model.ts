import type { FeatureSet } from '../virtio/features.ts';
import type { TransportRequest } from '../virtio-msg/transport-messages.ts';

/** Static side of a device, from its backend and the bus. */
export interface DeviceModel {
  readonly deviceType: number;
  readonly vendorId: number;
  readonly uuid: Uint8Array;
  readonly offered: FeatureSet;
  /** 32-bit blocks that the device reports; they cover `offered`. */
  readonly featureBlockCount: number;
  readonly queueMaxSizes: readonly number[];
  readonly maxMessageSize: number;
}

export interface QueueState {
  readonly size: number;
  readonly descAddr: bigint;
  readonly driverAddr: bigint;
  readonly deviceAddr: bigint;
  readonly enabled: boolean;
}

/** Everything about a device that a driver can see or change; a value, never modified in place. */
export interface DeviceState {
  readonly status: number;
  readonly driverFeatures: FeatureSet;
  readonly queues: readonly QueueState[];
  readonly generation: number;
  readonly config: Uint8Array;
  readonly resetting: boolean;
  /** The request whose response waits for an effect. */
  readonly waiting: TransportRequest | null;
}
