import { limits } from '../kit/limits.ts';
import { Scope } from '../kit/scope.ts';
import { drainDoorbell } from '../libc/doorbell.ts';
import { createEventfd, signalEventfd } from '../libc/eventfd.ts';
import type { Fd } from '../libc/fd.ts';
import { LoopPoller, type Poller } from '../libc/poll.ts';
import { socketPair } from '../libc/unix-socket.ts';
import type { GuestBus } from './bus.ts';
import type { Phase } from './bus-types.ts';

/** How driver and device wake each other about one queue. */
export interface Notifier {
  /** Tells the service where notifications go; again after each reconnection. */
  wire(phase: Phase): Promise<void>;
  start(onUsed: () => void): void;
  /** @param next `notificationData` of the queue, or 0 without NOTIFICATION_DATA */
  kick(next: number): void;
  /** Idempotent. */
  close(): void;
}

/** EVENT_AVAIL and EVENT_USED; the bus delivers the latter. */
export const messageNotifier = (bus: GuestBus, device: number, queue: number): Notifier => ({
  wire: async () => {},
  start: () => {},
  kick: (next) => bus.notify(device, queue, next),
  close: () => {},
});

/** An eventfd towards the device and a socket from it (QUEUE_NOTIFY). */
export class DescriptorNotifier implements Notifier {
  readonly #bus: GuestBus;
  readonly #device: number;
  readonly #queue: number;
  readonly #poller: Poller;
  readonly #scope = new Scope();
  readonly #kick: Fd;
  /** Our end and the one that the service writes; kept to be handed over again. */
  readonly #call: Fd;
  readonly #callRemote: Fd;

  constructor(bus: GuestBus, device: number, queue: number, poller: Poller = new LoopPoller()) {
    this.#bus = bus;
    this.#device = device;
    this.#queue = queue;
    this.#poller = poller;
    this.#kick = this.#scope.own(createEventfd());
    const [call, remote] = socketPair();
    this.#call = this.#scope.own(call);
    this.#callRemote = this.#scope.own(remote);
  }

  wire(phase: Phase): Promise<void> {
    const fds = { kick: this.#kick.number, call: this.#callRemote.number };
    return this.#bus.queueNotify(this.#device, this.#queue, fds, phase);
  }

  start(onUsed: () => void): void {
    const watch = this.#poller.watch(this.#call.number, () => {
      drainDoorbell(this.#call.number, limits.guestDoorbellReads);
      onUsed();
    });
    this.#scope.own(watch);
  }

  kick(): void {
    if (!this.#scope.closed) signalEventfd(this.#kick.number);
  }

  close(): void {
    this.#scope.close();
  }
}
