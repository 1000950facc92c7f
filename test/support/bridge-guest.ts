import assert from 'node:assert/strict';
import { ringDoorbell } from '../../src/libc/doorbell.ts';
import { Fd } from '../../src/libc/fd.ts';
import { Mapping } from '../../src/libc/mapping.ts';
import { createMemfd } from '../../src/libc/memfd.ts';
import { Messenger, type Received } from '../../src/libc/messenger.ts';
import { connectUnix } from '../../src/libc/unix-socket.ts';
import { FeatureSet } from '../../src/virtio/features.ts';
import { openDriverQueue, type RingDriverQueue } from '../../src/virtio/rings.ts';
import { splitRingBytes } from '../../src/virtio/split/ring.ts';
import type { BusRequest, BusResponse } from '../../src/virtio-msg/bus-messages.ts';
import { type CanonicalMessage, dialectD5 } from '../../src/virtio-msg/dialect.ts';
import { headerSize } from '../../src/virtio-msg/header.ts';
import {
  descriptors,
  type Hello,
  headOf,
  hello,
  packetHead,
  packetType,
  type Rings,
  refused,
  rings,
  type Welcome,
  welcome,
} from '../../src/virtio-msg/loopback-handshake.ts';
import { RingConsumer, RingProducer } from '../../src/virtio-msg/ring.ts';
import type { TransportRequest, TransportResponse } from '../../src/virtio-msg/transport-messages.ts';
import { type Decoded, decode, encode, type Layout } from '../../src/wire/layout.ts';
import { needed, parseFrame, type Seen } from './bridge-bench.ts';

const waitMs = 15_000;

