import assert from 'node:assert/strict';
import { asDomid } from '../../src/ports/hypervisor.ts';
import { FeatureSet } from '../../src/virtio/features.ts';
import type { BufferRange } from '../../src/virtio/queue.ts';
import { type DriverQueueState, openDriverQueue, type RingDriverQueue } from '../../src/virtio/rings.ts';
import { splitRingBytes } from '../../src/virtio/split/ring.ts';
import { driverOk, featuresOk, needed } from './bridge-bench.ts';
import type { XenFrontend } from './xen-frontend.ts';

const zero = asDomid(0)!;
const size = 8;
const driverAt = 1024;
const deviceAt = 2048;

/** A page that holds the rings of one queue, and the bus address of its first byte. */
export interface RingPage {
  readonly bytes: Uint8Array;
  readonly address: bigint;
}

function setupOf({ bytes, address }: RingPage) {
  const parts = splitRingBytes(size);
  return {
    size,
    features: FeatureSet.of(...needed),
    descAddr: address,
    driverAddr: address + BigInt(driverAt),
    deviceAddr: address + BigInt(deviceAt),
    memory: {
      desc: bytes.subarray(0, parts.desc),
      driver: bytes.subarray(driverAt, driverAt + parts.driver),
      device: bytes.subarray(deviceAt, deviceAt + parts.device),
    },
  };
}

/** From reset to DRIVER_OK with queue 0 in one page. */
export function startQueue(guest: XenFrontend, page: RingPage, device = 0): RingDriverQueue {
  const set = (status: number): number => guest.ask('SET_DEVICE_STATUS', { status }, device).status;
  assert.equal(set(3), 3);
  const blocks = FeatureSet.of(...needed).toBlocks(2);
  guest.ask('SET_DRIVER_FEATURES', { blockIndex: 0, blockCount: 2, blocks }, device);
  assert.equal(set(featuresOk), featuresOk);
  const setup = setupOf(page);
  const { descAddr, driverAddr, deviceAddr } = setup;
  guest.ask('SET_VQUEUE', { index: 0, flags: 1, size, reserved: 0, descAddr, driverAddr, deviceAddr }, device);
  const queue = openDriverQueue(setup);
  set(driverOk);
  return queue;
}

/** The driver's half again, after it has reconnected. */
export const resumeQueue = (page: RingPage, state: DriverQueueState): RingDriverQueue =>
  openDriverQueue(setupOf(page), state);

/** Address of a byte in an area. */
export const areaAddress = (area: number, offset: number): bigint => (BigInt(area) << 48n) | BigInt(offset);

export const at = (address: bigint, length: number): BufferRange => ({
  hi: Number(address >> 32n),
  lo: Number(address & 0xffff_ffffn),
  length,
});

/** A queue page that is granted alone. */
export function grantedRingPage(guest: XenFrontend): RingPage & { readonly reference: number } {
  const { bytes, references } = guest.sharer.share(zero, 1);
  const reference = references[0]!;
  return { bytes, reference, address: (1n << 63n) | (BigInt(reference) << 12n) };
}

export function available(guest: XenFrontend, device = 0): void {
  guest.post({ kind: 'event', name: 'EVENT_AVAIL', body: { index: 0, next: 0 } }, device);
}
