import { BoundedQueue } from '../kit/bounded-queue.ts';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { GuestBuffer } from './buffer.ts';
import { Emitter } from './emitter.ts';
import type { VirtQueue } from './queue.ts';
import { Slots } from './slots.ts';

export interface ConsolePortEvents {
  /** A program of the host connected. */
  hostOpened: { readonly port: number };
  /** It is gone. What it had sent before comes first from `read`. */
  hostClosed: { readonly port: number };
  /** The device told the name of the port. */
  named: { readonly name: string };
}

export interface ConsolePortParts {
  readonly id: number;
  readonly receive: VirtQueue;
  readonly transmit: VirtQueue;
  /** A buffer for each direction and number. */
  readonly memory: readonly GuestBuffer[];
  /** Buffers for each direction. */
  readonly buffers: number;
  readonly bufferBytes: number;
  /** Tells the device that our side is open or closed; undefined without MULTIPORT, where it always is open. */
  readonly tellOpen: ((open: boolean) => Promise<void>) | undefined;
}

type Received = { readonly buffer: GuestBuffer; readonly length: number } | 'end';

interface Waiter<T> {
  readonly resolve: (value: T) => void;
  readonly reject: (error: Error) => void;
}

/**
 * One stream of bytes of a console device. Nothing is buffered but what lies in the receive buffers: a program that
 * does not read makes the host wait, and `write` waits for the host.
 */
export class ConsolePort extends Emitter<ConsolePortEvents> {
  readonly id: number;
  readonly #parts: ConsolePortParts;
  readonly #slots: Slots<GuestBuffer>;
  /** An end follows data or nothing, never another end: at most twice as many as buffers, and one. */
  readonly #received: BoundedQueue<Received>;
  #reader: Waiter<Uint8Array | null> | undefined;
  #openWaiters: Waiter<void>[] = [];
  #endLast = false;
  #name = '';
  #console: boolean;
  #hostOpen: boolean;
  #open: boolean;
  #failure: VmsgError | undefined;
  /** Resolved when the writes before have handed over all their bytes. */
  #turn: Promise<void> = Promise.resolve();
  #writes = 0;

  constructor(parts: ConsolePortParts) {
    super();
    this.id = parts.id;
    this.#parts = parts;
    const { buffers, memory } = parts;
    const single = parts.tellOpen === undefined;
    this.#console = single;
    this.#hostOpen = single;
    this.#open = single;
    this.#slots = new Slots(memory.slice(0, buffers));
    this.#received = new BoundedQueue(2 * buffers + 1);
    for (const buffer of memory.slice(buffers)) this.#offer(buffer);
  }

  /** As the device says; empty while it has not. */
  get name(): string {
    return this.#name;
  }

  /** Whether it is a console, for a person. */
  get isConsole(): boolean {
    return this.#console;
  }

  /** Whether a program of the host is connected; true where the device cannot tell. */
  get hostOpen(): boolean {
    return this.#hostOpen;
  }

  /** Whether this side is open. */
  get isOpen(): boolean {
    return this.#open;
  }

