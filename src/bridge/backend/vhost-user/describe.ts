import { VmsgError } from '../../../kit/errors.ts';
import { limits } from '../../../kit/limits.ts';
import type { DeviceDescription } from '../../../vhost-user/negotiation.ts';
import { FeatureSet, feature } from '../../../virtio/features.ts';
import type { TypedShape } from './shapes.ts';

/** What a back-end serves. */
export interface ServedDescription {
  /** All that a driver may choose from, bits of the ring included. */
  readonly features: FeatureSet;
  /** Empty where the back-end keeps none. */
  readonly config: Uint8Array;
  readonly queues: number;
  /** Feature bits that we add: the back-end does not know them. */
  readonly added: FeatureSet;
}

const required = FeatureSet.of(feature.VERSION_1);

const unusable = (why: string): VmsgError => new VmsgError('backend-unusable', `the back-end ${why}`);

/** Of a network device: the address in its configuration space (5.1.4), and that it is there. */
const netMac = { feature: 5, bytes: 6 } as const;
const noFeatures = FeatureSet.of();

/** A network device whose back-end gives no address gets one. */
function withMac(served: ServedDescription, mac: string, { configBytes }: TypedShape): ServedDescription {
  if (served.config.length > 0) return served;
  const added = FeatureSet.of(netMac.feature);
  const config = new Uint8Array(configBytes);
  config.set(mac.split(':', netMac.bytes).map((byte) => Number.parseInt(byte, 16)));
  return { ...served, features: served.features.or(added), config, added };
}

/**
 * @param mac for a network device
 * @throws VmsgError backend-unusable
 */
export function describeServed(told: DeviceDescription, shape: TypedShape, mac?: string): ServedDescription {
  const { config = new Uint8Array(0) } = told;
  if (!required.isSubsetOf(told.features)) {
    throw unusable('serves a legacy device only: it does not offer VERSION_1');
  }
  const isExplained = config.length >= shape.configBytes;
  if (!isExplained && shape.configBits === undefined) throw unusable('does not tell the configuration of its device');
  // What the configuration space would explain means nothing without it.
  const unknown = [...(shape.hiddenBits ?? []), ...(isExplained ? [] : (shape.configBits ?? []))];
  const features = told.features.minus(FeatureSet.of(...unknown));
  const queues = queuesOf(config, features, told.queues, shape);
  const served = { features, config, queues, added: noFeatures };
  return mac === undefined ? served : withMac(served, mac, shape);
}

function queuesOf(config: Uint8Array, features: FeatureSet, told: number | undefined, shape: TypedShape): number {
  const view = new DataView(config.buffer, config.byteOffset, config.length);
  const queues = shape.queuesOf?.(view, (bit) => features.has(bit)) ?? shape.queues;
  if (queues < shape.queues) throw unusable(`has ${queues} queues, its device has ${shape.queues} at least`);
  if (told !== undefined && told < queues) throw unusable(`has ${told} queues, its device speaks of ${queues}`);
  if (queues > limits.queuesPerDevice) {
    throw unusable(`has ${queues} queues, at most ${limits.queuesPerDevice} are possible: start it with fewer`);
  }
  return queues;
}

/** @returns why a driver that was shown the first cannot go on with the second */
export function unlike(shown: ServedDescription, now: ServedDescription): string | undefined {
  if (!shown.features.isSubsetOf(now.features)) {
    return `the back-end that is there now does not offer ${shown.features.minus(now.features).names().join(', ')}`;
  }
  if (now.queues < shown.queues || now.config.length !== shown.config.length) {
    return 'the back-end that is there now serves another kind of device';
  }
  return undefined;
}
