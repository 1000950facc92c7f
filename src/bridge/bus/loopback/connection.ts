import { LoopbackResources } from '../../../device/loopback-resources.ts';
import { RingPort } from '../../../device/ring-port.ts';
import type { Clock } from '../../../kit/clock.ts';
import { type ErrnoName, errno } from '../../../kit/errno.ts';
import { VmsgError } from '../../../kit/errors.ts';
import { limits } from '../../../kit/limits.ts';
import { Scope } from '../../../kit/scope.ts';
import { drainDoorbell, ringDoorbell } from '../../../libc/doorbell.ts';
import type { Fd } from '../../../libc/fd.ts';
import { Mapping } from '../../../libc/mapping.ts';
import { inspectMemfd } from '../../../libc/memfd.ts';
import type { Messenger, Received } from '../../../libc/messenger.ts';
import type { Poller } from '../../../libc/poll.ts';
import { refuseDescriptors, socketPair } from '../../../libc/unix-socket.ts';
import type { Admission, BusPort, GuestConnection, ResumeClaim } from '../../../ports/bus.ts';
import {
  descriptors,
  guestRole,
  type Hello,
  handshakeFeatures,
  handshakeMagic,
  handshakeVersion,
  headOf,
  hello,
  packetHead,
  packetType,
  type Rings,
  ready,
  refused,
  rings,
  welcome,
  welcomeResumed,
} from '../../../virtio-msg/loopback-handshake.ts';
import { RingConsumer, RingProducer, ringCapacity, slotBytes } from '../../../virtio-msg/ring.ts';
import { decode, encode, type Layout, Malformed } from '../../../wire/layout.ts';

export interface LoopbackConnectionOptions {
  readonly socket: Fd;
  readonly messenger: Messenger;
  readonly poller: Poller;
  readonly clock: Clock;
  readonly domid: number;
  readonly maxMessageSizeBytes: number;
  /** What the guest of this bus does. */
  readonly role: 'driver' | 'device';
  readonly ringMaxBytes: number;
  readonly revision: number;
  /** Bit n: dialect Dn is spoken here. */
  readonly dialect: number;
  readonly admit: (claim: ResumeClaim) => Admission;
  /** The handshake is complete. */
  readonly onReady: (connection: LoopbackConnection) => void;
  /** All of it is released. The reason is the guest's doing; undefined when we closed. */
  readonly onClosed: (reason: string | undefined, wasReady: boolean) => void;
}

const offeredFeatures = handshakeFeatures.sleepWords | handshakeFeatures.queueNotify;
const roleText = { driver: 'use devices', device: 'serve devices' } as const;
const packetsPerTurn = 32;
const ringsPerTurn = 64;

type Phase = 'hello' | 'rings' | 'ready' | 'closed';

/** One guest on a loopback bus, from its first packet to its end; docs/protocol/loopback.md. */
export class LoopbackConnection implements GuestConnection {
  readonly resources: LoopbackResources;
  readonly #o: LoopbackConnectionOptions;
  readonly #scope = new Scope();
  readonly #doorbell: Fd;
  readonly #guestDoorbell: Fd;
  #phase: Phase = 'hello';
  #features = 0;
  #maxMessageSize = 0;
  #admission: Admission | undefined;
  #port: RingPort | undefined;

  constructor(options: LoopbackConnectionOptions) {
    this.#o = options;
    this.#scope.own(options.socket);
    const [ours, theirs] = socketPair('seqpacket');
    this.#doorbell = this.#scope.own(ours);
    refuseDescriptors(ours.number);
    this.#guestDoorbell = this.#scope.own(theirs);
    this.resources = this.#scope.own(
      new LoopbackResources(
        options.poller,
        () => this.#receive(),
        (index, fd) => this.#sendDescriptor(index, fd),
      ),
    );
    const timer = options.clock.after(limits.handshakeTimeoutMs, () => {
      if (this.#phase !== 'ready') this.#fail('ETIMEDOUT', 'the handshake took too long');
    });
    this.#scope.defer(() => timer.cancel());
  }

