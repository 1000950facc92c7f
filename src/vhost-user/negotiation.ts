import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { Closable } from '../kit/scope.ts';
import { FeatureSet } from '../virtio/features.ts';
import type { MessageChannel } from './channel.ts';
import {
  deviceFeatures,
  PROTOCOL_FEATURES_BIT,
  protocolFeature,
  protocolFeatureNames,
  usedProtocolFeatures,
} from './features.ts';
import type { FrontEnd } from './front-end.ts';

export interface WantedDevice {
  /** Bytes of configuration space to read; 0 for none. Back-ends answer only what their device has. */
  readonly configBytes: number;
  /** Queues that the device must have at least. */
  readonly queues: number;
  /** Virtio device id, for the names of features in the log. */
  readonly deviceId?: number;
  /** Protocol features to use; `usedProtocolFeatures` by default. */
  readonly protocolFeatures?: FeatureSet;
  /** Protocol features without which there is no use in going on. */
  readonly required?: FeatureSet;
  /** Makes the channel for requests of the back-end; without it the back-end has none. @throws VmsgError */
  readonly openBackEndChannel?: () => {
    readonly ours: MessageChannel;
    readonly theirs: Closable & { readonly number: number };
  };
}

/** What a back-end is, and what was agreed with it. */
export interface DeviceDescription {
  /** Features for the driver to choose from. */
  readonly features: FeatureSet;
  /** Whether protocol features are spoken, which the choice of features then says again. */
  readonly speaksProtocolFeatures: boolean;
  readonly protocolFeatures: FeatureSet;
  /** Queues that there are; undefined when the back-end cannot tell (no MQ). */
  readonly queues: number | undefined;
  /** A private copy; undefined when none was wanted, or the back-end keeps none, or less. */
  readonly config: Uint8Array | undefined;
  /** Regions that there may be at a time. */
  readonly memSlots: number;
  /** What was said, for a person, in order. */
  readonly log: readonly string[];
}

const listed = (names: readonly string[]): string => (names.length === 0 ? 'none' : names.join(' '));

async function agreeOnProtocol(frontEnd: FrontEnd, wanted: WantedDevice, log: string[]): Promise<FeatureSet> {
  const offered = await frontEnd.getProtocolFeatures();
  let agreed = offered.and(wanted.protocolFeatures ?? usedProtocolFeatures);
  if (wanted.openBackEndChannel === undefined) agreed = agreed.minus(FeatureSet.of(protocolFeature.BACKEND_REQ));
  log.push(`protocol features offered: ${listed(protocolFeatureNames(offered))}`);
  await frontEnd.setProtocolFeatures(agreed);
  log.push(`protocol features agreed: ${listed(protocolFeatureNames(agreed))}`);
  return agreed;
}

function checkRequired(agreed: FeatureSet, required: FeatureSet = FeatureSet.empty): void {
  const missing = required.minus(agreed);
  if (missing.bits().length === 0) return;
  throw new VmsgError('backend-unusable', `the back-end does not offer ${listed(protocolFeatureNames(missing))}`);
}

async function countQueues(frontEnd: FrontEnd, wanted: WantedDevice, log: string[]): Promise<number | undefined> {
  if (!frontEnd.protocolFeatures.has(protocolFeature.MQ)) return undefined;
  const told = await frontEnd.getQueueCount();
  log.push(`queues: ${told}`);
  if (told < BigInt(wanted.queues)) {
    throw new VmsgError('backend-unusable', `the back-end has ${told} queues, ${wanted.queues} are needed`);
  }
  return told < BigInt(limits.vhostUserQueuesMax) ? Number(told) : limits.vhostUserQueuesMax;
}

async function readConfig(frontEnd: FrontEnd, bytes: number, log: string[]): Promise<Uint8Array | undefined> {
  if (bytes === 0 || !frontEnd.protocolFeatures.has(protocolFeature.CONFIG)) return undefined;
  try {
    const config = await frontEnd.getConfig(0, bytes);
    log.push(`configuration: ${config.length} bytes`);
    return config;
  } catch (error) {
    if (!(error instanceof VmsgError) || error.code !== 'backend-refused') throw error;
    log.push(`configuration: ${error.message}`);
    return undefined;
  }
}

async function countMemSlots(frontEnd: FrontEnd, log: string[]): Promise<number> {
  if (!frontEnd.protocolFeatures.has(protocolFeature.CONFIGURE_MEM_SLOTS)) return limits.vhostUserTableRegions;
  const told = await frontEnd.getMaxMemSlots();
  log.push(`memory slots: ${told}`);
  if (told === 0n) throw new VmsgError('backend-unusable', 'the back-end has no memory slots');
  return told < BigInt(limits.vhostUserMemSlotsMax) ? Number(told) : limits.vhostUserMemSlotsMax;
}

async function giveChannel(frontEnd: FrontEnd, open: NonNullable<WantedDevice['openBackEndChannel']>): Promise<void> {
  const { ours, theirs } = open();
  try {
    await frontEnd.setBackEndChannel(theirs.number, ours);
  } finally {
    theirs.close();
  }
}

/**
 * The start of a connection, in the order of the specification, up to where a driver chooses its features.
 * @throws VmsgError 'backend-unusable' when the back-end lacks something needed; else as `FrontEnd`. The connection
 *   stays the caller's to close
 */
export async function openDevice(frontEnd: FrontEnd, wanted: WantedDevice): Promise<DeviceDescription> {
  const log: string[] = [];
  const offered = await frontEnd.getFeatures();
  const features = deviceFeatures(offered);
  log.push(`features offered: ${listed(offered.names(wanted.deviceId))}`);
  const speaksProtocolFeatures = offered.has(PROTOCOL_FEATURES_BIT);
  const protocolFeatures = speaksProtocolFeatures ? await agreeOnProtocol(frontEnd, wanted, log) : FeatureSet.empty;
  checkRequired(protocolFeatures, wanted.required);
  await frontEnd.setOwner();
  const queues = await countQueues(frontEnd, wanted, log);
  const config = await readConfig(frontEnd, wanted.configBytes, log);
  const memSlots = await countMemSlots(frontEnd, log);
  if (wanted.openBackEndChannel !== undefined && protocolFeatures.has(protocolFeature.BACKEND_REQ)) {
    await giveChannel(frontEnd, wanted.openBackEndChannel);
    log.push('requests of the back-end: on a channel of their own');
  }
  return Object.freeze({
    features,
    speaksProtocolFeatures,
    protocolFeatures,
    queues,
    config,
    memSlots,
    log: Object.freeze(log),
  });
}
