import type { Lease } from '../ports/memory.ts';
import type { FeatureSet } from './features.ts';

/** What a driver has set up for one queue (virtio-msg SET_VQUEUE). Addresses are u64 bus addresses. */
export interface QueueSetup {
  readonly index: number;
  /** Entries. */
  readonly size: number;
  readonly descAddr: bigint;
  readonly driverAddr: bigint;
  readonly deviceAddr: bigint;
  /** The negotiated bits. */
  readonly features: FeatureSet;
}

/** A chain that a driver made available; the device owns it from `pop` to `push` or `abandon`. */
export interface Chain {
  /** Identifies the chain among those in flight. */
  readonly head: number;
  /** Host memory that the device may read, in order. Valid until the lease ends. */
  readonly readable: readonly Uint8Array[];
  /** Host memory that the device may write, in order. Valid until the lease ends. */
  readonly writable: readonly Uint8Array[];
  readonly readableBytes: number;
  readonly writableBytes: number;
  /** Ended by `push` and `abandon`. */
  readonly lease: Lease;
}

/** Every way in which a peer can break a queue. */
export type QueueFaultReason =
  | 'queue-size'
  | 'ring-alignment'
  | 'ring-memory'
  | 'log-inconsistent'
  | 'avail-index'
  | 'head-range'
  | 'head-in-flight'
  | 'next-range'
  | 'chain-length'
  | 'chain-bytes'
  | 'chain-order'
  | 'indirect-not-negotiated'
  | 'indirect-with-next'
  | 'indirect-nested'
  | 'indirect-length'
  | 'address'
  | 'used-index'
  | 'used-id'
  | 'used-length';

/** The peer broke the queue; a value, never thrown. The device needs a reset. */
export class QueueFault {
  readonly reason: QueueFaultReason;
  /** For a person. */
  readonly detail: string;

  constructor(reason: QueueFaultReason, detail: string) {
    this.reason = reason;
    this.detail = detail;
  }
}

/** The device half of a queue. It treats everything that the driver can write as hostile. */
export interface DeviceQueue {
  readonly index: number;
  readonly size: number;
  /** Chains that were popped and neither pushed nor abandoned. */
  readonly inFlight: number;
  /** The fault that stopped the queue. */
  readonly fault: QueueFault | undefined;
  /**
   * Takes the next chain, or undefined when none is available or the queue is closed. The first fault is
   * final: each later call returns it again.
   */
  pop(): Chain | QueueFault | undefined;
  /**
   * Hands a chain back and ends its lease. The driver sees it after `publish`. When the queue has faulted nothing
   * is written and the fault is returned; when it is closed this is `abandon`.
   * @param writtenBytes bytes written from the start of the writable part, at most `chain.writableBytes`
   */
  push(chain: Chain, writtenBytes: number): QueueFault | undefined;
  /** Makes all pushed chains visible at once. */
  publish(): void;
  /** Whether the driver wants a notification for what was published since the last call. */
  needsInterrupt(): boolean;
  /** Asks the driver not to kick; kicks may still come. */
  suppressKicks(): void;
  /** Asks for kicks. @returns true when a chain became available meanwhile: pop again before waiting */
  enableKicks(): boolean;
  /** Ends the lease of a chain that will not be completed, as after a device reset. An in-flight log keeps it. */
  abandon(chain: Chain): void;
  /** Gives the ring memory back; chains in flight keep their leases. Idempotent. */
  close(): void;
}

/** A range of bus addresses; `length` is 1 to 2^32 - 1 bytes. */
export interface BufferRange {
  readonly hi: number;
  readonly lo: number;
  readonly length: number;
}

/** Memory for one indirect descriptor table, in use from `add` until `next` returns the token. */
export interface IndirectTable {
  /** 16-byte aligned, 16 bytes a descriptor. */
  readonly words: Uint32Array;
  readonly hi: number;
  readonly lo: number;
}

export interface UsedBuffer {
  readonly token: number;
  readonly writtenBytes: number;
}

/** Ring memory that the driver shares with the device; sizes and alignment by `ringBytes` and `ringAlign`. */
export interface DriverRingMemory {
  readonly desc: Uint8Array;
  readonly driver: Uint8Array;
  readonly device: Uint8Array;
}

/** Where the device finds the ring memory: u64 bus addresses. */
export interface RingAddresses {
  readonly descAddr: bigint;
  readonly driverAddr: bigint;
  readonly deviceAddr: bigint;
}

export interface DriverQueueSetup extends RingAddresses {
  /** Entries, as `isQueueSize` permits. */
  readonly size: number;
  /** The negotiated bits. */
  readonly features: FeatureSet;
  readonly memory: DriverRingMemory;
}

/** The driver half of a queue. It does not trust the device. */
export interface DriverQueue {
  readonly size: number;
  readonly freeDescriptors: number;
  /** What the device must be told. */
  readonly setup: DriverQueueSetup;
  /**
   * For a notification when NOTIFICATION_DATA is negotiated, a u32: where the next chain will go. Packed: position in
   * the ring, wrap counter in bit 31; split: the next value of the available index (virtio 1.3, 2.9).
   */
  readonly notificationData: number;
  /**
   * Makes a chain of buffers ready; the device is told of it by `kick`.
   * @returns a token that is unique among those outstanding, or undefined when there are too few free descriptors
   */
  add(
    readable: readonly BufferRange[],
    writable: readonly BufferRange[],
    options?: { readonly indirect?: IndirectTable },
  ): number | undefined;
  /** Publishes all added chains. @returns true when the device wants a notification */
  kick(): boolean;
  /** Takes the next completed chain. The first fault is final. */
  next(): UsedBuffer | QueueFault | undefined;
  /** Asks the device not to interrupt; interrupts may still come. */
  suppressInterrupts(): void;
  /** Asks for interrupts. @returns true when a chain was completed meanwhile: call `next` before waiting */
  enableInterrupts(): boolean;
}
