import { limits } from '../../kit/limits.ts';
import type { FeatureSet } from '../../virtio/features.ts';
import { ringAlign, ringBytes } from '../../virtio/geometry.ts';
import type { DriverRingMemory } from '../../virtio/queue.ts';
import { openDriverQueue, type RingDriverQueue } from '../../virtio/rings.ts';
import { type BounceSlot, BounceSpace } from './bounce-space.ts';

/** Every region has an address space of its own, so any area will do. */
export const bounceArea = 1;
const layout = 'split';

interface RingSlots {
  readonly size: number;
  readonly desc: BounceSlot;
  readonly driver: BounceSlot;
  readonly device: BounceSlot;
}

/** The bounce memory of one device: its rings, made once, and room for requests. */
export class ShadowMemory {
  readonly space: BounceSpace;
  readonly #rings: readonly RingSlots[];

  /** @param queueSizes largest ring of each queue that the serving side takes */
  constructor(bytes: Uint8Array<ArrayBuffer>, queueSizes: readonly number[]) {
    const share = Math.floor(limits.shadowRingEntriesTotal / queueSizes.length);
    const sizes = queueSizes.map((most) => 2 ** Math.floor(Math.log2(Math.min(most, limits.shadowRingEntries, share))));
    const align = ringAlign(layout);
    const partBytes = (size: number): number => {
      const { desc, driver, device } = ringBytes(layout, size);
      return desc + driver + device + align.desc + align.driver + align.device;
    };
    const total = sizes.reduce((sum, size) => sum + partBytes(size), 0);
    this.space = new BounceSpace(bytes, bounceArea, total, queueSizes.length);
    this.#rings = sizes.map((size) => {
      const parts = ringBytes(layout, size);
      const slot = (part: 'desc' | 'driver' | 'device') => this.space.ring(parts[part], align[part]);
      return { size, desc: slot('desc'), driver: slot('driver'), device: slot('device') };
    });
  }

  /** How many chains the other side has given back, modulo 2^16 (split ring, used.idx). */
  usedIndex(index: number): number {
    const { bytes } = this.#rings[index]!.device;
    return Atomics.load(new Uint16Array(bytes.buffer, bytes.byteOffset + 2, 1), 0);
  }

  /** The other side has chains of this queue. */
  isBusy(index: number): boolean {
    const { bytes } = this.#rings[index]!.driver;
    return Atomics.load(new Uint16Array(bytes.buffer, bytes.byteOffset + 2, 1), 0) !== this.usedIndex(index);
  }

  /** The driver half of a queue at its beginning. The serving side does not use the queue now. */
  openRing(index: number, features: FeatureSet): RingDriverQueue {
    const { size, desc, driver, device } = this.#rings[index]!;
    const memory: DriverRingMemory = { desc: desc.bytes, driver: driver.bytes, device: device.bytes };
    return openDriverQueue({
      size,
      features,
      descAddr: desc.busAddress,
      driverAddr: driver.busAddress,
      deviceAddr: device.busAddress,
      memory,
    });
  }
}
