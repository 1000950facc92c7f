import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Scope } from '../../src/kit/scope.ts';
import { drainDoorbell, ringDoorbell } from '../../src/libc/doorbell.ts';
import type { Fd } from '../../src/libc/fd.ts';
import { Mapping } from '../../src/libc/mapping.ts';
import { Messenger } from '../../src/libc/messenger.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { socketPair, UnixListener } from '../../src/libc/unix-socket.ts';
import { type CanonicalMessage, dialectD5 } from '../../src/virtio-msg/dialect.ts';
import { headerBytes, type MessageHeader, messageHeader } from '../../src/virtio-msg/header.ts';
import {
  descriptors,
  type Hello,
  headOf,
  hello,
  packetHead,
  packetType,
  ready,
  refused,
  rings,
  type Welcome,
  welcome,
} from '../../src/virtio-msg/loopback-handshake.ts';
import { RingConsumer, RingProducer } from '../../src/virtio-msg/ring.ts';
import { type Decoded, decode, encode, type Layout, Malformed } from '../../src/wire/layout.ts';

/** How a peer answers HELLO: fields that differ from the usual WELCOME, a refusal, any bytes, or nothing. */
export type HelloAnswer =
  | { readonly fields: Partial<Welcome>; readonly withoutDoorbell?: boolean }
  | { readonly errno: number; readonly reason: string }
  | { readonly bytes: Uint8Array }
  | 'silent';

export interface PeerOptions {
  readonly maxMessageSize?: number;
  readonly ringMaxBytes?: number;
  readonly onHello?: (packet: Hello) => HelloAnswer;
  readonly afterRings?: 'ready' | 'silent' | 'close';
}

export type PeerHandler = (message: CanonicalMessage, header: MessageHeader, connection: PeerConnection) => void;

const mustDecode = <L extends Layout<never, never> | Layout>(l: L, bytes: Uint8Array): Decoded<L> => {
  const value = decode(l, bytes, 0, bytes.length);
  if (value instanceof Malformed) throw new Error(value.reason);
  return value;
};

/** The service's end of one connection. */
export class PeerConnection {
  readonly scope = new Scope();
  readonly hello: Hello;
  /** Descriptors that the guest sent, by index. */
  readonly fds = new Map<number, Fd>();
  readonly #control: Fd;
  readonly #messenger: Messenger;
  readonly #doorbell: Fd;
  readonly #agreed: Welcome;
  #rings: { producer: RingProducer; consumer: RingConsumer; words: Uint32Array } | undefined;
  #unsent: Uint8Array[] = [];
  /** True: the ring is not read. */
  #paused = false;
  readonly #handler: PeerHandler;

