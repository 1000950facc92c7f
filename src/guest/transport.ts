import type { Fd } from '../libc/fd.ts';

/** What both sides agreed when a connection was made. */
export interface TransportTerms {
  /** Largest message either side may send, bytes. */
  readonly maxMessageSize: number;
  /** virtio-msg transport revision that the bus publishes. */
  readonly revision: number;
  /** virtio-msg transport features; bit 0: SET_CONFIG is rejected when its generation is old. */
  readonly transportFeatures: number;
  /** Identifies this connection; tokens, area ids and descriptor indexes belong to it. */
  readonly epoch: bigint;
  /** Presented with `epoch` to resume after the service restarted, 16 bytes. */
  readonly token: Uint8Array;
  /** The devices kept their state from the epoch that was presented. */
  readonly resumed: boolean;
  /** Number of this domain, as the service says. */
  readonly domid: number;
  /** QUEUE_NOTIFY may be used. */
  readonly queueNotify: boolean;
  /** Xen: the service may keep grants mapped until GRANT_RELEASE. */
  readonly persistentGrants?: boolean;
}

/** An epoch to resume. */
export type ResumePoint = Pick<TransportTerms, 'epoch' | 'token'>;

export interface TransportHandlers {
  /** A frame, already private; valid during the call only. */
  onFrame(frame: Uint8Array): void;
  /** Frames that were refused as 'full' may fit now. */
  onRoom(): void;
  /** The connection ended, other than by `close`. Called once; nothing follows. */
  onLost(error: Error): void;
}

/** Plain counters, read when wanted. */
export interface TransportCounters {
  doorbellsIn: number;
  doorbellsOut: number;
}

/**
 * A connected message path to the service. The loopback bus is one; a simulator and Xen rings are others.
 * Frames arrive in order; nothing arrives before `start`.
 */
export interface GuestTransport {
  readonly terms: TransportTerms;
  readonly counters: Readonly<TransportCounters>;
  start(handlers: TransportHandlers): void;
  /** Sends one message. 'full': try again after `onRoom`. */
  sendFrame(frame: Uint8Array): 'sent' | 'full';
  /**
   * Hands copies of descriptors over; messages that follow may name them by index.
   * @returns index of the first. @throws VmsgError where the bus carries none
   */
  sendDescriptors(fds: readonly number[]): number;
  /** Takes a descriptor that the service has sent, by its index; the caller closes it. */
  takeDescriptor(index: number): Fd | undefined;
  /** Idempotent; `onLost` is not called. */
  close(): void;
}

/**
 * Makes a connection, once. Rejects with VmsgError: 'unavailable' nobody listens, 'bus-busy', 'bus-refused',
 * 'timeout', 'protocol-violation'.
 * @param onTerms called as soon as the terms are known, which may be before a failure
 */
export type TransportFactory = (
  resume: ResumePoint | undefined,
  onTerms?: (terms: TransportTerms) => void,
) => Promise<GuestTransport>;
