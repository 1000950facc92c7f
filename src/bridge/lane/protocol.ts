import type { AreaSnapshot } from '../../device/area-table.ts';
import type { ChannelCounters, ChannelSnapshot } from '../../device/channel.ts';
import type { FlightRecord } from '../../device/flight-recorder.ts';
import type { ErrorData } from '../../kit/errors.ts';
import type { GrantSnapshot, GuestIdentity } from '../../ports/bus.ts';
import type { DiskIoKind } from '../backend/disk-io.ts';
import type { VhostUserDevice } from '../backend/vhost-user/shapes.ts';
import type { DataPlaneSnapshot } from '../data-plane/protocol.ts';

/**
 * What crosses between the service and a lane: structured-cloneable values only, because a lane may run
 * in a Worker. No guest message crosses here.
 */
interface LaneBusParts {
  readonly bus: string;
  /** What the guest does: it uses devices, or it serves them. */
  readonly role: 'driver' | 'device';
  /** Number of the domain, told to the guest. */
  readonly domid: number;
  readonly maxMessageSizeBytes: number;
  /** Directory of the bus's recovery files; made by the lane. */
  readonly recoveryDir: string;
}

export interface LoopbackBusSpec extends LaneBusParts {
  readonly transport: 'loopback';
  readonly ringMaxBytes: number;
  readonly socketPath: string;
  /** Permission bits of the socket. */
  readonly socketMode: number;
  /** User ids that may connect, checked with SO_PEERCRED. */
  readonly admittedUids: readonly number[];
}

export interface XenBusSpec extends LaneBusParts {
  readonly transport: 'xen';
  /** Which of the domain's buses: last part of the xenstore paths. */
  readonly index: number;
  /** Most bytes of all regions of the bus. */
  readonly poolMaxBytes: number;
  /** This life of the domain, fit for a file name: recovery files of another one are void. */
  readonly incarnation: string;
}

export type LaneBusSpec = LoopbackBusSpec | XenBusSpec;

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
  | {
      readonly type: 'guest';
      readonly bus: string;
      readonly deviceNumber: number;
      /**
       * direct: the serving guest maps the driver's memory; shadow: the bridge copies. auto, the default: direct where
       * that is possible.
       */
      readonly dataPath?: 'auto' | 'direct' | 'shadow';
    }
  /** A device of a process that listens on a socket, or, with mode listen, connects to it. */
  | {
      readonly type: 'vhost-user';
      readonly device: VhostUserDevice;
      readonly socket: string;
      /** connect by default. */
      readonly mode?: 'connect' | 'listen';
      readonly dataPath?: VhostUserDataPath;
    }
  | LaneProgramSpec
  /** A device of another bridge's bus. */
  | { readonly type: 'bridge'; readonly socket: string; readonly deviceNumber: number }
  | { readonly type: 'shm'; readonly bytes: number }
  | { readonly type: 'template'; readonly greeting: string };

/**
 * direct: the back-end works on the guest's memory; shadow: the bridge copies. auto, the default: direct where the service
 * starts the back-end and both sides can do it.
 */
export type VhostUserDataPath = 'auto' | 'direct' | 'shadow';

/** Pieces of one argument; `put` stands for the path of the socket, where QEMU reads it with its commas doubled. */
export type ProgramArgument = readonly (string | { readonly put: 'socket' | 'qemu-socket' })[];

