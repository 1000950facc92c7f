import type { Closable } from '../kit/scope.ts';
import type { ForeignFd } from '../libc/fd.ts';
import type { FeatureSet } from '../virtio/features.ts';
import { isQueueSize, ringLayout } from '../virtio/geometry.ts';
import type { QueueSetup } from '../virtio/queue.ts';
import type { QueueAddresses } from './front-end.ts';
import type { GuestMemory } from './guest-memory.ts';

/** A queue that a device is to serve, from `startQueue` to `stopQueue`; descriptors are valid in between. */
export interface ServedQueue extends QueueSetup {
  /** Where to begin; as GET_VRING_BASE has it. */
  readonly base: number;
  /** An eventfd of the front-end: what must be looked at. Undefined: look without being told. */
  readonly kick: number | undefined;
  /** An eventfd of the front-end: to be signalled. Undefined: nobody wants to be told. */
  readonly call: number | undefined;
  readonly error: number | undefined;
  /** The in-flight log of this queue, if the front-end keeps one. */
  readonly inflight: Uint8Array | undefined;
}

export type QueueFdName = 'kick' | 'call' | 'error';

/** What a front-end has said of one queue. */
export class QueueState implements Closable {
  readonly index: number;
  size = 0;
  base = 0;
  addresses: QueueAddresses | undefined;
  enabled = false;
  /** SET_VRING_KICK has come, with or without a descriptor: the driver is ready. */
  kicked = false;
  /** The device has it. */
  running = false;
  readonly #fds = new Map<QueueFdName, ForeignFd>();

  constructor(index: number) {
    this.index = index;
  }

  /** @param fd is the queue's from now on, in place of what was there */
  setFd(name: QueueFdName, fd: ForeignFd | undefined): void {
    this.#fds.get(name)?.close();
    this.#fds.delete(name);
    if (fd !== undefined) this.#fds.set(name, fd);
    if (name === 'kick') this.kicked = true;
  }

  /** @returns the queue for the device, or why there is none */
  served(memory: GuestMemory, features: FeatureSet, inflight: Uint8Array | undefined): ServedQueue | string {
    if (!isQueueSize(ringLayout(features), this.size)) return `a queue of ${this.size} entries`;
    if (this.addresses === undefined) return 'a queue without addresses';
    const descAddr = memory.guestAddressOf(this.addresses.desc);
    const driverAddr = memory.guestAddressOf(this.addresses.driver);
    const deviceAddr = memory.guestAddressOf(this.addresses.device);
    if (descAddr === undefined || driverAddr === undefined || deviceAddr === undefined) {
      return 'a queue outside of the memory';
    }
    const { index, size, base } = this;
    const rings = { index, size, base, descAddr, driverAddr, deviceAddr, features, inflight };
    const number = (name: QueueFdName): number | undefined => this.#fds.get(name)?.number;
    return { ...rings, kick: number('kick'), call: number('call'), error: number('error') };
  }

  /** Stopped: what signals belongs to the next start. */
  forgetFds(): void {
    for (const fd of this.#fds.values()) fd.close();
    this.#fds.clear();
    this.kicked = false;
  }

  /** As it was in the beginning. */
  close(): void {
    this.forgetFds();
    this.size = 0;
    this.base = 0;
    this.addresses = undefined;
    this.enabled = false;
  }
}
