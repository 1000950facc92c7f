import assert from 'node:assert/strict';
import { type GuestBuffer, type GuestBus, VirtioDevice, type VirtQueue } from '../../src/guest/index.ts';
import { Slots } from '../../src/guest/slots.ts';
import { deviceIdOf } from '../../src/virtio/device-ids.ts';
import { readU64 } from '../../src/wire/bytes.ts';
import { type Decoded, decode, encode, layout, Malformed, u16, u32, u64 } from '../../src/wire/layout.ts';

const vsockHeader = layout('virtio_vsock_hdr', 'virtio 1.3, 5.10.6', 44, {
  srcCid: u64(0, 'sender'),
  dstCid: u64(8, 'receiver'),
  srcPort: u32(16, 'of the sender'),
  dstPort: u32(20, 'of the receiver'),
  len: u32(24, 'bytes behind the header'),
  type: u16(28, '1: a stream'),
  op: u16(30, 'what it is'),
  flags: u32(32, 'of SHUTDOWN: 1 receives no more, 2 sends no more'),
  bufAlloc: u32(36, 'bytes that the sender keeps for this connection'),
  fwdCnt: u32(40, 'bytes that the sender has passed on, modulo 2^32'),
});
type Header = Decoded<typeof vsockHeader>;

const vsockOp = {
  REQUEST: 1,
  RESPONSE: 2,
  RST: 3,
  SHUTDOWN: 4,
  RW: 5,
  CREDIT_UPDATE: 6,
  CREDIT_REQUEST: 7,
} as const;

/** What a host is for its guests. */
const hostCid = 2n;
const stream = 1;
const noMoreAtAll = 3;
const receiveBuffers = 16;
const packetBytes = 4096;
const sendBuffers = 4;
/** What we let a host send before we have taken it. */
const ownWindowBytes = 32 * 1024;

/** One connection, from the guest's side. */
export class VsockStream {
  readonly ports: { readonly local: number; readonly remote: number };
  readonly #guest: VsockGuest;
  #received: Uint8Array[] = [];
  #receivedBytes = 0;
  #passedOn = 0;
  #toldPassedOn = 0;
  #sent = 0;
  #peerAlloc = 0;
  #peerForwarded = 0;
  /** The host has said that it sends no more, or has ended it. */
  #ended = false;
  #reset = false;
  #open = false;
  #error: Error | undefined;
  #wake: (() => void)[] = [];
  /** How often it had to wait for room at the other side. */
  creditWaits = 0;

  constructor(guest: VsockGuest, local: number, remote: number) {
    this.#guest = guest;
    this.ports = { local, remote };
  }

  fail(error: Error): void {
    this.#error = error;
    this.#changed();
  }

  #changed(): void {
    for (const wake of this.#wake.splice(0)) wake();
  }

