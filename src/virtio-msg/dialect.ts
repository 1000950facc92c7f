import { decode, encode, encodedLength, type Layout, Malformed } from '../wire/layout.ts';
import { type BusEvent, type BusRequest, type BusResponse, busEvents, busRequests } from './bus-messages.ts';
import {
  headerBytes,
  idEvent,
  type MessageHeader,
  messageHeader,
  typeBus,
  typeResponse,
  writeHeader,
} from './header.ts';
import type { AnyLayout, EventTable, RequestTable } from './tables.ts';
import {
  type TransportEvent,
  type TransportRequest,
  type TransportResponse,
  transportEvents,
  transportRequests,
} from './transport-messages.ts';

/** What the state machines see, whatever the wire revision: the bodies of D5. */
export type TransportMessage = TransportRequest | TransportResponse | TransportEvent;
export type BusMessage = BusRequest | BusResponse | BusEvent;
export type CanonicalMessage = TransportMessage | BusMessage;

/** Deviations of a dialect that code outside the tables has to know. */
export type Quirk =
  /** Payloads may be longer than their message: the sender uses one fixed size. */
  | 'fixed-size-messages'
  /** SET_VQUEUE enables the queue whatever its flags say. */
  | 'set-vqueue-enables';

/** A wire revision of virtio-msg as data. */
export interface DialectSpec {
  readonly name: string;
  /** Transport revision that the bus publishes. */
  readonly revision: number;
  readonly minMessageSize: number;
  readonly header: typeof messageHeader;
  readonly transportRequests: RequestTable;
  readonly transportEvents: EventTable;
  readonly busRequests: RequestTable;
  readonly busEvents: EventTable;
  readonly quirks: ReadonlySet<Quirk>;
  /** From a decoded body of this dialect to the canonical body, and back; D5 is canonical itself. */
  toCanonical(message: CanonicalMessage): CanonicalMessage | Malformed;
  fromCanonical(message: CanonicalMessage): CanonicalMessage;
}

interface Row {
  readonly kind: CanonicalMessage['kind'];
  readonly name: string;
  readonly id: number;
  readonly layout: AnyLayout;
}

interface Entry {
  readonly row: Row;
  readonly type: number;
}

const rowKey = (type: number, id: number) => (type << 8) | id;

/** Encodes and decodes the messages of one dialect. Sans-IO and without state. */
export class Dialect {
  readonly spec: DialectSpec;
  readonly #byKey = new Map<number, Row>();
  readonly #byName = {
    request: new Map<string, Entry>(),
    response: new Map<string, Entry>(),
    event: new Map<string, Entry>(),
  };

  constructor(spec: DialectSpec) {
    this.spec = spec;
    this.#addTables(0, spec.transportRequests, spec.transportEvents);
    this.#addTables(typeBus, spec.busRequests, spec.busEvents);
  }

  #addTables(type: number, requests: RequestTable, events: EventTable): void {
    for (const [name, row] of Object.entries(requests)) {
      this.#add(type, { kind: 'request', name, id: row.id, layout: row.request });
      this.#add(type | typeResponse, { kind: 'response', name, id: row.id, layout: row.response });
    }
    for (const [name, row] of Object.entries(events)) {
      this.#add(type, { kind: 'event', name, id: row.id, layout: row.event });
    }
  }

  #add(type: number, row: Row): void {
    this.#byKey.set(rowKey(type, row.id), row);
    this.#byName[row.kind].set(row.name, { row, type });
  }

  /** Name of the message in a frame, for people; `undefined` when the dialect has none with this id. */
  nameOf(type: number, id: number): string | undefined {
    return this.#byKey.get(rowKey(type & 3, id))?.name;
  }

  /** Every row, for documentation and golden vectors. */
  *rows(): Generator<Row & { type: number }> {
    for (const byName of Object.values(this.#byName)) {
      for (const { row, type } of byName.values()) yield { ...row, type };
    }
  }

  /**
   * Reads the message in `frame[0, header.size)`. The caller has validated the header.
   * A `Malformed` result means: discard, without an answer (D5, Error Signaling).
   */
  decode(frame: Uint8Array, header: MessageHeader): CanonicalMessage | Malformed {
    const row = this.#byKey.get(rowKey(header.type & 3, header.id));
    if (row === undefined) return new Malformed(`unknown message id 0x${header.id.toString(16)}`);
    const trailing = this.spec.quirks.has('fixed-size-messages') ? 'ignore' : 'reject';
    const body = decode(row.layout as Layout, frame, headerBytes, header.size - headerBytes, trailing);
    if (body instanceof Malformed) return body;
    return this.spec.toCanonical({ kind: row.kind, name: row.name, body } as CanonicalMessage);
  }

  /** Writes header and payload to `frame`. @returns bytes of the whole message */
  encode(message: CanonicalMessage, deviceNumber: number, token: number, frame: Uint8Array): number {
    const wire = this.spec.fromCanonical(message);
    const { row, type } = this.#entry(wire);
    const size = headerBytes + encode(row.layout as Layout, wire.body as never, frame, headerBytes);
    writeHeader({ type, id: row.id, deviceNumber: type & typeBus ? 0 : deviceNumber, token, size }, frame);
    return size;
  }

  /** Bytes that `encode` would write. */
  encodedLength(message: CanonicalMessage): number {
    const wire = this.spec.fromCanonical(message);
    return headerBytes + encodedLength(this.#entry(wire).row.layout as Layout, wire.body as never);
  }

  #entry(message: CanonicalMessage): Entry {
    const entry = this.#byName[message.kind].get(message.name);
    if (entry === undefined) throw new Error(`${this.spec.name} has no ${message.kind} ${message.name}`);
    return entry;
  }
}

/** Checks what every frame must satisfy before its id is looked at. @returns why it is malformed, or undefined */
export function headerFault(header: MessageHeader, available: number, maxMessageSize: number): string | undefined {
  if (header.size < headerBytes) return `msg_size ${header.size} is shorter than the header`;
  if (header.size > maxMessageSize) return `msg_size ${header.size} exceeds the maximum ${maxMessageSize}`;
  if (header.size > available) return `msg_size ${header.size} exceeds the slot of ${available} bytes`;
  if (header.type & typeBus && header.deviceNumber !== 0)
    return `bus message with device number ${header.deviceNumber}`;
  if (header.type & typeResponse && header.id & idEvent) return 'an event marked as a response';
  return undefined;
}

/** The newest published wire format, and the canonical one. */
export const dialectD5 = new Dialect({
  name: 'D5',
  revision: 1,
  minMessageSize: 52,
  header: messageHeader,
  transportRequests,
  transportEvents,
  busRequests,
  busEvents,
  quirks: new Set(),
  toCanonical: (message) => message,
  fromCanonical: (message) => message,
});
