import type { ErrnoName } from '../kit/errno.ts';
import type { Closable } from '../kit/scope.ts';
import type { Domid, EventPort, HypervisorFault } from './hypervisor.ts';
import type { AddressSpace } from './memory.ts';

/** The frame transport of one bus connection, whatever carries it: a ring, FF-A registers, a simulator. */
export interface BusPort {
  /** Bytes of the buffer that `receive` needs, and the most that `send` takes. */
  readonly slotBytes: number;
  /** Copies the next frame into `target`, padding included. `broken`: the peer violated the transport. */
  receive(target: Uint8Array): 'message' | 'empty' | 'broken';
  /** Takes a copy of a frame; the peer may see it only after `flush`. */
  send(frame: Uint8Array): 'sent' | 'full' | 'broken';
  /** Publishes what was sent and received, and rings when the peer needs it. @returns whether it rang */
  flush(): boolean;
  /** Asks for a doorbell. @returns false when frames arrived meanwhile: receive again */
  sleep(): boolean;
}

/** A descriptor that belongs to who has it. */
export interface HandedFd extends Closable {
  readonly number: number;
}

/** The guest's own descriptors for one queue, both eventfds; they belong to who gets them. */
export interface QueueDescriptors {
  readonly kick: HandedFd;
  readonly call: HandedFd;
}

/** A port that a guest has made for our domain, and that nobody here has bound. */
export interface GuestPort extends Closable {
  readonly domid: Domid;
  readonly port: EventPort;
  /** It cannot be bound. */
  refused(fault: HypervisorFault): void;
}

/** A guest's own way for the notifications of one queue, for the program that works on it. */
export type QueueWay = QueueDescriptors | { readonly kickPort: GuestPort; readonly callPort: GuestPort };

/** Rings a guest for one queue. */
export interface CallTarget {
  ring(): void;
  close(): void;
}

/** What a guest has handed over beside its messages, by reference: descriptors on loopback, grants on Xen. */
export interface GuestResources {
  /** Maps memory; the reference is used up. @param domain whose memory it is, 0: that of the guest itself */
  openRegion(
    reference: number,
    offset: bigint,
    length: bigint,
    readOnly: boolean,
    domain: number,
  ): GuestMemory | ErrnoName;
  /** Listens to a queue's kicks; the reference is used up. */
  openKick(reference: number, onKick: () => void): { close(): void } | ErrnoName;
  openCall(reference: number): CallTarget | ErrnoName;
  /** Hands an eventfd of the guest on; the reference is used up. Undefined where a guest has none. */
  readonly takeEventfd?: (reference: number) => HandedFd | ErrnoName;
  /** Hands a port of the guest on. Undefined where a guest has none. */
  readonly takePort?: (reference: number) => GuestPort | ErrnoName;
  /** Hands a descriptor of ours over; it stays ours. @returns the reference by which messages may name it */
  give(fd: number): number | ErrnoName;
  /** Ends a reference that a refused request named; one that is used up already is ignored. */
  discard(reference: number): void;
  /** Memory that is mapped when a descriptor names it; undefined where the bus has no such thing. */
  readonly grants?: GrantSpace;
}

/** Grants of one guest, used by address: bit 63 | first reference << 12 | offset (docs/protocol/xen-bus.md). */
export interface GrantSpace extends AddressSpace {
  /** Unmaps what is kept of these references; `done` with 0 or an errno, when nothing uses them any more or too late. */
  release(first: number, count: number, done: (result: number) => void): void;
  snapshot(): GrantSnapshot;
  /** Takes no more translations; what is in use is unmapped with its last lease. */
  close(): void;
}

/** Counts since the connection was made, and what is mapped now. */
export interface GrantSnapshot {
  readonly persistent: boolean;
  /** Translations served by a mapping that was kept. */
  readonly hits: number;
  readonly misses: number;
  /** Mappings given up to stay within the bound. */
  readonly evictions: number;
  /** Translations refused. */
  readonly faults: number;
  readonly mappedPages: number;
}

