import { BoundedQueue } from '../kit/bounded-queue.ts';
import { limits } from '../kit/limits.ts';
import type { Scheduler } from '../kit/scheduler.ts';
import type { BusPort } from '../ports/bus.ts';
import {
  type BusMessage,
  type CanonicalMessage,
  type Dialect,
  headerFault,
  type TransportMessage,
} from '../virtio-msg/dialect.ts';
import {
  headerBytes,
  headerDeviceNumber,
  headerId,
  headerSize,
  headerType,
  type MessageHeader,
  readHeader,
  typeBus,
} from '../virtio-msg/header.ts';
import { transportEvents } from '../virtio-msg/transport-messages.ts';
import { readU32 } from '../wire/bytes.ts';
import { Malformed } from '../wire/layout.ts';
import type { FlightRecorder } from './flight-recorder.ts';

export interface ChannelCounters {
  messagesIn: number;
  messagesOut: number;
  doorbellsIn: number;
  doorbellsOut: number;
  /** Malformed messages, dropped. */
  malformed: number;
  /** Messages dropped for another reason: unknown device event, not allowed in this state. */
  dropped: number;
  /** FAILURE events sent. */
  failures: number;
}

export interface ChannelSnapshot {
  /** Name of the wire revision, "D5". */
  readonly dialect: string;
  readonly maxMessageSizeBytes: number;
  readonly slotBytes: number;
  /** Messages that wait for room in the ring to the guest. */
  readonly backlogMessages: number;
}

/** Where the messages of a channel go. */
export interface ChannelHandler {
  busMessage(message: BusMessage, header: MessageHeader): void;
  transportMessage(message: TransportMessage, header: MessageHeader): void;
  /** EVENT_AVAIL, on its short way. */
  available(deviceNumber: number, queue: number, next: number): void;
  /** The peer broke the ring, or does not read it: the connection has to end. */
  broken(reason: string): void;
}

export const newCounters = (): ChannelCounters => ({
  messagesIn: 0,
  messagesOut: 0,
  doorbellsIn: 0,
  doorbellsOut: 0,
  malformed: 0,
  dropped: 0,
  failures: 0,
});

const eventAvailId = transportEvents.EVENT_AVAIL.id;
const eventAvailSize = headerBytes + transportEvents.EVENT_AVAIL.event.size;
const availQueueAt = headerBytes + transportEvents.EVENT_AVAIL.event.at.index;
const availNextAt = headerBytes + transportEvents.EVENT_AVAIL.event.at.next;

/**
 * The message path of one connection: takes frames from the bus port in bounded batches, validates size and
 * header, decodes, and passes them on; encodes what is sent. Bad bytes are counted and dropped.
 */
export class Channel {
  readonly counters: ChannelCounters;
  readonly #port: BusPort;
  readonly #dialect: Dialect;
  readonly #handler: ChannelHandler;
  readonly #scheduler: Scheduler;
  readonly #maxMessageSize: number;
  readonly #incoming: Uint8Array;
  readonly #outgoing: Uint8Array;
  readonly #recorder: FlightRecorder;
  readonly #backlog = new BoundedQueue<Uint8Array>(limits.channelBacklogMessages);
  /** EVENT_USED that found the ring full, once for each queue: key device number << 16 | queue. */
  readonly #usedBacklog = new Set<number>();
  #pumpPlanned = false;
  #flushPlanned = false;
  #closed = false;

  constructor(
    port: BusPort,
    dialect: Dialect,
    maxMessageSize: number,
    handler: ChannelHandler,
    scheduler: Scheduler,
    counters: ChannelCounters,
    recorder: FlightRecorder,
  ) {
    this.#port = port;
    this.#dialect = dialect;
    this.#maxMessageSize = maxMessageSize;
    this.#handler = handler;
    this.#scheduler = scheduler;
    this.counters = counters;
    this.#recorder = recorder;
    this.#incoming = new Uint8Array(port.slotBytes);
    this.#outgoing = new Uint8Array(port.slotBytes);
  }

  /** The message path, for people. */
  snapshot(): ChannelSnapshot {
    return {
      dialect: this.#dialect.spec.name,
      maxMessageSizeBytes: this.#maxMessageSize,
      slotBytes: this.#port.slotBytes,
      backlogMessages: this.#backlog.length + this.#usedBacklog.size,
    };
  }

