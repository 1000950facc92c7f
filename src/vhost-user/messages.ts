import { type Decoded, decode, encode, encodedLength, type Layout, type Malformed } from '../wire/layout.ts';
import type { ProtocolFeatureName } from './features.ts';
import {
  configSpace,
  empty,
  inflightArea,
  logArea,
  memoryTable,
  messageHeader,
  number,
  singleRegion,
  VERSION,
  vringAddress,
  vringState,
  xenMemoryTable,
  xenSingleRegion,
} from './payloads.ts';

// biome-ignore lint/suspicious/noExplicitAny: a tail is invariant in what it decodes to
type AnyLayout = Layout<any, any>;

/** One request of the protocol: everything that is known of it is in its row. */
export interface MessageSpec<P extends AnyLayout = AnyLayout, R extends AnyLayout | undefined = AnyLayout | undefined> {
  readonly id: number;
  readonly payload: P;
  /** The payload where XEN_MMAP was negotiated. */
  readonly xenPayload: P;
  /** What it is always answered with; a request without gets an answer by REPLY_ACK only. */
  readonly reply: R;
  /** Descriptors that go along, at most. */
  readonly fds: number;
  /** Descriptors of the answer, at most. */
  readonly replyFds: number;
  /** The sender goes on only after the other side has carried it out, REPLY_ACK or not. */
  readonly awaited: boolean;
  /** The protocol feature without which it must not be sent. */
  readonly needs: ProtocolFeatureName | undefined;
}

interface Extras {
  readonly fds?: number;
  readonly replyFds?: number;
  readonly awaited?: boolean;
  readonly needs?: ProtocolFeatureName;
}

function tell<P extends AnyLayout>(id: number, payload: P, extras: Extras & { readonly xen?: AnyLayout } = {}) {
  return row<P, undefined>(id, payload, undefined, extras);
}

function ask<P extends AnyLayout, R extends AnyLayout>(id: number, payload: P, reply: R, extras: Extras = {}) {
  return row<P, R>(id, payload, reply, extras);
}

function row<P extends AnyLayout, R extends AnyLayout | undefined>(
  id: number,
  payload: P,
  reply: R,
  extras: Extras & { readonly xen?: AnyLayout },
): MessageSpec<P, R> {
  const { fds = 0, replyFds = 0, awaited = reply !== undefined, needs, xen = payload } = extras;
  return { id, payload, xenPayload: xen as P, reply, fds, replyFds, awaited, needs };
}

/** Requests of the front-end that are spoken here ("Front-end message types"). */
export const frontEndRequests = {
  GET_FEATURES: ask(1, empty, number),
  SET_FEATURES: tell(2, number),
  SET_OWNER: tell(3, empty),
  SET_MEM_TABLE: tell(5, memoryTable, { xen: xenMemoryTable, fds: 8, awaited: true }),
  SET_VRING_NUM: tell(8, vringState),
  SET_VRING_ADDR: tell(9, vringAddress),
  SET_VRING_BASE: tell(10, vringState),
  GET_VRING_BASE: ask(11, vringState, vringState),
  SET_VRING_KICK: tell(12, number, { fds: 1 }),
  SET_VRING_CALL: tell(13, number, { fds: 1 }),
  SET_VRING_ERR: tell(14, number, { fds: 1 }),
  GET_PROTOCOL_FEATURES: ask(15, empty, number),
  SET_PROTOCOL_FEATURES: tell(16, number),
  GET_QUEUE_NUM: ask(17, empty, number, { needs: 'MQ' }),
  // A kick on a queue that is not enabled yet may be lost.
  SET_VRING_ENABLE: tell(18, vringState, { awaited: true }),
  SET_BACKEND_REQ_FD: tell(21, empty, { fds: 1, needs: 'BACKEND_REQ' }),
  GET_CONFIG: ask(24, configSpace, configSpace, { needs: 'CONFIG' }),
  SET_CONFIG: tell(25, configSpace, { needs: 'CONFIG', awaited: true }),
  GET_INFLIGHT_FD: ask(31, inflightArea, inflightArea, { replyFds: 1, needs: 'INFLIGHT_SHMFD' }),
  SET_INFLIGHT_FD: tell(32, inflightArea, { fds: 1, needs: 'INFLIGHT_SHMFD' }),
  RESET_DEVICE: tell(34, empty, { needs: 'RESET_DEVICE', awaited: true }),
  GET_MAX_MEM_SLOTS: ask(36, empty, number, { needs: 'CONFIGURE_MEM_SLOTS' }),
  ADD_MEM_REG: tell(37, singleRegion, { xen: xenSingleRegion, fds: 1, needs: 'CONFIGURE_MEM_SLOTS', awaited: true }),
  REM_MEM_REG: tell(38, singleRegion, { xen: xenSingleRegion, fds: 1, needs: 'CONFIGURE_MEM_SLOTS', awaited: true }),
  SET_STATUS: tell(39, number, { needs: 'STATUS' }),
  GET_STATUS: ask(40, empty, number, { needs: 'STATUS' }),
} as const;

