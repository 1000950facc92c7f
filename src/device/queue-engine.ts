import type { BackendBase, BackendMemory } from '../ports/backend.ts';
import type { QueueWay } from '../ports/bus.ts';
import type { FeatureSet } from '../virtio/features.ts';
import type { InflightLog } from '../virtio/inflight.ts';
import type { DeviceLink } from './endpoint.ts';
import type { QueueState } from './model.ts';

/** What an engine tells the device. */
export interface QueueEngineOwner {
  /** It cannot go on: DEVICE_NEEDS_RESET. */
  failed(reason: string): void;
}

/** A queue that the driver has enabled. */
export interface EnabledQueue extends QueueState {
  readonly index: number;
  readonly features: FeatureSet;
}

/**
 * Works on the queues of one device while its driver is ready: in this process (`LocalQueues`), or in another program.
 * `connect` comes first and `disconnect` last, for each driver that is there; the next driver may come while the engine still
 * ends its work for the one before. Calls come one at a time.
 */
export interface QueueEngine {
  /** Requests completed and bytes moved; null where others count them. */
  readonly work: { readonly requests: number; readonly bytes: number } | null;
  connect(link: DeviceLink): void;
  /** The driver of this link is gone; every queue is stopped. `done` when nothing of its memory is used any more. */
  disconnect(link: DeviceLink, done: () => void): void;
  /** DRIVER_OK was set, or a device that was ready is resumed. */
  activate(features: FeatureSet, memory: BackendMemory): void;
  /**
   * Starts a queue that is not started.
   * @param log of the queue, where the device has recovery memory
   * @param resume continue as `log` says; else the rings are at their beginning
   */
  start(queue: EnabledQueue, log: InflightLog | undefined, resume: boolean): void;
  /** The driver made buffers available. @returns false when the queue is not started */
  kick(index: number): boolean;
  /** Requests of a queue that were taken and not completed. */
  inFlight(index: number): number;
  /** Nothing more is taken or written; `done` when the queue's memory is not used any more. */
  stop(index: number, done: () => void): void;
  /** Stops every queue without waiting. */
  halt(): void;
  stopAll(done: () => void): void;
  /** Takes no more, completes what was taken towards the driver, then calls `done`. */
  drainAll(done: () => void): void;
  /** The device was reset; every queue is stopped. */
  deactivate(): void;
  /**
   * Lets the driver's kicks and calls of a queue go to another program by a way of the guest's own, which is the engine's
   * from now on. Absent where no other program works on the queues.
   * @returns 0 or an errno for the guest
   */
  useWay?(index: number, way: QueueWay | undefined): number | Promise<number>;
}

/** A device whose queues something else works on. */
export interface RingBackend extends BackendBase {
  readonly openQueues: (owner: QueueEngineOwner) => QueueEngine;
}
