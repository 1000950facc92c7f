import type { ForeignFd } from '../libc/fd.ts';
import type { FeatureSet } from '../virtio/features.ts';
import type { MessageChannel } from './channel.ts';
import type { GuestMemory } from './guest-memory.ts';
import type { ServedQueue } from './served-queue.ts';

/** A device that is served to a front-end. Calls come one after the other. */
export interface ServedDevice {
  /** Features for the driver to choose from. */
  readonly features: FeatureSet;
  readonly queues: number;
  /** The configuration space as it is now; empty for none. At most `limits.vhostUserConfigMaxBytes`. */
  config(): Uint8Array;
  /** @param restored from before a migration, so that read-only fields are written too. @returns false to refuse */
  writeConfig(offset: number, content: Uint8Array, restored: boolean): boolean;
  /** @returns why the queue is refused */
  startQueue(queue: ServedQueue, memory: GuestMemory): string | undefined;
  /** After it nothing of the queue or the memory is touched. @returns where it would continue */
  stopQueue(index: number): Promise<number>;
  /** All queues are stopped: back to the initial state. */
  reset(): void;
  /** The front-end is gone; all queues are stopped. @param reason for a person */
  ended(reason: string): void;
}

/** Makes a channel of a socket that a front-end sent; the descriptor is the channel's. */
export type OpenChannel = (fd: ForeignFd) => MessageChannel;
