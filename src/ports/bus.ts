import type { ErrnoName } from '../kit/errno.ts';

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

/** Rings a guest for one queue. */
export interface CallTarget {
  ring(): void;
  close(): void;
}

/** What a guest has handed over beside its messages, by reference: descriptors on loopback, grants on Xen. */
export interface GuestResources {
  /** Maps memory; the reference is used up. */
  openRegion(reference: number, offset: bigint, length: bigint, readOnly: boolean): GuestMemory | ErrnoName;
  /** Listens to a queue's kicks; the reference is used up. */
  openKick(reference: number, onKick: () => void): { close(): void } | ErrnoName;
  openCall(reference: number): CallTarget | ErrnoName;
  /** Hands a descriptor of ours over; it stays ours. @returns the reference by which messages may name it */
  give(fd: number): number | ErrnoName;
  /** Ends a reference that a refused request named; one that is used up already is ignored. */
  discard(reference: number): void;
}

/** Mapped memory of a guest. */
export interface GuestMemory {
  readonly bytes: Uint8Array;
  /** How others can map the same memory; undefined where it cannot be passed on. */
  readonly source?: { readonly fd: number; readonly offset: bigint };
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
export interface GuestIdentity {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

/** What a transport reports to its bus. */
export interface BusTransportHandler {
  /** A guest presents itself: starts a new epoch. */
  admit(claim: ResumeClaim): Admission;
  /** The handshake is complete. */
  connected(connection: GuestConnection, peer: GuestIdentity): void;
  /** The guest is gone, or broke the protocol. Comes once for each `connected`, unless we closed the connection. */
  disconnected(reason: string): void;
  refused(peer: GuestIdentity | null, reason: string): void;
}

/** Carries one bus: waits for guests, one at a time. */
export interface BusTransport {
  readonly state: 'listening' | 'handshake' | 'connected';
  /** Begins to let guests in. */
  start(handler: BusTransportHandler): void;
  /** Idempotent. */
  close(): void;
}
