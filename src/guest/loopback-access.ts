import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import { Scope } from '../kit/scope.ts';
import { drainDoorbell } from '../libc/doorbell.ts';
import { createEventfd, drainEventfd, signalEventfd } from '../libc/eventfd.ts';
import type { Fd } from '../libc/fd.ts';
import { Mapping } from '../libc/mapping.ts';
import { createMemfd } from '../libc/memfd.ts';
import { LoopPoller, type Poller } from '../libc/poll.ts';
import { socketPair } from '../libc/unix-socket.ts';
import type { BusAccess, OwnRegion, QueueSignal } from './access.ts';
import type { GuestTransport, TransportFactory } from './transport.ts';

/** A bus where descriptors are handed over: regions are sealed memfds. */
export class LoopbackAccess implements BusAccess {
  readonly connect: TransportFactory;
  readonly grants = undefined;
  readonly #poller: Poller;

  constructor(connect: TransportFactory, poller: Poller = new LoopPoller()) {
    this.connect = connect;
    this.#poller = poller;
  }

  makeRegion(bytes: number, peer: number | undefined): OwnRegion {
    if (peer !== undefined) throw new VmsgError('invalid-request', 'no domain but the own one maps memory here');
    const fd = createMemfd('vmsg-region', bytes);
    try {
      const mapping = Mapping.map(fd.number, 0, bytes, { writable: true });
      return {
        bytes: mapping.bytes,
        offer: (transport) => transport.sendDescriptors([fd.number]),
        close() {
          mapping.close();
          fd.close();
        },
      };
    } catch (error) {
      fd.close();
      throw error;
    }
  }

  makeQueueSignal(forProgram: boolean): QueueSignal {
    return forProgram ? new EventfdSignal(this.#poller) : new DescriptorSignal(this.#poller);
  }

  peerOf(): undefined {
    return undefined;
  }

  close(): void {}
}

/** An eventfd for each direction. */
class EventfdSignal implements QueueSignal {
  readonly forProgram = true;
  readonly #poller: Poller;
  readonly #scope = new Scope();
  readonly #kick: Fd;
  readonly #call: Fd;

  constructor(poller: Poller) {
    this.#poller = poller;
    this.#kick = this.#scope.own(createEventfd());
    this.#call = this.#scope.own(createEventfd());
  }

  offer(transport: GuestTransport): { readonly kick: number; readonly call: number } {
    const kick = transport.sendDescriptors([this.#kick.number, this.#call.number]);
    return { kick, call: kick + 1 };
  }

  start(onUsed: () => void): void {
    const watch = this.#poller.watch(this.#call.number, () => {
      if (drainEventfd(this.#call.number)) onUsed();
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

/** An eventfd towards the device and a socket from it. */
class DescriptorSignal implements QueueSignal {
  readonly forProgram = false;
  readonly #poller: Poller;
  readonly #scope = new Scope();
  readonly #kick: Fd;
  /** Our end and the one that the service writes; kept to be handed over again. */
  readonly #call: Fd;
  readonly #callRemote: Fd;

  constructor(poller: Poller) {
    this.#poller = poller;
    this.#kick = this.#scope.own(createEventfd());
    const [call, remote] = socketPair();
    this.#call = this.#scope.own(call);
    this.#callRemote = this.#scope.own(remote);
  }

  offer(transport: GuestTransport): { readonly kick: number; readonly call: number } {
    const kick = transport.sendDescriptors([this.#kick.number, this.#callRemote.number]);
    return { kick, call: kick + 1 };
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
