import type { Clock } from '../kit/clock.ts';
import { type ErrorCode, VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { Scope } from '../kit/scope.ts';
import { errnoName, SystemCallError } from '../libc/errno.ts';
import type { Fd } from '../libc/fd.ts';
import { Mapping } from '../libc/mapping.ts';
import { createMemfd } from '../libc/memfd.ts';
import type { Messenger, Received } from '../libc/messenger.ts';
import type { Poller } from '../libc/poll.ts';
import { connectUnix } from '../libc/unix-socket.ts';
import {
  guestRole,
  handshakeFeatures,
  handshakeMagic,
  handshakeVersion,
  headOf,
  hello,
  packetHead,
  packetType,
  ready,
  refused,
  rings,
  type Welcome,
  welcome,
  welcomeResumed,
} from '../virtio-msg/loopback-handshake.ts';
import { ringBytesFor } from '../virtio-msg/ring.ts';
import { type Decoded, decode, encode, type Layout, Malformed } from '../wire/layout.ts';
import type { ResumePoint, TransportTerms } from './transport.ts';

const featuresOf = ({ queueNotify }: Pick<HandshakeParts, 'queueNotify'>): number =>
  handshakeFeatures.sleepWords | (queueNotify ? handshakeFeatures.queueNotify : 0);
const dialectNumber = 5;
const ringAlign = 4096;
const slotMaxBytes = 0x1_0000;

const codeOfRefusal: Readonly<Record<string, ErrorCode>> = {
  EBUSY: 'bus-busy',
  EACCES: 'bus-refused',
  EPERM: 'bus-refused',
};

export interface HandshakeParts {
  readonly path: string;
  readonly clock: Clock;
  readonly poller: Poller;
  readonly messenger: Messenger;
  readonly maxMessageSize: number;
  readonly ringSlots: number;
  /** Offer QUEUE_NOTIFY. */
  readonly queueNotify: boolean;
  /** What this guest does on the bus. */
  readonly role: keyof typeof guestRole;
  readonly resume: ResumePoint | undefined;
  readonly onTerms: ((terms: TransportTerms) => void) | undefined;
}

/** What the handshake leaves behind; all of it belongs to the scope. */
export interface Established {
  readonly control: Fd;
  readonly doorbell: Fd;
  readonly toService: Uint8Array;
  readonly toGuest: Uint8Array;
  readonly slotSize: number;
  readonly sleepWords: boolean;
  readonly terms: TransportTerms;
}

const violation = (what: string): VmsgError => new VmsgError('protocol-violation', `the service ${what}`);

/** The error for a REFUSED packet; its reason is text of a peer. */
export function refusalError(bytes: Uint8Array): VmsgError {
  const packet = decode(refused, bytes, 0, bytes.length);
  if (packet instanceof Malformed) return violation('sent a malformed REFUSED');
  const name = errnoName(packet.errno);
  const reason = new TextDecoder().decode(packet.reason).replace(/[^\x20-\x7e]/g, '?');
  const message = `the bus refused this guest: ${name}${reason === '' ? '' : ` (${reason})`}`;
  return new VmsgError(codeOfRefusal[name] ?? 'protocol-violation', message);
}

/** Type of a packet of this protocol version, or undefined. */
export function packetTypeOf(bytes: Uint8Array): number | undefined {
  const head = decode(packetHead, bytes, 0, Math.min(bytes.length, packetHead.size));
  if (head instanceof Malformed || head.magic !== handshakeMagic || head.version !== handshakeVersion) return undefined;
  return head.type;
}

function openSocket(path: string): Fd {
  try {
    const socket = connectUnix(path);
    if (socket === 'absent') throw new VmsgError('unavailable', `no bus at ${path}`);
    if (socket === 'refused') throw new VmsgError('unavailable', `nobody serves the bus at ${path}`);
    if (socket === 'busy') throw new VmsgError('unavailable', `the bus at ${path} has too many callers`);
    return socket;
  } catch (error) {
    if (error instanceof SystemCallError && error.errnoName === 'EACCES') {
      throw new VmsgError('bus-refused', `no permission for the bus at ${path}`, { cause: error });
    }
    if (error instanceof SystemCallError) throw new VmsgError('unavailable', error.message, { cause: error });
    throw error;
  }
}

/** Waits for one packet of the service. The caller owns its descriptors. */
function nextPacket(parts: HandshakeParts, socket: Fd, deadlineMs: number): Promise<Received> {
  return new Promise((resolve, reject) => {
    const finish = (end: () => void): void => {
      watch.close();
      timer.cancel();
      end();
    };
    const leftMs = Math.max(0, deadlineMs - parts.clock.nowMs());
    const timer = parts.clock.after(leftMs, () =>
      finish(() => reject(new VmsgError('timeout', 'the service did not finish the handshake'))),
    );
    const watch = parts.poller.watch(socket.number, () => {
      try {
        const received = parts.messenger.receive(socket.number);
        if (received === 'closed') finish(() => reject(new VmsgError('unavailable', 'the service hung up')));
        else if (received !== 'empty') finish(() => resolve(received));
      } catch (error) {
        finish(() => reject(error));
      }
    });
  });
}

/** Takes one packet apart; closes descriptors that do not belong to it. */
function expect<L extends Layout<never, never> | Layout>(
  received: Received,
  type: number,
  l: L,
  fdCount: number,
): Decoded<L> {
  const body = check(received, type, l, fdCount);
  if (body instanceof VmsgError) {
    for (const fd of received.fds) fd.close();
    throw body;
  }
  return body;
}

function check<L extends Layout<never, never> | Layout>(
  received: Received,
  type: number,
  l: L,
  fdCount: number,
): Decoded<L> | VmsgError {
  const actual = packetTypeOf(received.bytes);
  if (actual === packetType.refused) return refusalError(received.bytes);
  if (actual !== type || received.truncated) return violation(`sent packet type ${actual}, ${type} expected`);
  if (received.fds.length !== fdCount) return violation(`sent ${received.fds.length} descriptors, ${fdCount} expected`);
  const body = decode(l, received.bytes, 0, received.bytes.length);
  return body instanceof Malformed ? violation(`sent a malformed packet: ${body.reason}`) : body;
}

/** @returns what is wrong with a WELCOME, or undefined */
function welcomeFault(packet: Welcome, parts: HandshakeParts): string | undefined {
  if (packet.dialect !== dialectNumber) return `chose dialect D${packet.dialect}, which was not offered`;
  const size = packet.maxMessageSize;
  if (size < limits.messageSizeMinBytes || size > parts.maxMessageSize) return `chose a message size of ${size}`;
  if (packet.slotSize < size || packet.slotSize % 8 !== 0 || packet.slotSize > slotMaxBytes)
    return `chose a slot size of ${packet.slotSize}`;
  if (packet.ringMaxBytes < ringBytesFor(limits.ringSlotsMin, packet.slotSize))
    return `allows rings of ${packet.ringMaxBytes} bytes only`;
  if ((packet.features & ~featuresOf(parts)) !== 0) return 'chose features that were not offered';
  if (packet.revision < 1) return 'publishes transport revision 0';
  return undefined;
}

/** A service that has hung up may have said why: whoever reads the next packet finds out. */
function sendPacket(parts: HandshakeParts, socket: Fd, bytes: Uint8Array, fds: readonly number[] = []): void {
  if (parts.messenger.send(socket.number, bytes, fds) === 'full') {
    throw new VmsgError('unavailable', 'the service does not read its socket');
  }
}

function helloBytes(parts: HandshakeParts): Uint8Array {
  const bytes = new Uint8Array(hello.size);
  encode(
    hello,
    {
      ...headOf(packetType.hello),
      features: featuresOf(parts),
      dialects: 1 << dialectNumber,
      maxMessageSize: parts.maxMessageSize,
      role: guestRole[parts.role],
      reserved: 0,
      resumeEpoch: parts.resume?.epoch ?? 0n,
      resumeToken: parts.resume?.token ?? new Uint8Array(16),
    },
    bytes,
  );
  return bytes;
}

/** One memfd with both rings, each on its own pages. */
function makeRings(parts: HandshakeParts, agreed: Welcome, scope: Scope) {
  const bytes = Math.min(agreed.ringMaxBytes, ringBytesFor(parts.ringSlots, agreed.slotSize));
  const stride = Math.ceil(bytes / ringAlign) * ringAlign;
  const fd = scope.own(createMemfd('vmsg-rings', 2 * stride));
  const mapping = scope.own(Mapping.map(fd.number, 0, 2 * stride, { writable: true }));
  const packet = new Uint8Array(rings.size);
  encode(
    rings,
    {
      ...headOf(packetType.rings),
      toServiceOffset: 0n,
      toGuestOffset: BigInt(stride),
      toServiceBytes: bytes,
      toGuestBytes: bytes,
      reserved: 0n,
    },
    packet,
  );
  return {
    fd,
    packet,
    toService: mapping.bytes.subarray(0, bytes),
    toGuest: mapping.bytes.subarray(stride, stride + bytes),
  };
}

/** The guest side of the handshake of docs/protocol/loopback.md, "Connection". Rejects with VmsgError. */
export async function handshake(parts: HandshakeParts, scope: Scope): Promise<Established> {
  const deadlineMs = parts.clock.nowMs() + limits.handshakeTimeoutMs;
  const control = scope.own(openSocket(parts.path));
  sendPacket(parts, control, helloBytes(parts));
  const answer = await nextPacket(parts, control, deadlineMs);
  const agreed = expect(answer, packetType.welcome, welcome, 1);
  const doorbell = scope.own(answer.fds[0]!);
  const fault = welcomeFault(agreed, parts);
  if (fault !== undefined) throw violation(fault);
  const terms: TransportTerms = {
    maxMessageSize: agreed.maxMessageSize,
    revision: agreed.revision,
    transportFeatures: agreed.transportFeatures,
    epoch: agreed.epoch,
    token: agreed.token,
    resumed: (agreed.flags & welcomeResumed) !== 0,
    domid: agreed.domid,
    queueNotify: (agreed.features & handshakeFeatures.queueNotify) !== 0,
  };
  parts.onTerms?.(terms);
  const made = makeRings(parts, agreed, scope);
  sendPacket(parts, control, made.packet, [made.fd.number]);
  expect(await nextPacket(parts, control, deadlineMs), packetType.ready, ready, 0);
  return {
    control,
    doorbell,
    toService: made.toService,
    toGuest: made.toGuest,
    slotSize: agreed.slotSize,
    sleepWords: (agreed.features & handshakeFeatures.sleepWords) !== 0,
    terms,
  };
}
