import type { Closable } from '../kit/scope.ts';
import type { GrantArena } from './grant-arena.ts';
import type { GuestTransport, TransportFactory } from './transport.ts';

/** Memory of ours that others can map. It outlives connections. */
export interface OwnRegion extends Closable {
  /** Zeroed at first; empty after `close`. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Hands the memory over on a connection. @returns the reference for REGION_ADD */
  offer(transport: GuestTransport): number;
}

/** A way of its own for the notifications of one queue (QUEUE_NOTIFY). It outlives connections. */
export interface QueueSignal extends Closable {
  /** Both directions are for a program that works on the queue, not for the service. */
  readonly forProgram: boolean;
  /** Hands both directions over on a connection. @returns the references for QUEUE_NOTIFY */
  offer(transport: GuestTransport): { readonly kick: number; readonly call: number };
  start(onUsed: () => void): void;
  kick(): void;
}

/** How this guest reaches one bus, and what it has to share there: the loopback bus or Xen. Outlives connections. */
export interface BusAccess extends Closable {
  readonly connect: TransportFactory;
  /**
   * @param bytes a multiple of 4096. @param peer domain that may map it; undefined: where the service runs
   * @throws VmsgError 'limit-reached' when the kernel does not share as much
   */
  makeRegion(bytes: number, peer: number | undefined): OwnRegion;
  makeQueueSignal(forProgram: boolean): QueueSignal;
  /** Domain that reaches the memory of a device itself; undefined: it is the service that does. */
  peerOf(device: number): number | undefined;
  /** Memory that is granted page by page; undefined where memory is shared in regions. */
  readonly grants: GrantArena | undefined;
  /** There will be no other connection. What was made and is not closed stays usable here. Idempotent. */
  close(): void;
}
