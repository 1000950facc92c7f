import { type ErrnoName, errno } from '../kit/errno.ts';
import type { CallTarget, GuestResources } from '../ports/bus.ts';
import { queueNotifyCall, queueNotifyKick, queueNotifyProgram } from '../virtio-msg/bus-messages.ts';
import type { DeviceEndpoint } from './endpoint.ts';

interface Signals {
  kick: { close(): void } | undefined;
  call: CallTarget | undefined;
}

const everyFlag = queueNotifyKick | queueNotifyCall | queueNotifyProgram;
const keyOf = (device: number, queue: number): number => device * 0x10000 + queue;

/** Queues whose notifications do not travel as messages (QUEUE_NOTIFY), for one connection. */
export class QueueSignals {
  readonly #resources: GuestResources;
  readonly #byQueue = new Map<number, Signals>();

  constructor(resources: GuestResources) {
    this.#resources = resources;
  }

  /** Replaces the setting of one queue; all of it or nothing. @returns 0 or an errno */
  set(
    request: { device: number; queue: number; flags: number; kick: number; call: number },
    onKick: () => void,
  ): number {
    const kick = request.flags & queueNotifyKick ? this.#resources.openKick(request.kick, onKick) : undefined;
    if (typeof kick === 'string') return errno[kick];
    const call = request.flags & queueNotifyCall ? this.#resources.openCall(request.call) : undefined;
    if (typeof call === 'string') {
      kick?.close();
      return errno[call satisfies ErrnoName];
    }
    this.clearQueue(request.device, request.queue);
    if (kick !== undefined || call !== undefined)
      this.#byQueue.set(keyOf(request.device, request.queue), { kick, call });
    return 0;
  }

  /** Gives both directions to the program that works on the queue. @returns 0 or an errno */
  setForProgram(
    request: { device: number; queue: number; flags: number; kick: number; call: number },
    device: DeviceEndpoint,
  ): number {
    if (request.flags !== everyFlag) return errno.EINVAL;
    const { queue } = request;
    // Where the guest has no descriptors its way is joined with the program's here.
    const { takeEventfd } = this.#resources;
    if (takeEventfd === undefined) return this.set(request, () => device.onAvailable(queue, 0));
    const kick = takeEventfd(request.kick);
    if (typeof kick === 'string') return errno[kick];
    const call = takeEventfd(request.call);
    if (typeof call === 'string') {
      kick.close();
      return errno[call];
    }
    this.clearQueue(request.device, queue);
    device.useDescriptors?.(queue, { kick, call });
    const taken = { close: () => device.useDescriptors?.(queue, undefined) };
    this.#byQueue.set(keyOf(request.device, queue), { kick: taken, call: undefined });
    return 0;
  }

  /** Whether EVENT_AVAIL of this queue is to be ignored. */
  hasKick(device: number, queue: number): boolean {
    return this.#byQueue.size > 0 && this.#byQueue.get(keyOf(device, queue))?.kick !== undefined;
  }

  /** Rings the queue's own descriptor. @returns false when it has none: send EVENT_USED */
  call(device: number, queue: number): boolean {
    if (this.#byQueue.size === 0) return false;
    const target = this.#byQueue.get(keyOf(device, queue))?.call;
    target?.ring();
    return target !== undefined;
  }

  clearQueue(device: number, queue: number): void {
    const key = keyOf(device, queue);
    const signals = this.#byQueue.get(key);
    this.#byQueue.delete(key);
    signals?.kick?.close();
    signals?.call?.close();
  }

  /** A reset of the device ends its settings. */
  clearDevice(device: number): void {
    for (const key of [...this.#byQueue.keys()]) {
      if (Math.floor(key / 0x10000) === device) this.clearQueue(device, key % 0x10000);
    }
  }

  clear(): void {
    for (const key of [...this.#byQueue.keys()]) this.clearQueue(Math.floor(key / 0x10000), key % 0x10000);
  }
}
