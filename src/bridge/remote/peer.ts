import type { ErrnoName } from '../../kit/errno.ts';
import type { BusRequest } from '../../virtio-msg/bus-messages.ts';
import type { CanonicalMessage } from '../../virtio-msg/dialect.ts';
import type { TransportEvent } from '../../virtio-msg/transport-messages.ts';

/** The message path to a side that serves devices. */
export interface RemotePeer {
  readonly maxMessageSize: number;
  /** The far side tells the memory of several drivers apart; else it has one driver, which is us. */
  readonly byPeer: boolean;
  /** Bytes of a message on this path. */
  lengthOf(message: CanonicalMessage): number;
  send(message: CanonicalMessage, deviceNumber: number, token: number): void;
  giveDescriptor(fd: number): number | ErrnoName;
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
  addRegion(body: Extract<BusRequest, { name: 'REGION_ADD' }>['body']): Promise<number>;
  removeRegion(body: Extract<BusRequest, { name: 'REGION_DEL' }>['body']): Promise<number>;
}
