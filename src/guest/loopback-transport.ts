import { type Clock, systemClock } from '../kit/clock.ts';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import { type Scheduler, systemScheduler } from '../kit/scheduler.ts';
import { Scope } from '../kit/scope.ts';
import { drainDoorbell, ringDoorbell } from '../libc/doorbell.ts';
import type { Fd } from '../libc/fd.ts';
import { Messenger, type Received } from '../libc/messenger.ts';
import { LoopPoller, type Poller, type Watch } from '../libc/poll.ts';
import { descriptors, headOf, packetType } from '../virtio-msg/loopback-handshake.ts';
import { decode, encode, Malformed } from '../wire/layout.ts';
import { FrameRings } from './frame-rings.ts';
import { type Established, handshake, packetTypeOf, refusalError } from './loopback-handshake.ts';
import type {
  GuestTransport,
  TransportCounters,
  TransportFactory,
  TransportHandlers,
  TransportTerms,
} from './transport.ts';

export interface LoopbackOptions {
  /** Path of the bus's Unix socket, at most 107 bytes. */
  readonly path: string;
  /** Largest message this guest handles, bytes: 52..65535; 264 by default. */
  readonly maxMessageSize?: number;
  /** Messages that a ring holds; 255 by default, less when the service allows only smaller rings. */
  readonly ringSlots?: number;
  /**
   * Whether queues may have kick and call descriptors (QUEUE_NOTIFY), the default. Without it devices offer
   * NOTIFICATION_DATA: each EVENT_AVAIL says how far the driver has come.
   */
  readonly queueNotify?: boolean;
  readonly clock?: Clock;
  readonly poller?: Poller;
  readonly scheduler?: Scheduler;
}

const defaultRingSlots = 255;

/** Makes connections to one loopback bus (docs/protocol/loopback.md). */
export function loopbackFactory(options: LoopbackOptions): TransportFactory {
  const { path, maxMessageSize = limits.messageSizeMaxBytes, ringSlots = defaultRingSlots } = options;
  const clock = options.clock ?? systemClock;
  const poller = options.poller ?? new LoopPoller();
  const scheduler = options.scheduler ?? systemScheduler;
  const { queueNotify = true } = options;
  const role = 'driver' as const;
  return async (resume, onTerms) => {
    if (maxMessageSize < limits.messageSizeMinBytes || maxMessageSize > 0xffff) {
      throw new VmsgError('invalid-request', `a message size of ${maxMessageSize} bytes is not possible`);
    }
    const scope = new Scope();
    try {
      const messenger = scope.own(new Messenger(limits.handshakeMessageMaxBytes, limits.fdsPerMessage));
      const parts = {
        path,
        clock,
        poller,
        messenger,
        maxMessageSize,
        ringSlots,
        role,
        queueNotify,
        resume,
        onTerms,
      };
      const established = await handshake(parts, scope);
      return new LoopbackTransport(established, messenger, poller, scheduler, scope);
    } catch (error) {
      scope.close();
      throw error;
    }
  };
}

class LoopbackTransport implements GuestTransport {
  readonly terms: TransportTerms;
  readonly counters: TransportCounters = { doorbellsIn: 0, doorbellsOut: 0 };
  readonly #established: Established;
  readonly #messenger: Messenger;
  readonly #poller: Poller;
  readonly #scope: Scope;
  readonly #rings: FrameRings;
  #handlers: TransportHandlers | undefined;
  #doorbellWatch: Watch | undefined;
  #nextDescriptor = 0;
  /** Descriptors of the service that no one has asked for yet. */
  readonly #received = new Map<number, Fd>();

  constructor(established: Established, messenger: Messenger, poller: Poller, scheduler: Scheduler, scope: Scope) {
    this.#established = established;
    this.#messenger = messenger;
    this.#poller = poller;
    this.#scope = scope;
    this.terms = established.terms;
    scope.defer(() => {
      for (const fd of this.#received.values()) fd.close();
      this.#received.clear();
    });
    const { toService, toGuest, slotSize, sleepWords, doorbell } = established;
    const ring = (): void => {
      this.counters.doorbellsOut += 1;
      // A peer that is gone shows on the control socket.
      ringDoorbell(doorbell.number);
    };
    const onBroken = (error: Error): void => this.#lose(error);
    this.#rings = scope.own(new FrameRings({ toService, toGuest, slotSize, sleepWords, scheduler, ring, onBroken }));
  }

  start(handlers: TransportHandlers): void {
    this.#handlers = handlers;
    const { control, doorbell } = this.#established;
    const controlWatch = this.#poller.watch(control.number, () => this.#onControl());
    this.#scope.own(controlWatch);
    const watch = this.#poller.watch(doorbell.number, () => this.#onDoorbell());
    this.#doorbellWatch = this.#scope.own(watch);
    this.#rings.start(handlers);
  }

  sendFrame(frame: Uint8Array): 'sent' | 'full' {
    return this.#rings.send(frame);
  }

  sendDescriptors(fds: readonly number[]): number {
    if (this.#scope.closed) throw new VmsgError('bus-lost', 'the bus connection ended');
    const first = this.#nextDescriptor;
    const packet = new Uint8Array(descriptors.size);
    encode(descriptors, { ...headOf(packetType.descriptors), first, count: fds.length }, packet);
    const result = this.#messenger.send(this.#established.control.number, packet, fds);
    if (result === 'full') throw new VmsgError('unavailable', 'the service takes no descriptors now');
    if (result === 'gone') throw new VmsgError('bus-lost', 'the bus connection ended');
    this.#nextDescriptor = (first + fds.length) >>> 0;
    return first;
  }

  #onDoorbell(): void {
    this.counters.doorbellsIn += 1;
    // What stays in the socket calls again.
    if (drainDoorbell(this.#established.doorbell.number, limits.guestDoorbellReads) === 'closed') {
      this.#doorbellWatch?.pause();
    }
    this.#rings.wake();
  }

  takeDescriptor(index: number): Fd | undefined {
    // A response in the ring may overtake the descriptor on the socket.
    if (!this.#received.has(index)) this.#onControl();
    const fd = this.#received.get(index);
    this.#received.delete(index);
    return fd;
  }

  /** After READY the service sends descriptors, or says why it ends the connection. */
  #onControl(): void {
    if (this.#scope.closed) return;
    const received = this.#messenger.receive(this.#established.control.number);
    if (received === 'empty') return;
    if (received === 'closed') {
      this.#lose(new VmsgError('bus-lost', 'the service closed the connection'));
      return;
    }
    if (packetTypeOf(received.bytes) === packetType.descriptors && this.#keep(received)) return;
    for (const fd of received.fds) fd.close();
    const isRefusal = packetTypeOf(received.bytes) === packetType.refused;
    this.#lose(isRefusal ? refusalError(received.bytes) : new VmsgError('protocol-violation', 'unexpected packet'));
  }

  /** @returns false when the packet is not what it should be */
  #keep({ bytes, fds }: Received): boolean {
    const packet = decode(descriptors, bytes, 0, bytes.length);
    if (packet instanceof Malformed || packet.count !== fds.length) return false;
    if (this.#received.size + fds.length > limits.pendingFdsPerBus) return false;
    for (const [i, fd] of fds.entries()) {
      const index = (packet.first + i) >>> 0;
      this.#received.get(index)?.close();
      this.#received.set(index, fd);
    }
    return true;
  }

  #lose(error: Error): void {
    if (this.#scope.closed) return;
    const handlers = this.#handlers;
    this.close();
    handlers?.onLost(error);
  }

  close(): void {
    this.#handlers = undefined;
    this.#scope.close();
  }
}
