import { LoopbackResources } from '../device/loopback-resources.ts';
import { RingPort } from '../device/ring-port.ts';
import type { Clock } from '../kit/clock.ts';
import { limits } from '../kit/limits.ts';
import { type Closable, Scope } from '../kit/scope.ts';
import { drainDoorbell, ringDoorbell } from '../libc/doorbell.ts';
import { Messenger } from '../libc/messenger.ts';
import type { Poller } from '../libc/poll.ts';
import type { Admission, BusPort, GuestConnection } from '../ports/bus.ts';
import { descriptors, headOf, packetType } from '../virtio-msg/loopback-handshake.ts';
import { RingConsumer, RingProducer } from '../virtio-msg/ring.ts';
import { decode, encode, Malformed } from '../wire/layout.ts';
import { type Established, handshake, packetTypeOf } from './loopback-handshake.ts';

export interface DeviceAccessHandlers {
  /** Comes once, unless we closed the connection; all of it is released then. */
  onLost(reason: string): void;
  /** Something that is shared cannot be used: what, why, and what to check. */
  diagnosed(text: string): void;
}

/** How a guest that serves devices reaches its bus. Outlives connections. */
export interface DeviceAccess extends Closable {
  /** Rejects as `connect` of the package does. */
  connect(handlers: DeviceAccessHandlers): Promise<GuestConnection>;
}

export interface LoopbackDeviceOptions {
  readonly path: string;
  readonly maxMessageSize: number;
  readonly clock: Clock;
  readonly poller: Poller;
}

const packetsPerTurn = 32;
const ringSlots = 255;

/** A loopback bus of role `device`. */
export const loopbackDeviceAccess = (options: LoopbackDeviceOptions): DeviceAccess => ({
  async connect({ onLost }) {
    const scope = new Scope();
    try {
      const messenger = scope.own(new Messenger(limits.handshakeMessageMaxBytes, limits.fdsPerMessage));
      const way = { role: 'device', queueNotify: false, resume: undefined, onTerms: undefined } as const;
      const established = await handshake({ ...options, ...way, messenger, ringSlots }, scope);
      return new DeviceConnection(established, messenger, options.poller, scope, onLost);
    } catch (error) {
      scope.close();
      throw error;
    }
  },
  close() {},
});

/** The connection of a guest that serves devices: what the session on its side needs of the loopback bus. */
class DeviceConnection implements GuestConnection {
  readonly port: BusPort;
  readonly resources: LoopbackResources;
  readonly admission: Admission;
  readonly maxMessageSize: number;
  /** The bridge forwards every kick as EVENT_AVAIL. */
  readonly outOfBandKicks = false;
  readonly #established: Established;
  readonly #messenger: Messenger;
  readonly #poller: Poller;
  readonly #scope: Scope;
  readonly #onLost: (reason: string) => void;

  /** @param scope owns everything of the connection. @param onLost called once, after all of it was released */
  constructor(
    established: Established,
    messenger: Messenger,
    poller: Poller,
    scope: Scope,
    onLost: (reason: string) => void,
  ) {
    this.#established = established;
    this.#messenger = messenger;
    this.#poller = poller;
    this.#scope = scope;
    this.#onLost = onLost;
    const { toService, toGuest, slotSize, sleepWords, terms, control, doorbell } = established;
    this.maxMessageSize = terms.maxMessageSize;
    this.admission = { epoch: terms.epoch, token: terms.token, resumed: false };
    this.port = new RingPort(
      slotSize,
      new RingConsumer(toGuest, slotSize, sleepWords),
      new RingProducer(toService, slotSize, sleepWords),
      () => void ringDoorbell(doorbell.number),
    );
    const receive = (): void => this.#receive();
    this.resources = scope.own(new LoopbackResources(poller, receive, (index, fd) => this.#sendDescriptor(index, fd)));
    scope.own(poller.watch(control.number, receive));
  }

  onDoorbell(listener: () => void): void {
    const { doorbell } = this.#established;
    this.#scope.own(
      this.#poller.watch(doorbell.number, () => {
        if (drainDoorbell(doorbell.number, limits.guestDoorbellReads) === 'closed')
          this.#lose('the doorbell was closed');
        else listener();
      }),
    );
  }

  #receive(): void {
    for (let i = 0; i < packetsPerTurn && !this.#scope.closed; i++) {
      const received = this.#messenger.receive(this.#established.control.number);
      if (received === 'empty') return;
      if (received === 'closed') {
        this.#lose('the service closed the connection');
        return;
      }
      const packet = decode(descriptors, received.bytes, 0, received.bytes.length);
      const usable =
        packetTypeOf(received.bytes) === packetType.descriptors &&
        !(packet instanceof Malformed) &&
        packet.count === received.fds.length;
      const fault = usable ? this.resources.add(packet.first, received.fds) : 'an unexpected packet';
      if (fault === undefined) continue;
      for (const fd of received.fds) fd.close();
      this.#lose(fault);
    }
  }

  #sendDescriptor(first: number, fd: number): boolean {
    const packet = new Uint8Array(descriptors.size);
    encode(descriptors, { ...headOf(packetType.descriptors), first, count: 1 }, packet);
    return this.#messenger.send(this.#established.control.number, packet, [fd]) === 'sent';
  }

  #lose(reason: string): void {
    if (this.#scope.closed) return;
    this.#scope.close();
    this.#onLost(reason);
  }

  close(): void {
    this.#scope.close();
  }
}
