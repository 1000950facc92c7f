import { type ErrnoName, errno } from '../kit/errno.ts';
import type { Closable } from '../kit/scope.ts';
import type { CallTarget, GuestResources, QueueWay } from '../ports/bus.ts';
import { queueNotifyCall, queueNotifyKick, queueNotifyProgram } from '../virtio-msg/bus-messages.ts';
import type { DeviceEndpoint } from './endpoint.ts';

interface Signals {
  kick: { close(): void } | undefined;
  call: CallTarget | undefined;
  /** They are the program's. */
  isProgram?: boolean;
  /** Others that the program is to get. */
  pending?: Closable;
}

function takeBoth<T extends Closable>(
  kick: number,
  call: number,
  take: (reference: number) => T | ErrnoName,
): readonly [T, T] | ErrnoName {
  const first = take(kick);
  if (typeof first === 'string') return first;
  const second = take(call);
  if (typeof second !== 'string') return [first, second];
  first.close();
  return second;
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
  ): number | Promise<number> {
    if (request.flags !== everyFlag) return errno.EINVAL;
    const { queue } = request;
    const way = this.#wayOf(request);
    if (typeof way === 'string') return errno[way];
    const given = device.useWay?.(queue, way) ?? errno.EPERM;
    const taken = { close: () => void device.useWay?.(queue, undefined) };
    if (typeof given === 'number') return this.#settle(request, taken, given);
    // A reset in the meantime ends it as well.
    const key = keyOf(request.device, queue);
    const before: Signals = this.#byQueue.get(key) ?? { kick: undefined, call: undefined };
    const pending: Signals = { ...before, pending: taken };
    this.#byQueue.set(key, pending);
    return given.then((result) => {
      if (this.#byQueue.get(key) !== pending) return errno.EBUSY;
      this.#byQueue.set(key, before);
      return this.#settle(request, taken, result);
    });
  }

  #settle(request: { device: number; queue: number }, taken: Closable, result: number): number {
    const key = keyOf(request.device, request.queue);
    const isProgram = this.#byQueue.get(key)?.isProgram === true;
    if (result === 0) {
      // The program's end of the way before is changed, not given up.
      if (isProgram) this.#byQueue.delete(key);
      else this.clearQueue(request.device, request.queue);
      this.#byQueue.set(key, { kick: taken, call: undefined, isProgram: true });
    } else if (result !== errno.EBUSY && isProgram) {
      // It has no way of its own any more: events are taken again.
      this.clearQueue(request.device, request.queue);
    }
    return result;
  }

  #wayOf({ kick, call }: { kick: number; call: number }): QueueWay | ErrnoName {
    const { takeEventfd, takePort } = this.#resources;
    if (takeEventfd !== undefined) {
      const both = takeBoth(kick, call, takeEventfd);
      return typeof both === 'string' ? both : { kick: both[0], call: both[1] };
    }
    if (takePort === undefined) return 'EOPNOTSUPP';
    const both = takeBoth(kick, call, takePort);
    return typeof both === 'string' ? both : { kickPort: both[0], callPort: both[1] };
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
    signals?.pending?.close();
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