  async #until(isSo: () => boolean): Promise<void> {
    while (!isSo()) {
      if (this.#error !== undefined) throw this.#error;
      await new Promise<void>((resolve) => this.#wake.push(resolve));
    }
  }

  async #packet(op: number, data: Uint8Array = new Uint8Array(0), flags = 0): Promise<void> {
    const { local, remote } = this.ports;
    this.#toldPassedOn = this.#passedOn;
    const credit = { bufAlloc: ownWindowBytes, fwdCnt: this.#passedOn >>> 0 };
    await this.#guest.send({ srcPort: local, dstPort: remote, op, flags, ...credit }, data);
  }

  onPacket(header: Header, data: Uint8Array): void {
    this.#peerAlloc = header.bufAlloc;
    this.#peerForwarded = header.fwdCnt;
    if (header.op === vsockOp.RESPONSE) this.#open = true;
    if (header.op === vsockOp.RW) {
      this.#received.push(data);
      this.#receivedBytes += data.length;
      assert.ok(this.#receivedBytes <= ownWindowBytes, 'a host sends no more than there is room for');
    }
    if (header.op === vsockOp.CREDIT_REQUEST) this.#packet(vsockOp.CREDIT_UPDATE).catch(() => {});
    if (header.op === vsockOp.SHUTDOWN && (header.flags & 2) !== 0) this.#ended = true;
    if (header.op === vsockOp.RST) {
      this.#ended = true;
      this.#reset = true;
    }
    this.#changed();
  }

  async connect(): Promise<void> {
    await this.#packet(vsockOp.REQUEST);
    await this.#until(() => this.#open || this.#reset);
    if (!this.#open) throw new Error('the host refuses the connection');
  }

  async accept(): Promise<void> {
    this.#open = true;
    await this.#packet(vsockOp.RESPONSE);
  }

  get #credit(): number {
    return this.#peerAlloc - ((this.#sent - this.#peerForwarded) >>> 0);
  }

  async write(data: Uint8Array): Promise<void> {
    for (let at = 0; at < data.length; ) {
      if (this.#credit <= 0) {
        this.creditWaits += 1;
        this.#changed();
      }
      await this.#until(() => this.#credit > 0 || this.#reset);
      if (this.#reset) throw new Error('the host has ended the connection');
      const part = data.subarray(at, at + Math.min(packetBytes, this.#credit));
      this.#sent = (this.#sent + part.length) >>> 0;
      at += part.length;
      await this.#packet(vsockOp.RW, part);
    }
  }

  /** Until `write` has had to wait for room so many times. */
  async waited(times: number): Promise<void> {
    await this.#until(() => this.creditWaits >= times);
  }

  /** What has come, at least one byte. @returns undefined when the host sends no more */
  async read(): Promise<Uint8Array | undefined> {
    await this.#until(() => this.#received.length > 0 || this.#ended);
    const data = this.#received.shift();
    if (data === undefined) return undefined;
    this.#receivedBytes -= data.length;
    this.#passedOn = (this.#passedOn + data.length) >>> 0;
    const told = (this.#passedOn - this.#toldPassedOn) >>> 0;
    if (told >= ownWindowBytes / 2 && !this.#ended) await this.#packet(vsockOp.CREDIT_UPDATE);
    return data;
  }

  async readAll(bytes: number): Promise<Uint8Array> {
    const parts: Uint8Array[] = [];
    for (let missing = bytes; missing > 0; ) {
      const part = await this.read();
      if (part === undefined) throw new Error(`the host ended ${missing} bytes early`);
      parts.push(part);
      missing -= part.length;
    }
    return new Uint8Array(Buffer.concat(parts));
  }

  /** Says that nothing more will come or be taken, and waits until the host has let go. */
  async end(): Promise<void> {
    await this.#packet(vsockOp.SHUTDOWN, undefined, noMoreAtAll);
    await this.#until(() => this.#reset);
    this.#guest.forget(this);
  }

  /** Answers the host's own end. */
  async acknowledgeEnd(): Promise<void> {
    await this.#until(() => this.#ended);
    if (!this.#reset) await this.#packet(vsockOp.RST);
    this.#guest.forget(this);
  }
}

/** Uses a socket device as the kernel of a guest does (virtio 1.3, 5.10). For tests. */
export class VsockGuest {
  readonly device: VirtioDevice;
  cid = 0n;
  /** What is wrong with what came. */
  problem: unknown;
  /** Rejects when the device has gone. */
  readonly failed: Promise<never>;
  readonly #receive: VirtQueue;
  readonly #transmit: VirtQueue;
  readonly #slots: Slots<GuestBuffer>;
  readonly #streams = new Set<VsockStream>();
  readonly #listeners = new Map<number, (stream: VsockStream) => void>();
  #nextPort = 1024;

  private constructor(device: VirtioDevice, receive: VirtQueue, transmit: VirtQueue) {
    this.device = device;
    this.#receive = receive;
    this.#transmit = transmit;
    this.#slots = new Slots(Array.from({ length: sendBuffers }, () => device.alloc(vsockHeader.size + packetBytes)));
    this.failed = new Promise((_, reject) => {
      device.on('failed', (error) => {
        this.#slots.end(error);
        for (const each of this.#streams) each.fail(error);
        reject(error);
      });
    });
    this.failed.catch(() => {});
    for (let i = 0; i < receiveBuffers; i++) void this.#receiveInto(device.alloc(vsockHeader.size + packetBytes));
  }

  static async open(bus: GuestBus, number: number): Promise<VsockGuest> {
    const device = await VirtioDevice.open(bus, number, { type: deviceIdOf('vsock')! });
    try {
      const receive = await device.addQueue(0);
      const transmit = await device.addQueue(1);
      await device.addQueue(2);
      await device.start();
      const guest = new VsockGuest(device, receive, transmit);
      guest.cid = readU64(await device.config.read(0, 8), 0);
      return guest;
    } catch (error) {
      await device.close();
      throw error;
    }
  }

  async #receiveInto(buffer: GuestBuffer): Promise<void> {
    const parts = [buffer.range(0, vsockHeader.size), buffer.range(vsockHeader.size, packetBytes)];
    try {
      for (;;) {
        const written = await this.#receive.submit([], parts);
        try {
          this.#take(buffer.bytes.slice(0, written));
        } catch (error) {
          this.problem ??= error;
        }
      }
    } catch {
      // The device has gone, which its owner knows.
    }
  }

  #take(bytes: Uint8Array): void {
    const header = decode(vsockHeader, bytes, 0, bytes.length, 'ignore');
    assert.ok(!(header instanceof Malformed), 'a packet has a header');
    assert.equal(header.len, bytes.length - vsockHeader.size);
    assert.deepEqual([header.srcCid, header.dstCid, header.type], [hostCid, this.cid, stream]);
    const { srcPort: remote, dstPort: local } = header;
    const found = [...this.#streams].find(({ ports }) => ports.local === local && ports.remote === remote);
    if (found !== undefined) {
      found.onPacket(header, bytes.subarray(vsockHeader.size));
      return;
    }
    const listener = header.op === vsockOp.REQUEST ? this.#listeners.get(local) : undefined;
    if (listener !== undefined) {
      const accepted = new VsockStream(this, local, remote);
      this.#streams.add(accepted);
      accepted.onPacket(header, new Uint8Array(0));
      accepted.accept().then(
        () => listener(accepted),
        () => {},
      );
    } else if (header.op !== vsockOp.RST) {
      const reset = { srcPort: local, dstPort: remote, op: vsockOp.RST, flags: 0, bufAlloc: 0, fwdCnt: 0 };
      this.send(reset, new Uint8Array(0)).catch(() => {});
    }
  }

  forget(ended: VsockStream): void {
    this.#streams.delete(ended);
  }

  /** For `VsockStream`. */
  async send(part: Omit<Header, 'srcCid' | 'dstCid' | 'len' | 'type'>, data: Uint8Array): Promise<void> {
    const slot = await this.#slots.take();
    const header = { srcCid: this.cid, dstCid: hostCid, len: data.length, type: stream, ...part };
    encode(vsockHeader, header, slot.bytes);
    slot.bytes.set(data, vsockHeader.size);
    const body = data.length === 0 ? [] : [slot.range(vsockHeader.size, data.length)];
    try {
      await this.#transmit.submit([slot.range(0, vsockHeader.size), ...body], []);
    } finally {
      this.#slots.give(slot);
    }
  }

  /** A connection to a port of the host. @throws Error when it is refused */
  async connect(port: number): Promise<VsockStream> {
    this.#nextPort += 1;
    const made = new VsockStream(this, this.#nextPort, port);
    this.#streams.add(made);
    await made.connect();
    return made;
  }

  /** The next connection of the host to a port of ours. */
  accept(port: number): Promise<VsockStream> {
    return new Promise((resolve) => {
      this.#listeners.set(port, (accepted) => {
        this.#listeners.delete(port);
        resolve(accepted);
      });
    });
  }

  close(): Promise<void> {
    return this.device.close();
  }
}
