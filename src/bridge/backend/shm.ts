import type { Fd } from '../../libc/fd.ts';
import { Mapping } from '../../libc/mapping.ts';
import { createMemfd } from '../../libc/memfd.ts';
import type { Backend, BackendDescription, BackendRequest } from '../../ports/backend.ts';
import { deviceId } from '../../virtio/device-ids.ts';
import { writeU32 } from '../../wire/bytes.ts';
import { scatter } from './parts.ts';
import { bridgeVendorId } from './vendor.ts';

/** Id of the one region. */
const regionId = 0;
/** Bytes at the start of the region that hold the counter, a u32; the pattern follows. */
const counterBytes = 4;

/** The byte that the pattern has at an offset of the region. */
const patternAt = (offset: number): number => (offset * 31 + (offset >>> 8)) & 0xff;

/**
 * A device to try shared memory regions with (virtio 1.3, 2.10). Its region begins with a u32 that counts the requests
 * so far; a pattern fills the rest: byte i is (31 i + floor(i / 256)) mod 256. Each request is answered with the count,
 * which the region shows by then. The guest may write to the region; nothing is ever read from it.
 */
export class ShmBackend implements Backend {
  readonly description: BackendDescription;
  readonly sharedMemory: readonly { readonly id: number; readonly fd: number; readonly length: number }[];
  readonly #fd: Fd;
  readonly #mapping: Mapping;
  readonly #words: Uint32Array;
  #count = 0;

  /** @param bytes size of the region, a multiple of the page size. @throws SystemCallError */
  constructor(bytes: number) {
    this.#fd = createMemfd('vmsg-shm', bytes);
    try {
      this.#mapping = Mapping.map(this.#fd.number, 0, bytes, { writable: true });
    } catch (error) {
      this.#fd.close();
      throw error;
    }
    const region = this.#mapping.bytes;
    this.#words = new Uint32Array(region.buffer, region.byteOffset, 1);
    for (let i = counterBytes; i < bytes; i++) region[i] = patternAt(i);
    this.sharedMemory = [{ id: regionId, fd: this.#fd.number, length: bytes }];
    this.description = {
      deviceType: deviceId.shm,
      vendorId: bridgeVendorId,
      uuid: new Uint8Array(16),
      featureBits: [],
      queueSizes: [16],
      config: new Uint8Array(0),
      maxInFlight: 16,
    };
  }

  activate(): void {}

  handle(request: BackendRequest): void {
    this.#count = (this.#count + 1) >>> 0;
    Atomics.store(this.#words, 0, this.#count);
    const answer = new Uint8Array(counterBytes);
    writeU32(answer, 0, this.#count);
    request.complete(scatter(answer, request.writable));
  }

  writeConfig(): boolean {
    return false;
  }

  deactivate(): void {}

  async close(): Promise<void> {
    this.#mapping.close();
    this.#fd.close();
  }
}