  constructor(control: Fd, messenger: Messenger, packet: Hello, agreed: Welcome, handler: PeerHandler) {
    this.#control = this.scope.own(control);
    this.#messenger = messenger;
    this.hello = packet;
    this.#agreed = agreed;
    this.#handler = handler;
    const [mine, theirs] = socketPair();
    this.#doorbell = this.scope.own(mine);
    this.theirs = this.scope.own(theirs);
    const watch = new LoopPoller().watch(mine.number, () => {
      if (drainDoorbell(mine.number, 64) === 'closed') watch.pause();
      this.#flush();
      if (!this.#paused) this.drain();
    });
    this.scope.own(watch);
  }

  /** The guest's end of the doorbell. */
  readonly theirs: Fd;
  /** Takes what waits on the control socket. */
  readControl: () => void = () => {};

  openRings(packet: Decoded<typeof rings>, fd: Fd): void {
    const part = (offset: bigint, bytes: number) =>
      this.scope.own(Mapping.map(fd.number, Number(offset), bytes, { writable: true })).bytes;
    const sleepWords = (this.#agreed.features & 1) !== 0;
    const toGuest = part(packet.toGuestOffset, packet.toGuestBytes);
    this.#rings = {
      consumer: new RingConsumer(
        part(packet.toServiceOffset, packet.toServiceBytes),
        this.#agreed.slotSize,
        sleepWords,
      ),
      producer: new RingProducer(toGuest, this.#agreed.slotSize, sleepWords),
      words: new Uint32Array(toGuest.buffer, toGuest.byteOffset, 32),
    };
    fd.close();
  }

  /** Stops or goes on reading what the guest sends. */
  pause(paused: boolean): void {
    this.#paused = paused;
    if (!paused) this.drain();
  }

  /** Handles what the guest has sent. */
  drain(): void {
    const slot = new Uint8Array(this.#agreed.slotSize);
    while (!this.scope.closed && this.#rings !== undefined) {
      const result = this.#rings.consumer.pop(slot);
      if (result === 'broken') throw new Error('the guest broke the ring');
      if (result === 'empty') {
        if (this.#rings.consumer.release()) ringDoorbell(this.#doorbell.number);
        if (this.#rings.consumer.sleep()) return;
      } else {
        // Descriptors come before the message that names them, on another socket.
        this.readControl();
        this.#receive(slot);
      }
    }
  }

  #receive(slot: Uint8Array): void {
    const header = mustDecode(messageHeader, slot.subarray(0, headerBytes));
    const message = dialectD5.decode(slot, header);
    if (message instanceof Malformed) throw new Error(`the guest sent: ${message.reason}`);
    this.#handler(message, header, this);
  }

  /** Answers the request of `header`. */
  respond(header: MessageHeader, name: string, body: object): void {
    this.send({ kind: 'response', name, body } as never, header.deviceNumber, header.token);
  }

  send(message: CanonicalMessage, device: number, token = 0): void {
    const frame = new Uint8Array(dialectD5.encodedLength(message));
    dialectD5.encode(message, device, token, frame);
    this.sendRaw(frame);
  }

  /** Sends any bytes, at most a slot of them. */
  sendRaw(frame: Uint8Array): void {
    this.#unsent.push(frame);
    this.#flush();
  }

  #flush(): void {
    if (this.#rings === undefined || this.scope.closed) return;
    while (this.#unsent[0] !== undefined && this.#rings.producer.push(this.#unsent[0]) === 'pushed') {
      this.#unsent.shift();
    }
    if (this.#rings.producer.publish()) ringDoorbell(this.#doorbell.number);
  }

  /** Writes a head index that no correct producer writes. */
  breakRing(): void {
    if (this.#rings !== undefined) this.#rings.words[0] = 0xffff_ffff;
    ringDoorbell(this.#doorbell.number);
  }

  sendPacket(bytes: Uint8Array, fds: readonly number[] = []): void {
    this.#messenger.send(this.#control.number, bytes, fds);
  }

  refuse(errno: number, reason: string): void {
    this.sendPacket(refusalPacket(errno, reason));
  }

  close(): void {
    for (const fd of this.fds.values()) fd.close();
    this.fds.clear();
    this.scope.close();
  }
}

function refusalPacket(errno: number, reason: string): Uint8Array {
  const text = new TextEncoder().encode(reason);
  const bytes = new Uint8Array(refused.size + text.length);
  encode(refused, { ...headOf(packetType.refused), errno, reasonLength: text.length, reason: text }, bytes);
  return bytes;
}

/**
 * The service side of a loopback bus for tests, on a real socket: it shakes hands as told, and passes what the guest
 * sends to a handler that may answer truthfully or not.
 */
export class GuestPeer {
  readonly path: string;
  /** Handles messages; may be replaced at any time. */
  handler: PeerHandler;
  connection: PeerConnection | undefined;
  connections = 0;
  readonly #directory = mkdtempSync(join(tmpdir(), 'vmsg-peer-'));
  readonly #scope = new Scope();
  readonly #messenger = this.#scope.own(new Messenger(512, 8));
  readonly #poller = new LoopPoller();
  #options: PeerOptions;
  #listening: Scope | undefined;

  constructor(handler: PeerHandler, options: PeerOptions = {}) {
    this.path = join(this.#directory, 'bus');
    this.handler = handler;
    this.#options = options;
    this.listen();
  }

  /** Changes how the next connections are answered. */
  set options(options: PeerOptions) {
    this.#options = options;
  }

  listen(): void {
    const scope = new Scope();
    const listener = scope.own(UnixListener.listen(this.path, { mode: 0o600, backlog: 4 }));
    const watch = this.#poller.watch(listener.fd.number, () => {
      const socket = listener.accept();
      if (socket !== undefined) this.#accept(socket);
    });
    scope.own(watch);
    this.#listening = scope;
  }

  /** As a service that was killed: nobody listens, and the connection ends. */
  die(): void {
    this.#listening?.close();
    this.connection?.close();
    this.connection = undefined;
  }

  #accept(socket: Fd): void {
    let connection: PeerConnection | undefined;
    const read = (): void => {
      if (socket.closed) return;
      const received = this.#messenger.receive(socket.number);
      if (received === 'empty') return;
      if (received === 'closed') {
        watch.close();
        connection?.close();
        socket.close();
        return;
      }
      const { type } = mustDecode(packetHead, received.bytes.subarray(0, packetHead.size));
      if (type !== packetType.hello) this.#packet(type, received.bytes, received.fds);
      else connection = this.#hello(socket, mustDecode(hello, received.bytes), () => watch.close());
      if (connection !== undefined) connection.readControl = read;
    };
    const watch = this.#poller.watch(socket.number, read);
    this.#scope.own(watch);
  }

  #packet(type: number, bytes: Uint8Array, fds: readonly Fd[]): void {
    if (type === packetType.rings) this.#ringsPacket(mustDecode(rings, bytes), fds[0]!);
    else {
      const { first } = mustDecode(descriptors, bytes);
      for (const [i, fd] of fds.entries()) this.connection?.fds.set(first + i, fd);
    }
  }

  #hello(socket: Fd, packet: Hello, unwatch: () => void): PeerConnection | undefined {
    const answer = this.#options.onHello?.(packet) ?? { fields: {} };
    if (answer === 'silent') {
      this.#scope.own(socket);
      return undefined;
    }
    if (!('fields' in answer)) {
      const bytes = 'bytes' in answer ? answer.bytes : refusalPacket(answer.errno, answer.reason);
      this.#messenger.send(socket.number, bytes);
      unwatch();
      socket.close();
      return undefined;
    }
    this.connections += 1;
    const agreed = { ...this.#welcome(packet), ...answer.fields };
    const dispatch: PeerHandler = (message, header, connection) => this.handler(message, header, connection);
    const connection = new PeerConnection(socket, this.#messenger, packet, agreed, dispatch);
    connection.scope.defer(unwatch);
    this.connection?.close();
    this.connection = connection;
    const bytes = new Uint8Array(welcome.size);
    encode(welcome, agreed, bytes);
    connection.sendPacket(bytes, answer.withoutDoorbell ? [] : [connection.theirs.number]);
    connection.theirs.close();
    return connection;
  }

  #welcome(packet: Hello): Welcome {
    const size = Math.min(packet.maxMessageSize, this.#options.maxMessageSize ?? 64);
    return {
      ...headOf(packetType.welcome),
      features: packet.features,
      dialect: 5,
      maxMessageSize: size,
      slotSize: Math.max(64, (size + 7) & ~7),
      ringMaxBytes: this.#options.ringMaxBytes ?? 65536,
      revision: 1,
      transportFeatures: 0,
      epoch: BigInt(this.connections),
      token: new Uint8Array(16).fill(this.connections),
      domid: 7,
      flags: 0,
    };
  }

  #ringsPacket(packet: Decoded<typeof rings>, fd: Fd): void {
    this.connection?.openRings(packet, fd);
    const then = this.#options.afterRings ?? 'ready';
    if (then === 'close') this.connection?.close();
    if (then !== 'ready') return;
    const bytes = new Uint8Array(ready.size);
    encode(ready, headOf(packetType.ready), bytes);
    this.connection?.sendPacket(bytes);
    this.connection?.drain();
  }

  close(): void {
    this.die();
    this.#scope.close();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
