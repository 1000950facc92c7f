import type { BackendDescription } from '../ports/backend.ts';
import { FeatureSet, feature } from '../virtio/features.ts';
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
  /** Shared memory regions by id: bytes and bus address. */
  readonly sharedMemory: ReadonlyMap<number, { readonly length: bigint; readonly address: bigint }>;
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

/** Features that the bridge brings for every device, required of drivers. */
const bridgeFeatures = [feature.VERSION_1, feature.ACCESS_PLATFORM];
/** What the bridge's own rings can do. */
const ringFeatures = [
  feature.INDIRECT_DESC,
  feature.EVENT_IDX,
  feature.RING_PACKED,
  feature.IN_ORDER,
  feature.NOTIFICATION_DATA,
];
/** Linux drivers take only devices with exactly 64 feature bits. */
const featureBlocksMin = 2;

/** The device that a backend describes. */
export function deviceModel(description: BackendDescription, maxMessageSize: number): DeviceModel {
  const {
    deviceType,
    vendorId,
    uuid,
    featureBits,
    queueSizes,
    queueReset = true,
    ringBits = ringFeatures,
  } = description;
  const reset = queueReset ? [feature.RING_RESET] : [];
  const offered = FeatureSet.of(...bridgeFeatures, ...ringBits, ...reset, ...featureBits);
  return {
    deviceType,
    vendorId,
    uuid,
    offered,
    featureBlockCount: Math.max(featureBlocksMin, offered.toBlocks().length),
    queueMaxSizes: queueSizes,
    maxMessageSize,
    sharedMemory: new Map(),
  };
}