/** Names memory for a third party: a descriptor, or the grants of a domain (first directory page). */
export type MemorySource =
  | { readonly fd: number; readonly offset: bigint }
  | { readonly domid: number; readonly reference: number };

/** Where another process maps memory of a guest: all of it, writable, from `offset` on, once. */
export interface HandedMemory extends Closable {
  readonly fd: number;
  /** Bytes. */
  readonly offset: bigint;
}

/** What other processes of this host get memory by, also after the guest has taken it back here. */
export interface MemoryHandle extends Closable {
  /** For one process; to be closed when it has the descriptor. */
  open(): HandedMemory | ErrnoName;
}

/** Mapped memory of a guest. */
export interface GuestMemory {
  readonly bytes: Uint8Array;
  /** Absent where it cannot be passed on to other processes of this host. */
  readonly handle?: () => MemoryHandle | ErrnoName;
  /** How others can map the same memory; undefined where it cannot be passed on. */
  readonly source?: MemorySource;
  close(): void;
}

/** What a guest claims when it connects, and what it is told. */
export interface ResumeClaim {
  readonly epoch: bigint;
  /** 16 bytes. */
  readonly token: Uint8Array;
}

export interface Admission {
  readonly epoch: bigint;
  readonly token: Uint8Array;
  readonly resumed: boolean;
}

/** A guest whose handshake is complete. */
export interface GuestConnection {
  readonly port: BusPort;
  readonly resources: GuestResources;
  readonly admission: Admission;
  readonly maxMessageSize: number;
  /** Kicks may come other than as EVENT_AVAIL (QUEUE_NOTIFY was agreed). */
  readonly outOfBandKicks: boolean;
  /** Registers the one listener for the guest's doorbell. */
  onDoorbell(listener: () => void): void;
  /** Ends the connection from our side and releases all of it. Idempotent. */
  close(): void;
}

/** User and process of a guest, as the kernel tells. */
export interface ProcessIdentity {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

/** A Xen domain, as the hypervisor tells. */
export interface DomainIdentity {
  readonly domid: number;
}

export type GuestIdentity = ProcessIdentity | DomainIdentity;

/** What a transport reports to its bus. */
export interface BusTransportHandler {
  /** A guest presents itself: starts a new epoch. */
  admit(claim: ResumeClaim): Admission;
  /** The handshake is complete. */
  connected(connection: GuestConnection, peer: GuestIdentity): void;
  /** The guest is gone, or broke the protocol. Comes once for each `connected`, unless we closed the connection. */
  disconnected(reason: string): void;
  refused(peer: GuestIdentity | null, reason: string): void;
  /** Something that the guest shares cannot be used: what, why, and what to check. The connection goes on. */
  diagnosed(text: string): void;
  /** The epoch that the next `admit` starts, for transports that offer it beforehand. */
  readonly nextEpoch: bigint;
  /** A transport has found that an earlier process used epochs up to this one: they never come again. */
  epochUsed(epoch: bigint): void;
}

/** How the memory of a device's driver is reached by a domain that serves it. */
export interface DevicePath {
  /** Who maps it. */
  readonly peerDomid: number;
  /** direct: grants of the driver itself. */
  readonly dataPath: 'direct';
}

/** Carries one bus: waits for guests, one at a time. */
export interface BusTransport {
  readonly state: 'listening' | 'handshake' | 'connected';
  /** Begins to let guests in. */
  start(handler: BusTransportHandler): void;
  /** Idempotent. @param forget the bus ends for good: its traces outside this process are removed too */
  close(forget?: boolean): void;
  /**
   * Tells the guest, before it hears of a device, that another domain maps the memory of its driver.
   * @throws VmsgError
   */
  publishDevice?(device: number, path: DevicePath): void;
  unpublishDevice?(device: number): void;
}
