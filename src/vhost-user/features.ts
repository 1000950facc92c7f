import { FeatureSet, feature } from '../virtio/features.ts';

/** Bits of the protocol features (vhost-user, "Protocol features"). */
export const protocolFeature = {
  MQ: 0,
  LOG_SHMFD: 1,
  RARP: 2,
  REPLY_ACK: 3,
  MTU: 4,
  BACKEND_REQ: 5,
  CROSS_ENDIAN: 6,
  CRYPTO_SESSION: 7,
  PAGEFAULT: 8,
  CONFIG: 9,
  BACKEND_SEND_FD: 10,
  HOST_NOTIFIER: 11,
  INFLIGHT_SHMFD: 12,
  RESET_DEVICE: 13,
  INBAND_NOTIFICATIONS: 14,
  CONFIGURE_MEM_SLOTS: 15,
  STATUS: 16,
  XEN_MMAP: 17,
  SHARED_OBJECT: 18,
  DEVICE_STATE: 19,
  SHMEM: 20,
} as const;

export type ProtocolFeatureName = keyof typeof protocolFeature;

/** The feature bit VHOST_USER_F_PROTOCOL_FEATURES: a message about the protocol, never a feature of the device. */
export const PROTOCOL_FEATURES_BIT = 30;

/**
 * What a front-end makes use of where it is offered, and what a back-end offers. XEN_MMAP is for front-ends that have
 * such memory to ask for.
 */
export const usedProtocolFeatures = FeatureSet.of(
  protocolFeature.MQ,
  protocolFeature.REPLY_ACK,
  protocolFeature.BACKEND_REQ,
  protocolFeature.CONFIG,
  protocolFeature.INFLIGHT_SHMFD,
  protocolFeature.RESET_DEVICE,
  protocolFeature.CONFIGURE_MEM_SLOTS,
  protocolFeature.STATUS,
);

/** Feature bits that concern the dirty log and the protocol itself, which no driver is shown. */
const VHOST_LOG_ALL = 26;
const notOfTheDevice = FeatureSet.of(VHOST_LOG_ALL, PROTOCOL_FEATURES_BIT);

/** The bits of an offer that a driver may see. ACCESS_PLATFORM would ask for an IOTLB, which is not spoken here. */
export const deviceFeatures = (offered: FeatureSet): FeatureSet =>
  offered.minus(notOfTheDevice).minus(FeatureSet.of(feature.ACCESS_PLATFORM));

const MASK32 = 0xffff_ffffn;

export const featuresFromU64 = (bits: bigint): FeatureSet =>
  FeatureSet.fromBlocks([Number(bits & MASK32), Number((bits >> 32n) & MASK32)]);

export const featuresToU64 = (set: FeatureSet): bigint => (BigInt(set.block(1)) << 32n) | BigInt(set.block(0));

/** Names for people, ascending by bit; a bit without a name gives `bit-<n>`. */
export function protocolFeatureNames(set: FeatureSet): string[] {
  const byBit = new Map<number, string>(Object.entries(protocolFeature).map(([name, bit]) => [bit, name]));
  return set.bits().map((bit) => byBit.get(bit) ?? `bit-${bit}`);
}
