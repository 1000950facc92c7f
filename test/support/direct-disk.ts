import assert from 'node:assert/strict';
import { BlkDriver, type BlkOptions, type GuestBus } from '../../src/guest/index.ts';
import { protocolFeature } from '../../src/vhost-user/features.ts';
import { FeatureSet } from '../../src/virtio/features.ts';
import { type DirectRig, deviceNumber, impatient } from './direct-rig.ts';

export const blockBytes = 4096;
export const blocks = 30;
export const wholeTables = (rig: DirectRig): void => {
  rig.habits.without = FeatureSet.of(protocolFeature.CONFIGURE_MEM_SLOTS);
};
export const hasty = (rig: DirectRig): void => {
  rig.clock = impatient;
};

const content = (seed: number): Uint8Array =>
  Uint8Array.from({ length: blockBytes }, (_, i) => (i * 7 + seed * 31) & 0xff);
export const openDisk = (bus: GuestBus, options: BlkOptions = {}): Promise<BlkDriver> =>
  BlkDriver.open(bus, deviceNumber, { depth: 8, transferBytes: blockBytes, ...options });

/** Writes and reads every block. */
export async function use(blk: BlkDriver, seed: number): Promise<void> {
  const sectorOf = (block: number) => (block * blockBytes) / 512;
  const all = Array.from({ length: blocks }, (_, block) => block);
  await Promise.all(all.map((block) => blk.write(sectorOf(block), content(seed + block))));
  const read = await Promise.all(all.map((block) => blk.read(sectorOf(block), blockBytes)));
  assert.deepEqual(
    read,
    all.map((block) => content(seed + block)),
  );
}

/** Requests that have no answer yet, and whose end nobody waits for. */
export function leaveRequests(blk: BlkDriver, count = 4): Promise<PromiseSettledResult<void>[]> {
  return Promise.allSettled(Array.from({ length: count }, (_, i) => blk.write(i * 8, content(i))));
}

export async function isDirect(rig: DirectRig): Promise<void> {
  const device = await rig.device();
  assert.deepEqual([device?.dataPath, device?.dataPathReason, device?.reason], ['direct', null, null]);
}

export const count = (rig: DirectRig, name: string): number => rig.habits.log.filter((each) => each === name).length;
