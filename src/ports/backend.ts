/** What a backend tells about the device it serves; constant while it is attached. */
export interface BackendDescription {
  /** virtio device type, e.g. 2 for a block device. */
  readonly deviceType: number;
  readonly vendorId: number;
  /** 16 bytes; all zero when there is none. */
  readonly uuid: Uint8Array;
  /** Device-specific feature bits (0..23, 50..127); the bridge adds those of the transport and the ring. */
  readonly featureBits: readonly number[];
  /** Bits of what rings can do that the backend can: INDIRECT_DESC, EVENT_IDX, RING_PACKED, IN_ORDER, NOTIFICATION_DATA. All without it. */
  readonly ringBits?: readonly number[];
  /** Largest size of each virtqueue; the length is the number of queues. */
  readonly queueSizes: readonly number[];
  /** Configuration space at attach time. */
  readonly config: Uint8Array;
  /**
   * Ranges of the configuration space that the driver writes. After a restart of the service, a driver that resumes
   * finds them as it left them: the bridge writes them again with `writeConfig`, before `activate`.
   */
  readonly driverConfig?: readonly { readonly offset: number; readonly length: number }[];
  /** False: single queues cannot be reset (RING_RESET is not offered); true by default. */
  readonly queueReset?: boolean;
  /** Requests of one queue that the backend takes before it has completed any. */
  readonly maxInFlight: number;
}

/** One descriptor chain of a guest. The bytes are the guest's memory: they may change at any time. */
export interface BackendRequest {
  readonly queue: number;
  readonly readable: readonly Uint8Array[];
  readonly writable: readonly Uint8Array[];
  readonly readableBytes: number;
  readonly writableBytes: number;
  /** Ends the request, exactly once; `writtenBytes` of the writable part carry data. */
  complete(writtenBytes: number): void;
  /**
   * Ends the request in place of `complete`, without an answer to the driver: after `cancel`, or while closing. A
   * device that is resumed later gets it again.
   */
  release(): void;
}

/** A few bytes of a backend that are kept with the state of the device, also when the process is killed. */
export interface BackendMemory {
  /** What was kept last before a resume; empty when the device starts afresh. */
  readonly kept: Uint8Array;
  /** Replaces what is kept, at once. At most `limits.backendMemoryMaxBytes`. */
  keep(bytes: Uint8Array): void;
}

/** What the bridge offers to a backend. */
export interface BackendHost {
  /** The configuration space has changed by itself: a new generation and an EVENT_CONFIG follow. */
  configChanged(offset: number, data: Uint8Array): void;
  /** The backend cannot go on: the device gets DEVICE_NEEDS_RESET. */
  failed(reason: string): void;
  /** What serves the device is away, and requests wait until it is back: why, or null when it is back. */
  away?(reason: string | null): void;
  /** What serves the device has gone and does not go on with its work: the device leaves the bus. */
  gone?(reason: string): void;
}

/** What every kind of backend has. Calls come one at a time. */
export interface BackendBase {
  readonly description: BackendDescription;
  /** The data is copied on its way: why. Absent where the backend works on the guest's memory. */
  readonly shadowReason?: string;
  /** False: a driver finds the device in reset after a restart of the service. True by default. */
  readonly resumes?: boolean;
  /** Memory that the device shares with its driver (GET_SHM), as sealed memfds that the backend owns. */
  readonly sharedMemory?: readonly { readonly id: number; readonly fd: number; readonly length: number }[];
  /** Applies a driver's write to the configuration space in full, or refuses it in full; the next call comes after. */
  writeConfig(offset: number, data: Uint8Array): boolean | Promise<boolean>;
  /** Releases everything; resolves when nothing of it touches guest memory or files any more. */
  close(): Promise<void>;
}

/**
 * What serves one device, inside a lane. The bridge owns features, status, queues and recovery; a backend
 * only sees requests while the driver is ready.
 */
export interface Backend extends BackendBase {
  /**
   * DRIVER_OK was set, or a device that was ready is resumed. `has` tells which feature bits were negotiated.
   * @param memory may be used until `deactivate`; absent where nothing outlives the process
   */
  activate(has: (featureBit: number) => boolean, memory?: BackendMemory): void;
  handle(request: BackendRequest): void;
  /**
   * The queue stops. Requests of it that wait for somebody else, such as receive buffers, are released before this
   * returns; what is being carried out is completed as usual. A backend without it never waits for anybody.
   * @param finish the driver still waits for answers: a backend that cannot tell the two apart may wait a little
   */
  cancel?(queue: number, finish: boolean): void;
  /** The device was reset; all requests are completed. */
  deactivate(): void;
}
