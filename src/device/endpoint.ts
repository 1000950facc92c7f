import type { ErrnoName } from '../kit/errno.ts';
import type { QueueWay } from '../ports/bus.ts';
import type { AddressSpace } from '../ports/memory.ts';
import type { TransportEvent, TransportRequest, TransportResponse } from '../virtio-msg/transport-messages.ts';
import type { AreaUser } from './area-table.ts';
import type { SharedMemory } from './shared-memory.ts';

/** The way from a device to its driver, for one connection of the bus. */
export interface DeviceLink {
  readonly space: AddressSpace;
  /** All memory of this connection, for devices that pass it on. */
  readonly memory: SharedMemory;
  /** Agreed with this guest, bytes; may be less than the bus allows. */
  readonly maxMessageSize: number;
  /** Kicks may come other than as EVENT_AVAIL, without its data. */
  readonly outOfBandKicks: boolean;
  /** Bus address of each shared memory region of the device, by id. */
  readonly sharedMemory: ReadonlyMap<number, bigint>;
  respond(token: number, response: TransportResponse): void;
  /** The visible failure of a request. */
  fail(token: number, messageId: TransportRequest['name'], errno: ErrnoName): void;
  event(event: TransportEvent): void;
  /** Used buffers: EVENT_USED, or the queue's own descriptor. */
  used(queue: number): void;
}

/** Memory that a device shares with its driver (GET_SHM). */
export interface SharedDeviceMemory {
  readonly id: number;
  readonly fd: number;
  readonly length: number;
}

/** A device as the session with its driver sees it, wherever it is served. */
export interface DeviceEndpoint extends AreaUser {
  readonly queueCount: number;
  readonly sharedMemory: readonly SharedDeviceMemory[];
  onRequest(request: TransportRequest, token: number): void;
  /** The driver made buffers available. @param next the data of EVENT_AVAIL, 0 without NOTIFICATION_DATA */
  onAvailable(queue: number, next: number): void;
  /** Another program works on the queues: kicks and calls can go there. */
  readonly hasProgram?: boolean;
  /** The guest's own way for kicks and calls of a queue, or none any more. @returns 0 or an errno for the guest */
  useWay?(queue: number, way: QueueWay | undefined): number | Promise<number>;
  /** A driver is there. `resume` keeps what the recovery memory holds; otherwise the device is in reset. */
  connect(link: DeviceLink, resume: boolean): void;
  /** The driver is gone: back to reset, without answers. `done` when nothing of its memory is used any more. */
  disconnect(done: () => void): void;
}

/** A device as its bus sees it: attached, for as long as that lasts. */
export interface ServedDevice extends DeviceEndpoint {
  readonly deviceType: number;
  /** virtio device status bits. */
  readonly status: number;
  /** Why the device needs a reset or cannot work, else null. */
  readonly reason: string | null;
  /** Requests completed and bytes moved since it was attached; null where others count them. */
  readonly work: { readonly requests: number; readonly bytes: number } | null;
  readonly recovery: 'resume' | 'reset';
  readonly dataPath: 'direct' | 'relayed' | 'shadow';
  queues(): { index: number; size: number; inFlight: number }[];
  /** Lets requests in flight complete towards the driver and takes no more. */
  suspend(done: () => void): void;
  /** Ends every control request that has no response yet, visibly. */
  failRequests(errno: ErrnoName): void;
}