  /** The peer rang, or may have written: takes what is there. */
  onDoorbell(): void {
    if (this.#closed || this.#pumpPlanned) return;
    this.#sendBacklog();
    this.#pump();
  }

  #pump(): void {
    for (let budget: number = limits.channelBatchMessages; budget > 0; budget--) {
      if (this.#closed) return;
      const outcome = this.#port.receive(this.#incoming);
      if (outcome === 'message') {
        this.counters.messagesIn += 1;
        this.#recorder.record(this.#incoming, false);
        this.#dispatch();
      } else if (outcome === 'broken') {
        this.#break('the guest wrote an impossible ring index');
        return;
      } else if (this.#port.sleep()) {
        this.#planFlush();
        return;
      }
    }
    this.#planFlush();
    this.#pumpPlanned = true;
    this.#scheduler.later(() => {
      this.#pumpPlanned = false;
      this.onDoorbell();
    });
  }

  #dispatch(): void {
    const frame = this.#incoming;
    const type = headerType(frame);
    if (type === 0 && headerId(frame) === eventAvailId && headerSize(frame) === eventAvailSize) {
      this.#handler.available(headerDeviceNumber(frame), readU32(frame, availQueueAt), readU32(frame, availNextAt));
      return;
    }
    const header = readHeader(frame);
    const fault = headerFault(header, frame.length, this.#maxMessageSize);
    const message = fault === undefined ? this.#dialect.decode(frame, header) : new Malformed(fault);
    if (message instanceof Malformed) {
      this.counters.malformed += 1;
      return;
    }
    if (header.type & typeBus) this.#handler.busMessage(message as BusMessage, header);
    else this.#handler.transportMessage(message as TransportMessage, header);
  }

  send(message: CanonicalMessage, deviceNumber: number, token: number): void {
    if (this.#closed) return;
    const size = this.#dialect.encode(message, deviceNumber, token, this.#outgoing);
    this.#sendFrame(this.#outgoing.subarray(0, size));
  }

  /** EVENT_USED; those that wait for room are not repeated. */
  sendUsed(deviceNumber: number, queue: number): void {
    const key = (deviceNumber << 16) | queue;
    if (this.#usedBacklog.has(key)) return;
    if (this.#backlog.length > 0) this.#usedBacklog.add(key);
    else this.#sendUsedNow(deviceNumber, queue, key);
  }

  #sendUsedNow(deviceNumber: number, queue: number, key: number): boolean {
    if (this.#closed) return false;
    const message = { kind: 'event', name: 'EVENT_USED', body: { index: queue } } as const;
    const size = this.#dialect.encode(message, deviceNumber, 0, this.#outgoing);
    const frame = this.#outgoing.subarray(0, size);
    const outcome = this.#port.send(frame);
    if (outcome === 'sent') {
      this.#sent(frame);
      this.#usedBacklog.delete(key);
      return true;
    }
    if (outcome === 'broken') this.#break('the guest wrote an impossible ring index');
    else this.#usedBacklog.add(key);
    return false;
  }

  #sendFrame(frame: Uint8Array): void {
    const outcome = this.#backlog.length > 0 ? 'full' : this.#port.send(frame);
    if (outcome === 'sent') this.#sent(frame);
    else if (outcome === 'broken') this.#break('the guest wrote an impossible ring index');
    else if (!this.#backlog.push(frame.slice())) this.#break('the guest does not read its ring');
  }

  #sent(frame: Uint8Array): void {
    this.counters.messagesOut += 1;
    this.#recorder.record(frame, true);
    this.#planFlush();
  }

  #sendBacklog(): void {
    for (let frame = this.#backlog.peek(); frame !== undefined; frame = this.#backlog.peek()) {
      const outcome = this.#port.send(frame);
      if (outcome === 'broken') this.#break('the guest wrote an impossible ring index');
      if (outcome !== 'sent') return;
      this.#backlog.shift();
      this.#sent(frame);
    }
    for (const key of this.#usedBacklog) {
      if (!this.#sendUsedNow(key >>> 16, key & 0xffff, key)) return;
    }
  }

  #planFlush(): void {
    if (this.#flushPlanned) return;
    this.#flushPlanned = true;
    this.#scheduler.soon(this.#flush);
  }

  readonly #flush = (): void => {
    this.#flushPlanned = false;
    if (!this.#closed && this.#port.flush()) this.counters.doorbellsOut += 1;
  };

  #break(reason: string): void {
    if (this.#closed) return;
    this.close();
    // Not from within a message: the handler tears the connection down.
    this.#scheduler.later(() => this.#handler.broken(reason));
  }

  /** Nothing is received or sent any more; the port is its owner's to close. */
  close(): void {
    this.#closed = true;
    this.#backlog.clear();
    this.#usedBacklog.clear();
  }
}