/** Repeats until there is a value; for what happens on another thread or in a later turn. */
export async function until<T>(what: string, look: () => T | undefined | false): Promise<T> {
  for (const end = performance.now() + waitMs; ; ) {
    const found = look();
    if (found !== undefined && found !== false) return found;
    assert.ok(performance.now() < end, `in time: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

export const goodHello: Hello = {
  ...headOf(packetType.hello),
  features: 3,
  dialects: 1 << 5,
  maxMessageSize: 264,
  role: 0,
  reserved: 0,
  resumeEpoch: 0n,
  resumeToken: new Uint8Array(16),
};

const ringBytes = 4096;
export const goodRings: Rings = {
  ...headOf(packetType.rings),
  toServiceOffset: 0n,
  toGuestOffset: 4096n,
  toServiceBytes: ringBytes,
  toGuestBytes: ringBytes,
  reserved: 0n,
};
export const ringMemoryBytes = 8192;

export function packet<L extends Layout>(layout: L, value: Decoded<L>, tailBytes = 0): Uint8Array {
  const bytes = new Uint8Array(layout.size + tailBytes);
  encode(layout, value, bytes);
  return bytes;
}

type RequestName = (TransportRequest | BusRequest)['name'];
type RequestBody<N> = Extract<TransportRequest | BusRequest, { name: N }>['body'];
type ResponseBody<N> = Extract<TransportResponse | BusResponse, { name: N }>['body'];

/** A guest made by hand from the protocol document: it can also do everything wrong. */
export class RawGuest {
  readonly socket: Fd;
  readonly #messenger = new Messenger(4096, 16);
  readonly #open: { close(): void }[] = [];
  readonly seen: Seen[] = [];
  #terms: Welcome | undefined;
  #doorbell: Fd | undefined;
  #words: Uint32Array | undefined;
  #producer: RingProducer | undefined;
  #consumer: RingConsumer | undefined;
  #slot = new Uint8Array(0);
  #token = 1;
  #nextDescriptor = 0;

  constructor(path: string) {
    const socket = connectUnix(path);
    assert.ok(socket instanceof Fd, `connected, not ${String(socket)}`);
    this.socket = socket;
  }

  get terms(): Welcome {
    assert.ok(this.#terms !== undefined);
    return this.#terms;
  }

  own<T extends { close(): void }>(resource: T): T {
    this.#open.push(resource);
    return resource;
  }

  send(bytes: Uint8Array, fds: readonly number[] = []): void {
    this.#messenger.send(this.socket.number, bytes, fds);
  }

  /** The next packet, or 'closed'. The descriptors belong to the guest. */
  async receive(): Promise<Received | 'closed'> {
    const received = await until('a packet', () => {
      const result = this.#messenger.receive(this.socket.number);
      return result === 'empty' ? undefined : result;
    });
    if (received !== 'closed') for (const fd of received.fds) this.own(fd);
    return received;
  }

  async #expect<L extends Layout>(layout: L): Promise<Decoded<L>> {
    const received = await this.receive();
    assert.ok(received !== 'closed', `${layout.name}, not the end`);
    const value = decode(layout, received.bytes, 0, received.bytes.length);
    assert.ok('version' in (value as object), `a ${layout.name}`);
    return value as Decoded<L>;
  }

  /** The service says why it refuses, and closes. @returns errno and reason */
  async refusal(): Promise<{ errno: number; reason: string }> {
    const value = (await this.#expect(refused as Layout)) as unknown as Decoded<typeof refused>;
    assert.equal(value.type, packetType.refused);
    assert.equal(await this.receive(), 'closed');
    return { errno: value.errno, reason: new TextDecoder().decode(value.reason) };
  }

  async hello(changes: Partial<Hello> = {}): Promise<Welcome> {
    this.send(packet(hello as Layout, { ...goodHello, ...changes } as never));
    const received = await this.receive();
    assert.ok(received !== 'closed' && received.fds.length === 1, 'WELCOME comes with the doorbell');
    this.#doorbell = received.fds[0]!;
    const value = decode(welcome, received.bytes, 0, received.bytes.length) as Welcome;
    assert.equal(value.type, packetType.welcome);
    this.#terms = value;
    return value;
  }

  /** Offers rings, without waiting for the answer. @param fd the ring memory; a good one by default */
  offerRings(changes: Partial<Rings> = {}, fd?: Fd): void {
    const memory = fd ?? this.own(createMemfd('rings', ringMemoryBytes));
    if (fd === undefined) this.#openRings(memory);
    this.send(packet(rings as Layout, { ...goodRings, ...changes } as never), [memory.number]);
  }

  #openRings(memory: Fd): void {
    const mapping = this.own(Mapping.map(memory.number, 0, ringMemoryBytes, { writable: true }));
    const slot = this.terms.slotSize;
    this.#slot = new Uint8Array(slot);
    this.#words = new Uint32Array(mapping.bytes.buffer, 0, ringMemoryBytes / 4);
    this.#producer = new RingProducer(mapping.bytes.subarray(0, ringBytes), slot, true);
    this.#consumer = new RingConsumer(mapping.bytes.subarray(4096, 4096 + ringBytes), slot, true);
  }

  async handshake(changes: Partial<Hello> = {}): Promise<Welcome> {
    const terms = await this.hello(changes);
    this.offerRings();
    const value = await this.#expect(packetHead as Layout);
    assert.equal((value as { type?: number }).type, packetType.ready);
    return terms;
  }

  /** The index words of both rings, to write nonsense into. */
  get ringWords(): Uint32Array {
    return this.#words!;
  }

  ring(): void {
    ringDoorbell(this.#doorbell!.number);
  }

  get doorbell(): Fd {
    return this.#doorbell!;
  }

  async postRaw(frame: Uint8Array): Promise<void> {
    await until('room in the ring', () => this.#producer!.push(frame) === 'pushed');
    if (this.#producer!.publish()) this.ring();
  }

  post(message: CanonicalMessage, device = 0, token = 0): Promise<void> {
    const frame = new Uint8Array(dialectD5.encodedLength(message));
    dialectD5.encode(message, device, token, frame);
    return this.postRaw(frame);
  }

  /** Takes what is in the ring; it ends up in `seen`. */
  poll(): void {
    while (this.#consumer!.pop(this.#slot) === 'message') {
      this.seen.push(parseFrame(this.#slot.slice(0, headerSize(this.#slot))));
    }
    if (this.#consumer!.release()) this.ring();
  }

  /** Waits for an event, and takes it. */
  event(name: string): Promise<Seen> {
    return until(name, () => {
      this.poll();
      const at = this.seen.findIndex((message) => message.kind === 'event' && message.name === name);
      return at < 0 ? undefined : this.seen.splice(at, 1)[0];
    });
  }

  async ask<N extends RequestName>(name: N, body: RequestBody<N>, device = 0): Promise<ResponseBody<N>> {
    this.#token = (this.#token + 1) & 0xffff;
    const token = this.#token;
    await this.post({ kind: 'request', name, body } as unknown as CanonicalMessage, device, token);
    const found = await until(`the response to ${name}`, () => {
      this.poll();
      const at = this.seen.findIndex((message) => message.kind === 'response' && message.header.token === token);
      return at < 0 ? undefined : this.seen.splice(at, 1)[0];
    });
    assert.equal(found.name, name);
    return found.body as ResponseBody<N>;
  }

  /** Sends descriptors. @returns the index of the first */
  give(...fds: readonly Fd[]): number {
    const first = this.#nextDescriptor;
    this.#nextDescriptor += fds.length;
    const value = { ...headOf(packetType.descriptors), first, count: fds.length };
    this.send(
      packet(descriptors as Layout, value as never),
      fds.map((fd) => fd.number),
    );
    return first;
  }

  /** Shares new memory. */
  async addRegion(area: number, length = 65536): Promise<{ memory: Mapping; fd: Fd }> {
    const fd = this.own(createMemfd('region', length));
    const memory = this.own(Mapping.map(fd.number, 0, length, { writable: true }));
    await this.shareRegion(area, fd, length);
    return { memory, fd };
  }

  async shareRegion(area: number, fd: Fd, length = 65536): Promise<void> {
    const reference = this.give(fd);
    const body = { peer: 0, area, flags: 0, reference, domain: 0, offset: 0n, length: BigInt(length) };
    assert.equal((await this.ask('REGION_ADD', body)).errno, 0);
  }

  /** From reset to DRIVER_OK with queue 0 at the start of an area. */
  async start(device: number, area: number, memory: Mapping, size = 8): Promise<RingDriverQueue> {
    const set = async (value: number): Promise<void> => {
      assert.equal((await this.ask('SET_DEVICE_STATUS', { status: value }, device)).status, value);
    };
    await set(3);
    const features = FeatureSet.of(...needed);
    await this.ask('SET_DRIVER_FEATURES', { blockIndex: 0, blockCount: 2, blocks: features.toBlocks(2) }, device);
    await set(11);
    const bytes = splitRingBytes(size);
    const at = (offset: number): bigint => (BigInt(area) << 48n) | BigInt(offset);
    const [driverAt, deviceAt] = [4096, 8192];
    const addresses = { descAddr: at(0), driverAddr: at(driverAt), deviceAddr: at(deviceAt) };
    await this.ask('SET_VQUEUE', { index: 0, flags: 1, size, reserved: 0, ...addresses }, device);
    await set(15);
    return openDriverQueue({
      size,
      features,
      ...addresses,
      memory: {
        desc: memory.bytes.subarray(0, bytes.desc),
        driver: memory.bytes.subarray(driverAt, driverAt + bytes.driver),
        device: memory.bytes.subarray(deviceAt, deviceAt + bytes.device),
      },
    });
  }

  /** What a process that dies leaves: everything is closed. */
  close(): void {
    this.socket.close();
    for (const resource of this.#open.reverse()) resource.close();
    this.#messenger.close();
  }
}
