import type { WindowSize } from '../../../libc/pty.ts';

/** What a host end tells its port. Any of these may come while `read`, `write` or `hangUp` runs, or later. */
export interface HostEndEvents {
  /** A program of the host is there. */
  connected(): void;
  /** It is gone, and all that it sent has been read or is lost. */
  disconnected(): void;
  /** There is something to read, while `wantRead`. */
  readable(): void;
  /** There is room to write, while `wantWrite`. */
  writable(): void;
  /** The program changed its window. */
  resized(size: WindowSize): void;
}

/** The host's side of a port: a place where one program at a time can connect. Nothing here waits or buffers. */
export interface HostEnd {
  readonly connected: boolean;
  /** Begins to tell `events`; called once. */
  start(events: HostEndEvents): void;
  /** Reads what is there, straight into memory of the guest. @returns bytes; 0: nothing now */
  read(into: Uint8Array): number;
  /** Writes what fits; what a program that is leaving will not read is lost. @returns bytes; 0: no room now */
  write(from: Uint8Array): number;
  wantRead(wanted: boolean): void;
  wantWrite(wanted: boolean): void;
  /** Sends the program away, if there is one; another one may connect. */
  hangUp(): void;
  /** Releases everything; tells nothing any more. */
  close(): void;
}
