import { BoundedQueue } from '../kit/bounded-queue.ts';
import { limits } from '../kit/limits.ts';
import { type CanonicalMessage, dialectD5, headerFault } from '../virtio-msg/dialect.ts';
import { headerBytes, type MessageHeader, messageHeader, readHeader } from '../virtio-msg/header.ts';
import { transportEvents } from '../virtio-msg/transport-messages.ts';
import { readU16, readU32 } from '../wire/bytes.ts';
import { Malformed } from '../wire/layout.ts';
import type { GuestTransport } from './transport.ts';

/** Messages of a bus since it was opened. */
export interface LinkCounters {
  messagesIn: number;
  messagesOut: number;
  /** Inbound messages that break the format, dropped. */
  malformed: number;
  /** Inbound messages that nobody waits for, dropped: late or forged responses, unknown devices. */
  dropped: number;
}

export interface LinkHandlers {
  onMessage(header: MessageHeader, message: CanonicalMessage): void;
  /** EVENT_USED, without going through a decoded message. */
  onUsed(device: number, queue: number): void;
  onLost(error: Error): void;
}

const usedEvent = transportEvents.EVENT_USED;
const usedFrameBytes = headerBytes + usedEvent.event.size;
const availFrameBytes = headerBytes + transportEvents.EVENT_AVAIL.event.size;
const at = messageHeader.at;

/** One connection: checks and decodes what arrives, and keeps what a full ring does not take. */
export class Link {
  readonly transport: GuestTransport;
  readonly #handlers: LinkHandlers;
  readonly #counters: LinkCounters;
  /** Request frames in order; as many as there are requests without a response. */
  readonly #backlog = new BoundedQueue<Uint8Array>(limits.guestPendingRequests);
  /** Queues to notify once the backlog is gone; a second notification of one adds nothing. */
  readonly #unnotified = new Map<number, { device: number; queue: number; next: number }>();
  readonly #availFrame = new Uint8Array(availFrameBytes);

  constructor(transport: GuestTransport, handlers: LinkHandlers, counters: LinkCounters) {
    this.transport = transport;
    this.#handlers = handlers;
    this.#counters = counters;
  }

  start(): void {
    this.transport.start({
      onFrame: (frame) => this.#onFrame(frame),
      onRoom: () => this.#flush(),
      onLost: (error) => this.#handlers.onLost(error),
    });
  }

  /** Sends a request frame now or when there is room. */
  send(frame: Uint8Array): void {
    if (this.#backlog.length > 0 || !this.#trySend(frame)) this.#backlog.push(frame);
  }

  /** Sends EVENT_AVAIL for a queue, now or when there is room. */
  notify(device: number, queue: number, next: number): void {
    if (this.#backlog.length > 0 || !this.#trySend(this.#encodeAvail(device, queue, next))) {
      this.#unnotified.set(device * 0x1_0000 + queue, { device, queue, next });
    }
  }

  #encodeAvail(device: number, queue: number, next: number): Uint8Array {
    dialectD5.encode({ kind: 'event', name: 'EVENT_AVAIL', body: { index: queue, next } }, device, 0, this.#availFrame);
    return this.#availFrame;
  }

  #trySend(frame: Uint8Array): boolean {
    if (this.transport.sendFrame(frame) === 'full') return false;
    this.#counters.messagesOut += 1;
    return true;
  }

  #flush(): void {
    for (let left = this.#backlog.length; left > 0; left--) {
      const frame = this.#backlog.peek();
      if (frame === undefined || !this.#trySend(frame)) return;
      this.#backlog.shift();
    }
    for (const [key, { device, queue, next }] of this.#unnotified) {
      if (!this.#trySend(this.#encodeAvail(device, queue, next))) return;
      this.#unnotified.delete(key);
    }
  }

  #onFrame(frame: Uint8Array): void {
    this.#counters.messagesIn += 1;
    const header = frame.length < headerBytes ? undefined : readHeader(frame);
    if (header === undefined || headerFault(header, frame.length, this.transport.terms.maxMessageSize) !== undefined) {
      this.#counters.malformed += 1;
      return;
    }
    if (header.id === usedEvent.id && (header.type & 3) === 0 && header.size === usedFrameBytes) {
      this.#handlers.onUsed(readU16(frame, at.deviceNumber), readU32(frame, headerBytes + usedEvent.event.at.index));
      return;
    }
    const message = dialectD5.decode(frame, header);
    if (message instanceof Malformed || message.kind === 'request') this.#counters.malformed += 1;
    else this.#handlers.onMessage(header, message);
  }
}
