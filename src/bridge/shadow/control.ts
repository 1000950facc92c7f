import type { FeatureSet } from '../../virtio/features.ts';
import type { RingAddresses } from '../../virtio/queue.ts';
import type { ShadowMemory } from './shadow-memory.ts';

/** What the device behind the shadow path says of itself. */
/** A range of the configuration space that the driver writes. */
interface DriverConfig {
  readonly offset: number;
  readonly length: number;
  /** What is shown first holds only once it is written, and the feature was agreed on. */
  readonly feature?: number;
}

export interface ShadowDescription {
  /** virtio device type, e.g. 2 for a block device. */
  readonly type: number;
  readonly vendorId: number;
  /** 16 bytes; all zero when there is none. */
  readonly uuid: Uint8Array;
  readonly deviceBits: readonly number[];
  readonly config: Uint8Array;
  /** Ranges of it that the driver writes, see `BackendDescription`. */
  readonly driverConfig?: readonly DriverConfig[];
  readonly queueSizes: readonly number[];
  /** It gets one buffer of each direction, whatever our driver's are. */
  readonly oneBuffer?: boolean;
  /** Single queues can be reset. */
  readonly queueReset: boolean;
}

/** The configuration space of the other side. Failures are VmsgErrors. */
export interface ShadowConfig {
  read(offset: number, length: number): Promise<Uint8Array>;
  write(offset: number, data: Uint8Array): Promise<void>;
}

/**
 * The driver's side of the control path to a device behind the shadow path. Calls come one after the other. Every wait
 * is bounded, or ends when the device is given up; failures are VmsgErrors.
 */
export interface ShadowControl {
  /** Memory that the device has now; another one may follow a reset. */
  readonly memory: ShadowMemory;
  /** From its end on the device touches no memory of ours. */
  reset(): Promise<void>;
  /** After a reset: agrees on features. @param has what our driver has agreed on. @returns all that are in use */
  agree(has: (bit: number) => boolean): Promise<FeatureSet>;
  enableQueue(index: number, size: number, addresses: RingAddresses): Promise<void>;
  /** From its end on the device does not touch this queue. */
  resetQueue(index: number): Promise<void>;
  /** After `agree` and every `enableQueue`. */
  start(): Promise<void>;
  kick(queue: number): void;
  /** @param bytes of the whole configuration space */
  config(bytes: number): ShadowConfig;
}
