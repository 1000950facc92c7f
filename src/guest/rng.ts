import { VmsgError } from '../kit/errors.ts';
import { deviceId } from '../virtio/device-ids.ts';
import type { GuestBuffer } from './buffer.ts';
import type { GuestBus } from './bus.ts';
import { VirtioDevice } from './device.ts';
import type { QueueOptions, RingOptions, VirtQueue } from './queue.ts';

const requestBytes = 64 * 1024;

/** Driver of an entropy device (virtio 1.3, 5.4). */
export class RngDriver {
  readonly device: VirtioDevice;
  readonly #queue: VirtQueue;

  private constructor(device: VirtioDevice, queue: VirtQueue) {
    this.device = device;
    this.#queue = queue;
  }

  /** @throws VmsgError 'invalid-request' when it is no entropy device; else as `VirtioDevice.open` */
  static async open(bus: GuestBus, number: number, options: QueueOptions & RingOptions = {}): Promise<RngDriver> {
    const { packed = false, inOrder = false, ...queueOptions } = options;
    const device = await VirtioDevice.open(bus, number, { type: deviceId.rng, packed, inOrder });
    try {
      const queue = await device.addQueue(0, queueOptions);
      await device.start();
      return new RngDriver(device, queue);
    } catch (error) {
      await device.close();
      throw error;
    }
  }

  /**
   * Random bytes of the device. @throws VmsgError 'io-error' when it gives none; 'device-failed', 'not-found' or
   * 'bus-lost' when it is gone
   */
  async read(count: number): Promise<Uint8Array> {
    if (!Number.isSafeInteger(count) || count < 0) throw new VmsgError('invalid-request', `${count} random bytes`);
    const bytes = new Uint8Array(count);
    if (count === 0) return bytes;
    const room = Math.min(requestBytes, 2 ** Math.ceil(Math.log2(count)));
    const [buffer] = this.device.allocEqual(1, room) as [GuestBuffer];
    try {
      for (let at = 0; at < count; ) {
        const written = await this.#queue.submit([], [buffer.range(0, Math.min(buffer.length, count - at))]);
        // 5.4.6.2: at least one byte; without progress this would go on for ever.
        if (written === 0) throw new VmsgError('io-error', 'the device gave no random bytes');
        bytes.set(buffer.bytes.subarray(0, written), at);
        at += written;
      }
      return bytes;
    } finally {
      this.device.release(buffer);
    }
  }

  /** Resets the device; what waits ends with 'bus-lost'. Never rejects. */
  close(): Promise<void> {
    return this.device.close();
  }
}
