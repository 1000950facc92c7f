import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import { FeatureSet } from '../virtio/features.ts';
import type { DeviceInfo } from './device-info.ts';
import type { DeviceRequests } from './requests.ts';

/** Blocks that one message carries: header, index and count take 16 bytes. */
const blocksPerMessage = (bus: DeviceRequests): number => Math.floor((bus.terms.maxMessageSize - 16) / 4);

const blockCount = (info: DeviceInfo): number => Math.min(info.featureBlockCount, limits.guestFeatureBlocks);

/** The bits that a device offers, in as many messages as it takes (D5, GET_DEVICE_FEATURES); changes nothing. */
export async function offeredFeatures(bus: DeviceRequests, info: DeviceInfo): Promise<FeatureSet> {
  const blocks: number[] = [];
  while (blocks.length < blockCount(info)) {
    const part = {
      blockIndex: blocks.length,
      blockCount: Math.min(blocksPerMessage(bus), blockCount(info) - blocks.length),
    };
    const response = await bus.request(info.number, 'GET_DEVICE_FEATURES', part);
    if (response.blockIndex !== part.blockIndex || response.blockCount !== part.blockCount) {
      throw new VmsgError('protocol-violation', `GET_DEVICE_FEATURES: device ${info.number} answered other blocks`);
    }
    blocks.push(...response.blocks);
  }
  return FeatureSet.fromBlocks(blocks);
}

/** Tells a device which bits the driver accepts, all blocks of it (D5, SET_DRIVER_FEATURES). */
export async function writeFeatures(bus: DeviceRequests, info: DeviceInfo, chosen: FeatureSet): Promise<void> {
  const all = chosen.toBlocks(blockCount(info));
  for (let at = 0; at < all.length; at += blocksPerMessage(bus)) {
    const blocks = all.slice(at, at + blocksPerMessage(bus));
    const body = { blockIndex: at, blockCount: blocks.length, blocks };
    await bus.request(info.number, 'SET_DRIVER_FEATURES', body);
  }
}