  /** Opens this side: the host may send. Without MULTIPORT a port is open all the time. */
  async open(): Promise<void> {
    this.#mustWork();
    if (this.#open) return;
    this.#open = true;
    await this.#parts.tellOpen?.(true);
  }

  /** Closes this side: the host program meets the end. A pending `read` gives null, what was not read is dropped. */
  async close(): Promise<void> {
    const { tellOpen } = this.#parts;
    if (!this.#open || tellOpen === undefined || this.#failure !== undefined) return;
    this.#open = false;
    this.#dropReceived();
    this.#reader?.resolve(null);
    this.#reader = undefined;
    await tellOpen(false);
  }

  #dropReceived(): void {
    for (let item = this.#received.shift(); item !== undefined; item = this.#received.shift()) {
      if (item !== 'end') this.#offer(item.buffer);
    }
    this.#endLast = false;
  }

  #mustWork(): void {
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** Gives the device a receive buffer. */
  #offer(buffer: GuestBuffer): void {
    this.#parts.receive.submit([], [buffer]).then(
      (length) => this.#onBytes(buffer, length),
      () => {
        // The device has failed, and says so by itself.
      },
    );
  }

  #onBytes(buffer: GuestBuffer, length: number): void {
    if (this.#failure !== undefined) return;
    if (!this.#open || length === 0) this.#offer(buffer);
    else this.#push({ buffer, length });
  }

  #push(item: Received): void {
    const reader = this.#reader;
    this.#endLast = item === 'end' && reader === undefined;
    if (reader === undefined) {
      this.#received.push(item);
      return;
    }
    this.#reader = undefined;
    reader.resolve(this.#take(item));
  }

  #take(item: Received): Uint8Array | null {
    if (item === 'end') return null;
    const bytes = new Uint8Array(item.buffer.bytes.subarray(0, item.length));
    this.#offer(item.buffer);
    return bytes;
  }

  /**
   * The next bytes of the host, as many as came together; null when its program has gone and everything it sent was
   * read, or when this side is closed. One call at a time.
   * @throws VmsgError 'in-use' while another read waits; 'device-failed', 'not-found' or 'bus-lost'
   */
  async read(): Promise<Uint8Array | null> {
    this.#mustWork();
    if (!this.#open) return null;
    if (this.#reader !== undefined) throw new VmsgError('in-use', `port ${this.id} has a reader already`);
    const item = this.#received.shift();
    if (item !== undefined) {
      if (this.#received.length === 0) this.#endLast = false;
      return this.#take(item);
    }
    return await new Promise((resolve, reject) => {
      this.#reader = { resolve, reject };
    });
  }

  /** Reads until the host closes its side, or this side is closed. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array, void, void> {
    for (let bytes = await this.read(); bytes !== null; bytes = await this.read()) yield bytes;
  }

  /**
   * Writes in the order of the calls. Resolves when the device has taken all bytes: a host program that does not read
   * makes it wait. While `hostOpen` is false the device takes them and nobody gets them.
   * @throws VmsgError 'limit-reached' when too many writes wait; 'device-failed', 'not-found' or 'bus-lost'
   */
  async write(bytes: Uint8Array): Promise<void> {
    this.#mustWork();
    if (this.#writes >= limits.guestQueueWaiters) {
      throw new VmsgError('limit-reached', `${this.#writes} writes wait for port ${this.id}`);
    }
    this.#writes += 1;
    const before = this.#turn;
    let handedOver = (): void => {};
    this.#turn = new Promise((resolve) => {
      handedOver = resolve;
    });
    const pending = new Set<Promise<void>>();
    try {
      await before;
      const most = this.#parts.bufferBytes;
      for (let at = 0; at < bytes.length; at += most) {
        const slot = await this.#slots.take();
        const sent: Promise<void> = this.#send(slot, bytes.subarray(at, at + most)).then(() => {
          pending.delete(sent);
        });
        // Awaited below, but it may fail before that.
        sent.catch(() => {});
        pending.add(sent);
      }
      handedOver();
      await Promise.all(pending);
    } finally {
      handedOver();
      this.#writes -= 1;
    }
  }

  async #send(slot: GuestBuffer, bytes: Uint8Array): Promise<void> {
    slot.bytes.set(bytes);
    await this.#parts.transmit.submit([slot.range(0, bytes.length)], []);
    this.#slots.give(slot);
  }

  /** Resolves when a program of the host is connected. @throws VmsgError when the device is gone */
  async untilHostOpen(): Promise<void> {
    this.#mustWork();
    if (this.#hostOpen) return;
    if (this.#openWaiters.length >= limits.guestQueueWaiters) throw new VmsgError('limit-reached', 'too many wait');
    await new Promise<void>((resolve, reject) => this.#openWaiters.push({ resolve, reject }));
  }

  /** For the driver: the device says that the host side is open or closed. */
  setHostOpen(open: boolean): void {
    if (this.#hostOpen === open || this.#failure !== undefined) return;
    this.#hostOpen = open;
    if (open) {
      for (const { resolve } of this.#openWaiters.splice(0)) resolve();
      this.emit('hostOpened', { port: this.id });
      return;
    }
    // Bytes that were sent before lie in the queue already; their promises settle before this does.
    this.#parts.receive.onUsed();
    queueMicrotask(() => {
      if (this.#open && !this.#endLast) this.#push('end');
      this.emit('hostClosed', { port: this.id });
    });
  }

  /** For the driver. */
  setConsole(): void {
    this.#console = true;
  }

  /** For the driver. */
  setName(name: string): void {
    this.#name = name;
    this.emit('named', { name });
  }

  /** For the driver: tells the device again what it should know. */
  async retell(): Promise<void> {
    if (this.#open) await this.#parts.tellOpen?.(true);
  }

  /** For the driver: nothing works any more; all that waits ends with `error`. */
  fail(error: VmsgError): void {
    if (this.#failure !== undefined) return;
    this.#failure = error;
    this.#slots.end(error);
    this.#received.clear();
    this.#reader?.reject(error);
    this.#reader = undefined;
    for (const { reject } of this.#openWaiters.splice(0)) reject(error);
  }
}