/** A device of a vhost-user back-end that the lane starts. */
export interface LaneProgramSpec {
  readonly type: 'program';
  readonly device: VhostUserDevice;
  /** Id of the backend, for the log. */
  readonly backend: string;
  /** Name of the program, for people. */
  readonly program: string;
  /** What Debian calls the package with it; null where the config file has the command. */
  readonly package: string | null;
  /** File and arguments. */
  readonly command: readonly ProgramArgument[];
  /** Directory in which each start of a program gets one of its own; its mode is 0700. */
  readonly directory: string;
  /** RLIMIT_NOFILE; the default is lowered to what the service may have itself. */
  readonly openFiles?: number;
  /** RLIMIT_DATA */
  readonly memoryBytes?: number;
  /** never: when it has ended its device stays away. */
  readonly restart: 'always' | 'never';
  /** A file that is locked (flock) while the program runs. */
  readonly lock?: { readonly path: string; readonly exclusive: boolean };
  /** Address that a network device gets whose back-end gives none. */
  readonly mac?: string;
  readonly dataPath?: VhostUserDataPath;
}

export interface LaneAttachSpec {
  readonly bus: string;
  readonly attachment: string;
  /** Wanted device number; else the one it had before a restart, else the lowest one not used in this epoch. */
  readonly deviceNumber?: number;
  /** Numbers that other attachments of the bus want, whether they are there already or not. */
  readonly reservedNumbers?: readonly number[];
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
  /** Grants mapped on demand; null where the bus has none, or no guest is there. */
  readonly grants: GrantSnapshot | null;
  /** The last thing that the guest shares and that cannot be used, null when there is none in this epoch. */
  readonly diagnosis: string | null;
  readonly devices: readonly DeviceSnapshot[];
  /** Memory of others that the guest of this bus keeps although it was told to give it back; oldest first. */
  readonly stuck: readonly StuckSnapshot[];
}

/** Pages of a domain that it cannot have back. */
export interface StuckSnapshot {
  readonly domid: number;
  readonly pages: number;
  readonly ageMs: number;
}

/**
 * direct: the backend uses the guest's memory here. relayed: messages and memory are passed on. shadow: requests are
 * copied between the memory of both sides.
 */
export type DataPath = 'direct' | 'relayed' | 'shadow';

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
  readonly dataPath: DataPath;
  /** Why data is copied (shadow), else null. */
  readonly dataPathReason: string | null;
  /** Why the device needs a reset or cannot work, else null. */
  readonly reason: string | null;
}

/** How notifications are passed on between guests and programs. */
export interface DataPlaneSettings {
  /** Threads of the data plane; 0 for none of their own. */
  readonly dataPlaneWorkers: number;
  /** Longest look for the next event before such a thread sleeps, in microseconds. */
  readonly dataPlaneSpinUs: number;
}

/** What a lane is told when it starts. */
export interface LaneSettings extends DataPlaneSettings {
  /** How disks are read and written; `io_uring` becomes `threads` where there is none. */
  readonly diskIo: DiskIoKind;
}

export interface LaneSnapshot {
  readonly dataPlane: DataPlaneSnapshot;
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
  /** Something that the guest shares cannot be used. */
  | { readonly type: 'bus-diagnosis'; readonly bus: string; readonly text: string }
  /** What served a device is gone; the lane has removed the attachment. */
  | { readonly type: 'attachment-lost'; readonly bus: string; readonly attachment: string; readonly reason: string }
  /** Who would serve the device of an attachment that is not there has come. */
  | { readonly type: 'attachment-ready'; readonly bus: string; readonly attachment: string }
  /** What a program of a backend printed, or what became of it. */
  | {
      readonly type: 'program-log';
      readonly backend: string;
      readonly program: string;
      readonly level: 'info' | 'warn';
      readonly text: string;
    }
  /** Devices that a guest of role `device` serves came or went. */
  | { readonly type: 'served-devices'; readonly bus: string; readonly devices: readonly number[] }
  /** A serving guest keeps memory of a driver that is gone, or has given it back after all. */
  | {
      readonly type: 'share-stuck' | 'share-released';
      /** Bus and domain whose memory it is. */
      readonly bus: string;
      readonly domid: number;
      readonly pages: number;
      readonly ageMs: number;
      /** Bus and domain that have it mapped. */
      readonly mapperBus: string;
      readonly mapperDomid: number;
    }
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