/** Requests of the front-end that are understood but neither sent nor carried out: the dirty log of a migration. */
export const decodedRequests = {
  SET_LOG_BASE: ask(6, logArea, number, { fds: 1, needs: 'LOG_SHMFD' }),
  SET_LOG_FD: tell(7, empty, { fds: 1 }),
} as const;

/** Requests of the front-end that are known by name only. */
export const namedRequests = {
  RESET_OWNER: 4,
  SEND_RARP: 19,
  NET_SET_MTU: 20,
  IOTLB_MSG: 22,
  SET_VRING_ENDIAN: 23,
  CREATE_CRYPTO_SESSION: 26,
  CLOSE_CRYPTO_SESSION: 27,
  POSTCOPY_ADVISE: 28,
  POSTCOPY_LISTEN: 29,
  POSTCOPY_END: 30,
  GPU_SET_SOCKET: 33,
  VRING_KICK: 35,
  GET_SHARED_OBJECT: 41,
  SET_DEVICE_STATE_FD: 42,
  CHECK_DEVICE_STATE: 43,
  GET_SHMEM_CONFIG: 44,
} as const;

/** Requests of the back-end, on a channel of their own ("Back-end message types"). */
export const backEndRequests = {
  CONFIG_CHANGE_MSG: tell(2, empty, { needs: 'CONFIG' }),
  VRING_CALL: tell(4, vringState, { needs: 'INBAND_NOTIFICATIONS' }),
  VRING_ERR: tell(5, vringState, { needs: 'INBAND_NOTIFICATIONS' }),
} as const;

/** Requests of the back-end that are known by name only; they are refused. */
export const namedBackEndRequests = {
  IOTLB_MSG: 1,
  VRING_HOST_NOTIFIER_MSG: 3,
  SHARED_OBJECT_ADD: 6,
  SHARED_OBJECT_REMOVE: 7,
  SHARED_OBJECT_LOOKUP: 8,
  SHMEM_MAP: 9,
  SHMEM_UNMAP: 10,
} as const;

export type FrontEndRequests = typeof frontEndRequests;
export type FrontEndRequest = keyof FrontEndRequests;
export type BackEndRequest = keyof typeof backEndRequests;
type Spec<N extends FrontEndRequest> = FrontEndRequests[N];
export type BodyOf<N extends FrontEndRequest> = Decoded<Spec<N>['payload']>;
/** The answer; undefined for a request that has none of its own. */
export type ReplyOf<N extends FrontEndRequest> =
  Spec<N>['reply'] extends Layout<infer F, infer T> ? Decoded<Layout<F, T>> : undefined;

const specEntries: ReadonlyArray<readonly [string, MessageSpec]> = [
  ...Object.entries(frontEndRequests),
  ...Object.entries(decodedRequests),
];
const specsById: ReadonlyMap<number, readonly [string, MessageSpec]> = new Map(
  specEntries.map((entry) => [entry[1].id, entry]),
);
const namesById: ReadonlyMap<number, string> = new Map(Object.entries(namedRequests).map(([name, id]) => [id, name]));

/** A request of the front-end by its number. */
export function frontEndRequestOf(id: number): { readonly name: string; readonly spec: MessageSpec } | undefined {
  const entry = specsById.get(id);
  return entry === undefined ? undefined : { name: entry[0], spec: entry[1] };
}

/** For people, of any number. */
export const requestName = (id: number): string => specsById.get(id)?.[0] ?? namesById.get(id) ?? `request ${id}`;

/** A whole message. */
export function encodeMessage(id: number, flags: number, payload: AnyLayout, body: Decoded<AnyLayout>): Uint8Array {
  const size = encodedLength(payload as Layout, body as never);
  const message = new Uint8Array(messageHeader.size + size);
  encode(messageHeader, { request: id, flags: (VERSION | flags) >>> 0, size }, message);
  encode(payload as Layout, body as never, message, messageHeader.size);
  return message;
}

/** The payload of a message, of exactly the length that its layout says. */
export function decodePayload<L extends AnyLayout>(payload: L, from: Uint8Array): Decoded<L> | Malformed {
  const values = decode(payload as Layout, from, 0, from.length) as Decoded<L> | Malformed;
  return values;
}
