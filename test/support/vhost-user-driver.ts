import assert from 'node:assert/strict';
import { createEventfd, drainEventfd, signalEventfd } from '../../src/libc/eventfd.ts';
import { Mapping } from '../../src/libc/mapping.ts';
import { createMemfd } from '../../src/libc/memfd.ts';
import type { LoopPoller } from '../../src/libc/poll.ts';
import type { DeviceRegion, QueueStart } from '../../src/vhost-user/device.ts';
import { blkRequestHead, blkRequestType, blkStatus, sectorBytes } from '../../src/virtio/blk.ts';
import type { FeatureSet } from '../../src/virtio/features.ts';
import { ringBytes } from '../../src/virtio/geometry.ts';
import { QueueFault } from '../../src/virtio/queue.ts';
import { type DriverQueueState, openDriverQueue, type RingDriverQueue } from '../../src/virtio/rings.ts';
import { splitU64 } from '../../src/wire/bytes.ts';
import { encode } from '../../src/wire/layout.ts';

const memoryBytes = 1024 * 1024;
const guestAddress = 0x1_0000_0000n;
const userAddress = 0x7f00_0000_0000n;
const slotsOffset = 64 * 1024;
const slotBytes = 16 * 1024;
const ringOffsets = { desc: 0, driver: 16 * 1024, device: 32 * 1024 } as const;

const slots = (): number[] => Array.from({ length: 32 }, (_, slot) => slot);

interface Waiter {
  readonly slot: number;
  readonly resolve: (status: number) => void;
  readonly reject: (error: Error) => void;
}

/** One queue of a block device and its memory, as a driver has them; speaks virtio, not vhost-user. */
export class BlkTestDriver {
  readonly size: number;
  readonly #memfd = createMemfd('vhost-user-test', memoryBytes);
  readonly #memory = Mapping.map(this.#memfd.number, 0, memoryBytes, { writable: true });
  readonly #kick = createEventfd();
  readonly #call = createEventfd();
  readonly #error = createEventfd();
  readonly #features: FeatureSet;
  readonly #watch: { close(): void };
  readonly #waiters = new Map<number, Waiter>();
  readonly #free = slots();
  #rings: RingDriverQueue;
  #failed: Error | undefined;

  constructor(size: number, features: FeatureSet, poller: LoopPoller) {
    this.size = size;
    this.#features = features;
    this.#rings = this.#openRings();
    this.#watch = poller.watch(this.#call.number, () => {
      drainEventfd(this.#call.number);
      this.#take();
    });
  }

  #openRings(state?: DriverQueueState): RingDriverQueue {
    const bytes = ringBytes('split', this.size);
    const part = (name: keyof typeof ringOffsets): Uint8Array =>
      this.#memory.bytes.subarray(ringOffsets[name], ringOffsets[name] + bytes[name]);
    const memory = { desc: part('desc'), driver: part('driver'), device: part('device') };
    const at = (name: keyof typeof ringOffsets): bigint => guestAddress + BigInt(ringOffsets[name]);
    const setup = { size: this.size, features: this.#features, memory };
    return openDriverQueue(
      { ...setup, descAddr: at('desc'), driverAddr: at('driver'), deviceAddr: at('device') },
      state,
    );
  }

  get region(): DeviceRegion {
    const addresses = { guestAddress, userAddress, size: BigInt(memoryBytes), mmapOffset: 0n };
    return { ...addresses, fd: this.#memfd.number };
  }

  start(index: number, base: number): QueueStart {
    const at = (name: keyof typeof ringOffsets): bigint => userAddress + BigInt(ringOffsets[name]);
    const addresses = { desc: at('desc'), driver: at('driver'), device: at('device') };
    const fds = { kick: this.#kick.number, call: this.#call.number, error: this.#error.number };
    return { index, size: this.size, base, ...addresses, ...fds };
  }

  /** The rings from their beginning, as after a reset of the device. */
  reopen(): void {
    assert.equal(this.#waiters.size, 0);
    this.#failed = undefined;
    this.#free.splice(0, this.#free.length, ...slots());
    this.#rings = this.#openRings();
  }

  async write(sector: number, data: Uint8Array): Promise<void> {
    assert.equal(await this.submit(blkRequestType.OUT, sector, data), blkStatus.OK);
  }

  async read(sector: number, length: number): Promise<Uint8Array> {
    const into = new Uint8Array(length);
    assert.equal(await this.submit(blkRequestType.IN, sector, into), blkStatus.OK);
    return into;
  }

  /** @param data goes to the device, or is filled by it. @returns the status byte */
  submit(type: number, sector: number, data: Uint8Array): Promise<number> {
    if (this.#failed !== undefined) return Promise.reject(this.#failed);
    assert.equal(data.length % sectorBytes, 0);
    const slot = this.#free.pop();
    assert(slot !== undefined && data.length <= slotBytes - 64);
    const at = slotsOffset + slot * slotBytes;
    const range = (offset: number, length: number) => ({ ...splitU64(guestAddress + BigInt(at + offset)), length });
    encode(blkRequestHead, { type, reserved: 0, sector: BigInt(sector) }, this.#memory.bytes, at);
    this.#memory.bytes[at + 16] = 0xff;
    const body = this.#memory.bytes.subarray(at + 64, at + 64 + data.length);
    const status = range(16, 1);
    const toDevice = type === blkRequestType.OUT;
    if (toDevice) body.set(data);
    const readable = [range(0, 16), ...(toDevice ? [range(64, data.length)] : [])];
    const writable = [...(toDevice ? [] : [range(64, data.length)]), status];
    const token = this.#rings.add(readable, writable);
    assert(token !== undefined);
    return new Promise((resolve, reject) => {
      const done = (result: number): void => {
        if (!toDevice) data.set(body);
        resolve(result);
      };
      this.#waiters.set(token, { slot, resolve: done, reject });
      if (this.#rings.kick()) signalEventfd(this.#kick.number);
    });
  }

  #take(): void {
    for (;;) {
      const used = this.#rings.next();
      if (used instanceof QueueFault) throw new Error(`${used.reason}: ${used.detail}`);
      if (used === undefined && this.#rings.enableInterrupts()) continue;
      if (used === undefined) return;
      const waiter = this.#waiters.get(used.token)!;
      this.#waiters.delete(used.token);
      this.#free.push(waiter.slot);
      waiter.resolve(this.#memory.bytes[slotsOffset + waiter.slot * slotBytes + 16]!);
    }
  }

  /** The device is gone: no request comes back, and none is taken until `reopen`. */
  fail(error: Error): void {
    this.#failed = error;
    for (const waiter of this.#waiters.values()) waiter.reject(error);
    this.#waiters.clear();
  }

  close(): void {
    this.#watch.close();
    for (const each of [this.#kick, this.#call, this.#error, this.#memory, this.#memfd]) each.close();
  }
}
