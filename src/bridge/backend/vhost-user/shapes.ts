import { blkConfig } from '../../../virtio/blk.ts';
import { deviceIdOf } from '../../../virtio/device-ids.ts';
import { blkFeature } from '../../../virtio/features.ts';

/** What the vhost-user protocol leaves to those who know the device type. */
export interface DeviceShape {
  /** Bytes of configuration space that a back-end answers; 0 for none. */
  readonly configBytes: number;
  /** Feature bits that the configuration space explains, where a back-end may have none. */
  readonly configBits?: readonly number[];
  /** Feature bits for parts of the device that are not passed on: more configuration space, queues of the front-end. */
  readonly hiddenBits?: readonly number[];
  /** Ranges of the configuration space that the driver writes, with the feature that lets it. */
  readonly driverConfig?: readonly { readonly offset: number; readonly length: number; readonly feature: number }[];
  /** Bytes that a driver is shown of a back-end that can be told so. */
  readonly preferredConfig?: readonly { readonly offset: number; readonly value: number; readonly feature: number }[];
  /** A back-end may take one buffer of each direction at most, whatever the driver's are. */
  readonly oneBuffer?: boolean;
  /** Queues that the device has at least; all, where nothing speaks of more. */
  readonly queues: number;
  /** How many queues the configuration space speaks of. */
  readonly queuesOf?: (config: DataView, has: (bit: number) => boolean) => number;
  /**
   * A back-end that was started anew can go on with requests that another one had: none depends on an earlier one, and
   * to carry one out twice does no harm.
   */
  readonly stateless: boolean;
}

const range = (from: number, to: number): number[] => Array.from({ length: to - from + 1 }, (_, i) => from + i);

/** By the names of device types that `vmsg` shows (virtio 1.3, section 5). */
const shapes = {
  net: {
    configBytes: 12,
    // MTU, MAC, STATUS: 5.1.3.
    configBits: [3, 5, 16],
    // The control queue is served by front-ends, ours has none: what needs it, with more pairs of queues, goes.
    hiddenBits: [2, ...range(17, 23), ...range(50, 63)],
    // passt ends when a frame has two.
    oneBuffer: true,
    queues: 2,
    stateless: true,
  },
  blk: {
    configBytes: blkConfig.size,
    hiddenBits: [blkFeature.SECURE_ERASE, blkFeature.ZONED],
    driverConfig: [{ offset: blkConfig.at.writeback, length: 1, feature: blkFeature.CONFIG_WCE }],
    // qemu-storage-daemon shows 0, and keeps writes back all the same until it is told.
    preferredConfig: [{ offset: blkConfig.at.writeback, value: 1, feature: blkFeature.CONFIG_WCE }],
    queues: 1,
    queuesOf: (config, has) => (has(blkFeature.MQ) ? config.getUint16(blkConfig.at.numQueues, true) : 1),
    stateless: true,
  },
  rng: { configBytes: 0, queues: 1, stateless: true },
  vsock: { configBytes: 8, queues: 3, stateless: false },
  // A tag of 36 bytes, then the number of request queues, behind one for what goes first; NOTIFICATION adds one: 5.11.
  fs: {
    configBytes: 40,
    hiddenBits: [0],
    queues: 2,
    queuesOf: (config) => 1 + config.getUint32(36, true),
    stateless: false,
  },
  // A transfer that is carried out twice may read or write the next byte.
  i2c: { configBytes: 0, queues: 1, stateless: false },
} as const satisfies Record<string, DeviceShape>;

export type VhostUserDevice = keyof typeof shapes;
export const vhostUserDevices = Object.keys(shapes) as VhostUserDevice[];

/** A shape with its virtio device type. */
export type TypedShape = DeviceShape & { readonly type: number };

export const shapeOf = (device: VhostUserDevice): TypedShape => ({ ...shapes[device], type: deviceIdOf(device)! });
