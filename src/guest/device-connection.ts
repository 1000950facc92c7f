import { LoopbackResources } from '../device/loopback-resources.ts';
import { RingPort } from '../device/ring-port.ts';
import { limits } from '../kit/limits.ts';
import type { Scope } from '../kit/scope.ts';
import { drainDoorbell, ringDoorbell } from '../libc/doorbell.ts';
import type { Messenger } from '../libc/messenger.ts';
import type { Poller } from '../libc/poll.ts';
import type { Admission, BusPort, GuestConnection } from '../ports/bus.ts';
import { descriptors, headOf, packetType } from '../virtio-msg/loopback-handshake.ts';
import { RingConsumer, RingProducer } from '../virtio-msg/ring.ts';
import { decode, encode, Malformed } from '../wire/layout.ts';
import { type Established, packetTypeOf } from './loopback-handshake.ts';

const packetsPerTurn = 32;

/** The connection of a guest that serves devices: what the session on its side needs of the loopback bus. */
export class DeviceConnection implements GuestConnection {
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
