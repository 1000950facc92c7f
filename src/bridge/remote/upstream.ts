import type { GuestTransport, TransportFactory } from '../../guest/transport.ts';
import { BoundedQueue } from '../../kit/bounded-queue.ts';
import type { Clock } from '../../kit/clock.ts';
import type { ErrnoName } from '../../kit/errno.ts';
import { limits } from '../../kit/limits.ts';
import { type CanonicalMessage, dialectD5, headerFault } from '../../virtio-msg/dialect.ts';
import { headerBytes, messageHeader } from '../../virtio-msg/header.ts';
import { decode, Malformed } from '../../wire/layout.ts';
import type { RemotePeer } from './peer.ts';
import { RemoteBus } from './remote-bus.ts';

/** The message path to another bridge, of which we are the guest. */
class UpstreamPeer implements RemotePeer {
  readonly byPeer = false;
  readonly #transport: GuestTransport;
  readonly #frame: Uint8Array;
  readonly #backlog = new BoundedQueue<Uint8Array>(limits.channelBacklogMessages);
  readonly #overflow: () => void;

  constructor(transport: GuestTransport, overflow: () => void) {
    this.#transport = transport;
    this.#frame = new Uint8Array(transport.terms.maxMessageSize);
    this.#overflow = overflow;
  }

  get maxMessageSize(): number {
    return this.#transport.terms.maxMessageSize;
  }

  lengthOf(message: CanonicalMessage): number {
    return dialectD5.encodedLength(message);
  }

  send(message: CanonicalMessage, deviceNumber: number, token: number): void {
    const size = dialectD5.encode(message, deviceNumber, token, this.#frame);
    const frame = this.#frame.subarray(0, size);
    if (this.#backlog.length === 0 && this.#transport.sendFrame(frame) === 'sent') return;
    if (!this.#backlog.push(frame.slice())) this.#overflow();
  }

  flush(): void {
    for (let frame = this.#backlog.peek(); frame !== undefined; frame = this.#backlog.peek()) {
      if (this.#transport.sendFrame(frame) === 'full') return;
      this.#backlog.shift();
    }
  }

  giveDescriptor(fd: number): number | ErrnoName {
    try {
      return this.#transport.sendDescriptors([fd]);
    } catch {
      return 'EBUSY';
    }
  }
}

/** A connection to a bus of another bridge; devices of it are attached to one bus here. Connects when it is needed. */
export class Upstream {
  readonly #connect: TransportFactory;
  readonly #clock: Clock;
  #user = '';
  #current: Promise<{ bus: RemoteBus; transport: GuestTransport }> | undefined;

  constructor(connect: TransportFactory, clock: Clock) {
    this.#connect = connect;
    this.#clock = clock;
  }

  /** The far side keeps one driver's memory only: the devices are for one bus. @returns false when it is another one */
  takeFor(bus: string, remote: RemoteBus): boolean {
    if (remote.claims > 0 && this.#user !== bus) return false;
    this.#user = bus;
    return true;
  }

  /** The driver side towards the other bridge. Rejects with VmsgError as the guest library's `connect` does. */
  async remote(): Promise<RemoteBus> {
    const opening = this.#current ?? this.#open();
    this.#current = opening;
    try {
      return (await opening).bus;
    } catch (error) {
      if (this.#current === opening) this.#current = undefined;
      throw error;
    }
  }

  async #open(): Promise<{ bus: RemoteBus; transport: GuestTransport }> {
    const transport = await this.#connect(undefined);
    const end = (reason: string): void => {
      this.#current = undefined;
      transport.close();
      bus.close(reason);
    };
    const peer = new UpstreamPeer(transport, () => end('the other bridge does not read its ring'));
    const bus = new RemoteBus(peer, this.#clock, { onDevices: () => {} });
    transport.start({
      onFrame: (frame) => receive(bus, frame, transport.terms.maxMessageSize),
      onRoom: () => peer.flush(),
      onLost: (error) => end(`the connection to the other bridge ended: ${error.message}`),
    });
    await bus.enumerate();
    return { bus, transport };
  }

  async close(): Promise<void> {
    const current = await this.#current?.catch(() => undefined);
    this.#current = undefined;
    current?.transport.close();
    current?.bus.close('the service ends');
  }
}

/** What is malformed or unexpected is dropped (D5, Error Signaling). */
function receive(bus: RemoteBus, frame: Uint8Array, maxMessageSize: number): void {
  const header = decode(messageHeader, frame, 0, Math.min(frame.length, headerBytes));
  if (header instanceof Malformed || headerFault(header, frame.length, maxMessageSize) !== undefined) return;
  const message = dialectD5.decode(frame, header);
  if (!(message instanceof Malformed)) bus.onMessage(message, header);
}