  /** Begins to listen. @throws SystemCallError when descriptors are short; nothing is left open then */
  start(): void {
    try {
      this.#scope.own(this.#o.poller.watch(this.#o.socket.number, () => this.#receive()));
    } catch (error) {
      this.close();
      throw error;
    }
  }

  get ready(): boolean {
    return this.#phase === 'ready';
  }

  get port(): BusPort {
    return this.#port!;
  }

  get admission(): Admission {
    return this.#admission!;
  }

  get outOfBandKicks(): boolean {
    return (this.#features & handshakeFeatures.queueNotify) !== 0;
  }

  get maxMessageSize(): number {
    return this.#maxMessageSize;
  }

  onDoorbell(listener: () => void): void {
    this.#scope.own(
      this.#o.poller.watch(this.#doorbell.number, () => {
        // 'closed' is not the end: the socket of the handshake is the one that decides.
        if (drainDoorbell(this.#doorbell.number, ringsPerTurn) === 'closed') this.#end('the guest closed its doorbell');
        else listener();
      }),
    );
  }

  #receive(): void {
    for (let i = 0; i < packetsPerTurn && this.#phase !== 'closed'; i++) {
      const received = this.#o.messenger.receive(this.#o.socket.number);
      if (received === 'empty') return;
      if (received === 'closed') {
        this.#end('the guest closed the connection');
        return;
      }
      this.#onPacket(received);
    }
  }

  #onPacket(received: Received): void {
    const fds = [...received.fds];
    const fault = received.truncated ? 'an oversized packet' : this.#tryDispatch(received.bytes, fds);
    for (const fd of fds) fd.close();
    if (fault !== undefined) this.#fail('EPROTO', fault);
  }

  #tryDispatch(packet: Uint8Array, fds: Fd[]): string | undefined {
    try {
      return this.#dispatch(packet, fds);
    } catch (error) {
      // Out of memory or descriptors: this guest has to go, the others stay.
      if (error instanceof VmsgError) return error.message;
      throw error;
    }
  }

  /** Takes what it keeps out of `fds`. @returns why the packet is wrong, or undefined */
  #dispatch(packet: Uint8Array, fds: Fd[]): string | undefined {
    const head = decode(packetHead, packet, 0, packet.length, 'ignore');
    if (head instanceof Malformed) return head.reason;
    if (head.magic !== handshakeMagic) return 'a packet that does not begin with VMSG';
    if (this.#phase !== 'hello' && head.version !== handshakeVersion) return `a packet of version ${head.version}`;
    const body = <L extends Layout>(layout: L) => decode(layout, packet, 0, packet.length);
    if (this.#phase === 'hello' && head.type === packetType.hello) {
      const value = body(hello as Layout) as Hello | Malformed;
      return value instanceof Malformed ? value.reason : this.#onHello(value);
    }
    if (this.#phase === 'rings' && head.type === packetType.rings) {
      const value = body(rings as Layout) as Rings | Malformed;
      return value instanceof Malformed ? value.reason : this.#onRings(value, fds);
    }
    if (this.#phase === 'ready' && head.type === packetType.descriptors) {
      const value = decode(descriptors, packet, 0, packet.length);
      if (value instanceof Malformed) return value.reason;
      if (value.count !== fds.length || fds.length === 0) return `${fds.length} descriptors, ${value.count} announced`;
      return this.resources.add(value.first, fds.splice(0));
    }
    return `packet type ${head.type} in phase '${this.#phase}'`;
  }

  #onHello(value: Hello): string | undefined {
    if (value.version < handshakeVersion) return `version ${value.version}`;
    if (value.role !== guestRole[this.#o.role]) return `this bus is for guests that ${roleText[this.#o.role]}`;
    if ((value.dialects & (1 << this.#o.dialect)) === 0) return 'no common dialect';
    this.#maxMessageSize = Math.min(value.maxMessageSize, this.#o.maxMessageSizeBytes);
    if (this.#maxMessageSize < limits.messageSizeMinBytes) return `maximum message size ${value.maxMessageSize}`;
    this.#features = value.features & offeredFeatures;
    this.#admission = this.#o.admit({ epoch: value.resumeEpoch, token: value.resumeToken });
    this.#phase = 'rings';
    const answer = {
      ...headOf(packetType.welcome),
      features: this.#features,
      dialect: this.#o.dialect,
      maxMessageSize: this.#maxMessageSize,
      slotSize: slotBytes(this.#maxMessageSize),
      ringMaxBytes: this.#o.ringMaxBytes,
      revision: this.#o.revision,
      transportFeatures: 0,
      epoch: this.#admission.epoch,
      token: this.#admission.token,
      domid: this.#o.domid,
      flags: this.#admission.resumed ? welcomeResumed : 0,
    };
    const packet = new Uint8Array(welcome.size);
    encode(welcome, answer, packet);
    this.#send(packet, [this.#guestDoorbell.number]);
    this.#guestDoorbell.close();
    return undefined;
  }

  #onRings(value: Rings, fds: Fd[]): string | undefined {
    const [fd] = fds;
    if (fd === undefined || fds.length !== 1) return `${fds.length} descriptors with RINGS, 1 expected`;
    const info = inspectMemfd(fd.number);
    if (typeof info === 'string') return `the ring memory is refused: ${info}`;
    const slot = slotBytes(this.#maxMessageSize);
    const parts = [
      { offset: value.toServiceOffset, bytes: value.toServiceBytes },
      { offset: value.toGuestOffset, bytes: value.toGuestBytes },
    ] as const;
    for (const { offset, bytes } of parts) {
      if (offset % 4096n !== 0n || offset + BigInt(bytes) > BigInt(info.sizeBytes)) return 'a ring leaves its memory';
      if (bytes > this.#o.ringMaxBytes || bytes % 4 !== 0 || ringCapacity(bytes, slot) < limits.ringSlotsMin)
        return `a ring of ${bytes} bytes`;
    }
    const memory = parts.map(({ offset, bytes }) =>
      this.#scope.own(Mapping.map(fd.number, Number(offset), bytes, { writable: true })),
    );
    const sleepWords = (this.#features & handshakeFeatures.sleepWords) !== 0;
    this.#port = new RingPort(
      slot,
      new RingConsumer(memory[0]!.bytes, slot, sleepWords),
      new RingProducer(memory[1]!.bytes, slot, sleepWords),
      () => void ringDoorbell(this.#doorbell.number),
    );
    this.#phase = 'ready';
    const packet = new Uint8Array(ready.size);
    encode(ready, headOf(packetType.ready), packet);
    this.#send(packet);
    if (this.ready) this.#o.onReady(this);
    return undefined;
  }

  #send(packet: Uint8Array, fds: readonly number[] = []): void {
    // The handshake is a few packets: a guest whose socket is full of them does not read.
    const result = this.#o.messenger.send(this.#o.socket.number, packet, fds);
    if (result !== 'sent') this.#end('the guest does not read its socket');
  }

  #sendDescriptor(first: number, fd: number): boolean {
    const packet = new Uint8Array(descriptors.size);
    encode(descriptors, { ...headOf(packetType.descriptors), first, count: 1 }, packet);
    return this.#phase === 'ready' && this.#o.messenger.send(this.#o.socket.number, packet, [fd]) === 'sent';
  }

  /** Tells the guest why, as far as it listens, and ends. */
  #fail(error: ErrnoName, reason: string): void {
    if (this.#phase === 'closed') return;
    refuse(this.#o.messenger, this.#o.socket, error, reason);
    this.#end(reason);
  }

  #end(reason: string | undefined): void {
    if (this.#phase === 'closed') return;
    const wasReady = this.ready;
    this.#phase = 'closed';
    this.#scope.close();
    this.#o.onClosed(reason, wasReady);
  }

  /** Takes what waits on the socket now: the end of the connection, for one. */
  poll(): void {
    this.#receive();
  }

  close(): void {
    this.#end(undefined);
  }
}

/** Sends REFUSED; the caller closes. */
export function refuse(messenger: Messenger, socket: Fd, error: ErrnoName, why: string): void {
  const reason = new TextEncoder().encode(why).subarray(0, 255);
  const packet = new Uint8Array(refused.size + reason.length);
  const body = { ...headOf(packetType.refused), errno: errno[error], reasonLength: reason.length, reason };
  encode(refused, body, packet);
  messenger.send(socket.number, packet);
}
