import type { Clock } from '../kit/clock.ts';
import type { VmsgError } from '../kit/errors.ts';
import type { TransportEvent } from '../virtio-msg/transport-messages.ts';
import type { LinkCounters } from './link.ts';

export interface BusOptions {
  /** Bytes of the first memory region, a multiple of 4096; 16 MiB by default, 0 for none. */
  readonly memoryBytes?: number;
  /** Time a request may take, milliseconds; longer than the service's own bound by default. */
  readonly requestTimeoutMs?: number;
  /** Connect again, and resume, when the connection is lost; for at most `totalMs` (30 s). Off by default. */
  readonly reconnect?: boolean | { readonly totalMs: number };
  readonly clock?: Clock;
}

export interface BusEvents {
  /** A device can be used. */
  added: { readonly device: number };
  /** A device is gone; what was open on it has failed with 'not-found'. */
  removed: { readonly device: number };
  /** The connection was lost and is being made again. */
  reconnecting: { readonly cause: Error };
  /** Connected again; `resumed` false: every device is in reset and must be opened again. */
  reconnected: { readonly epoch: bigint; readonly resumed: boolean };
  /** The connection is gone for good. */
  lost: VmsgError;
}

export interface BusStatistics extends LinkCounters {
  readonly doorbellsIn: number;
  readonly doorbellsOut: number;
  /** Connections made after the first. */
  readonly reconnects: number;
}

/** What an open device does about messages for it; see `GuestBus.attach`. */
export interface DeviceHooks {
  onConfig(event: (TransportEvent & { name: 'EVENT_CONFIG' })['body']): void;
  onUsed(queue: number): void;
  /** A new connection resumes: hand the kick and call descriptors over again. */
  rewire(): Promise<void>;
  /** The new connection is in use: look at the status, notify every queue, take what was completed. */
  resumed(): Promise<void>;
  /** The device is gone: end everything with this error. */
  lost(error: VmsgError): void;
}

/** A device's place in the routing. */
export interface Attachment {
  /** False once ended, or when the device left or went with the connection. */
  readonly active: boolean;
  /** Idempotent. */
  end(): void;
}

/** 'resume' requests go out before a new connection is in general use. */
export type Phase = 'normal' | 'resume';
