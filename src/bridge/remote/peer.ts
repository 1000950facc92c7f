import type { ErrnoName } from '../../kit/errno.ts';
import type { BusRequest } from '../../virtio-msg/bus-messages.ts';
import type { CanonicalMessage } from '../../virtio-msg/dialect.ts';
import type { TransportEvent } from '../../virtio-msg/transport-messages.ts';
import type { BounceMemory } from '../shadow/bounce-memory.ts';

/** The message path to a side that serves devices. */
export interface RemotePeer {
  readonly maxMessageSize: number;
  /** The far side tells the memory of several drivers apart; else it has one driver, which is us. */
  readonly byPeer: boolean;
  /** Bytes of a message on this path. */
  lengthOf(message: CanonicalMessage): number;
  send(message: CanonicalMessage, deviceNumber: number, token: number): void;
  giveDescriptor(fd: number): number | ErrnoName;
  /** The Xen domain of the far side, where it is one. */
  readonly domid?: number;
  /**
   * Makes memory of ours that the far side can map, for the shadow path; absent where it never can.
   * @param bytes a multiple of 4096. @throws VmsgError system-call, hypervisor-call
   */
  bounce?(bytes: number): BounceMemory;
}

/** Whose memory is passed on. */
export interface MemoryOwner {
  /** Its driver's bus. */
  readonly bus: string;
  readonly domid: number;
}

/** Memory that a far side keeps although its owner is gone, or has taken the device away. */
export interface StuckShare {
  readonly owner: MemoryOwner;
  readonly pages: number;
  /** Since the far side should have let go. */
  readonly ageMs: number;
}

/** What a device of the far side reports to its stand-in here. */
export interface RemoteEvents {
  onEvent(event: TransportEvent): void;
  /** The device, or the side that serves it, is gone. */
  onGone(reason: string): void;
}

/** A response, or why there is none. */
export type RemoteResult<R> = R | ErrnoName;

/** What passing memory on needs of a remote bus. Results are 0 or an errno. */
export interface MemoryPath {
  readonly peer: RemotePeer;
  readonly closed: boolean;
  addRegion(body: Extract<BusRequest, { name: 'REGION_ADD' }>['body']): Promise<number>;
  removeRegion(body: Extract<BusRequest, { name: 'REGION_DEL' }>['body']): Promise<number>;
}
