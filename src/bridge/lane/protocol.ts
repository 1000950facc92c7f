import type { AreaSnapshot } from '../../device/area-table.ts';
import type { ChannelCounters, ChannelSnapshot } from '../../device/channel.ts';
import type { FlightRecord } from '../../device/flight-recorder.ts';
import type { ErrorData } from '../../kit/errors.ts';
import type { GuestIdentity } from '../../ports/bus.ts';

/**
 * What crosses between the service and a lane: structured-cloneable values only, because a lane may run
 * in a Worker. No guest message crosses here.
 */
export interface LaneBusSpec {
  readonly bus: string;
  readonly transport: 'loopback';
  /** What the guest does: it uses devices, or it serves them. */
  readonly role: 'driver' | 'device';
  /** Number of the domain, told to the guest. */
  readonly domid: number;
  readonly socketPath: string;
  /** Permission bits of the socket. */
  readonly socketMode: number;
  /** User ids that may connect, checked with SO_PEERCRED. */
  readonly admittedUids: readonly number[];
  readonly maxMessageSizeBytes: number;
  readonly ringMaxBytes: number;
  /** Directory of the bus's recovery files; made by the lane. */
  readonly recoveryDir: string;
}

export type LaneBackendSpec =
  | {
      readonly type: 'blk';
      readonly path: string;
      readonly readOnly: boolean;
      readonly serial: string;
      /** 1 by default. */
      readonly queues?: number;
    }
  | { readonly type: 'rng'; readonly source: string }
  | {
      readonly type: 'console';
      /** Each with a socket or a pty: absolute paths. An empty name is none. */
      readonly ports: readonly { readonly name: string; readonly socket?: string; readonly pty?: string }[];
      readonly cols?: number;
      readonly rows?: number;
    }
  /** A device that the guest of another bus serves. */
  | { readonly type: 'guest'; readonly bus: string; readonly deviceNumber: number }
  /** A device of another bridge's bus. */
  | { readonly type: 'bridge'; readonly socket: string; readonly deviceNumber: number }
  | { readonly type: 'shm'; readonly bytes: number }
  | { readonly type: 'template'; readonly greeting: string };

export interface LaneAttachSpec {
  readonly bus: string;
  readonly attachment: string;
  /** Wanted device number; else the one it had before a restart, else the lowest one not used in this epoch. */
  readonly deviceNumber?: number;
  readonly backend: LaneBackendSpec;
}

/** Every command with its argument and result. Failures arrive as `ErrorData`. */
export interface LaneCommands {
  /** Makes the bus; guests are let in by `listenBus`, so that its devices are there when the first one resumes. */
  openBus: { argument: LaneBusSpec; result: null };
  listenBus: { argument: { readonly bus: string }; result: null };
  /** Removes the bus, its devices and its recovery files. */
  closeBus: { argument: { readonly bus: string }; result: null };
  attach: { argument: LaneAttachSpec; result: AttachedDevice };
  detach: { argument: { readonly bus: string; readonly attachment: string }; result: null };
  inspect: { argument: Record<string, never>; result: LaneSnapshot };
  /** The headers of the last messages on a bus, oldest first; those of the last guest when none is there. */
  records: { argument: { readonly bus: string }; result: readonly FlightRecord[] };
  /** Lets requests in flight finish (bounded), then releases everything; recovery files stay. */
  shutdown: { argument: Record<string, never>; result: null };
}

export interface AttachedDevice {
  readonly deviceNumber: number;
  readonly deviceType: number;
}

export type PeerIdentity = GuestIdentity;

export interface BusSnapshot {
  readonly bus: string;
  readonly state: 'listening' | 'handshake' | 'connected';
  /** 0n while no guest has ever connected. */
  readonly epoch: bigint;
  readonly peer: PeerIdentity | null;
  readonly counters: Readonly<ChannelCounters>;
  /** The message path to the guest, null while there is none. */
  readonly channel: ChannelSnapshot | null;
  /** Memory of the guest. */
  readonly shares: readonly AreaSnapshot[];
  readonly regions: number;
  readonly regionBytes: number;
  /** Regions already removed that I/O still pins. */
  readonly regionsDraining: number;
  readonly devices: readonly DeviceSnapshot[];
}

export interface DeviceSnapshot {
  readonly attachment: string;
  readonly deviceNumber: number;
  readonly deviceType: number;
  /** virtio device status bits. */
  readonly status: number;
  readonly queues: readonly { readonly index: number; readonly size: number; readonly inFlight: number }[];
  /** null where data does not pass the bridge. */
  readonly requests: number | null;
  readonly bytes: number | null;
  readonly recovery: 'resume' | 'reset';
  /** direct: the backend uses the guest's memory here. relayed: messages and memory are passed on. */
  readonly dataPath: 'direct' | 'relayed';
  /** Why the device needs a reset or cannot work, else null. */
  readonly reason: string | null;
}

export interface LaneSnapshot {
  readonly buses: readonly BusSnapshot[];
}

/** What a lane reports on its own. */
export type LaneEvent =
  | {
      readonly type: 'bus-connected';
      readonly bus: string;
      readonly epoch: bigint;
      readonly peer: PeerIdentity;
      readonly resumed: boolean;
    }
  | { readonly type: 'bus-disconnected'; readonly bus: string; readonly epoch: bigint; readonly reason: string }
  | { readonly type: 'bus-refused'; readonly bus: string; readonly peer: PeerIdentity | null; readonly reason: string }
  | {
      readonly type: 'device-status';
      readonly bus: string;
      readonly attachment: string;
      readonly deviceNumber: number;
      readonly status: number;
      readonly reason: string | null;
    }
  /** What served a device is gone; the lane has removed the attachment. */
  | { readonly type: 'attachment-lost'; readonly bus: string; readonly attachment: string; readonly reason: string }
  /** Devices that a guest of role `device` serves came or went. */
  | { readonly type: 'served-devices'; readonly bus: string; readonly devices: readonly number[] }
  | { readonly type: 'lane-failed'; readonly reason: string };

export type LaneCommandName = keyof LaneCommands;

/** A lane as the service sees it. */
export interface Lane {
  call<N extends LaneCommandName>(name: N, argument: LaneCommands[N]['argument']): Promise<LaneCommands[N]['result']>;
  /** One listener; set before the first call. */
  onEvent(listener: (event: LaneEvent) => void): void;
  /** Ends the lane without waiting for anything. Idempotent. */
  close(): void;
}

export interface LaneRequest {
  readonly call: number;
  readonly name: LaneCommandName;
  readonly argument: unknown;
}

export type LaneReply =
  | { readonly call: number; readonly result: unknown }
  | { readonly call: number; readonly error: ErrorData }
  | { readonly event: LaneEvent };
