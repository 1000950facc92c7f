/** What a backend tells about the device it serves; constant while it is attached. */
export interface BackendDescription {
  /** virtio device type, e.g. 2 for a block device. */
  readonly deviceType: number;
  readonly vendorId: number;
  /** 16 bytes; all zero when there is none. */
  readonly uuid: Uint8Array;
  /** Device-specific feature bits (0..23, 50..127); the bridge adds those of the transport and the ring. */
  readonly featureBits: readonly number[];
  /** Largest size of each virtqueue; the length is the number of queues. */
  readonly queueSizes: readonly number[];
  /** Configuration space at attach time. */
  readonly config: Uint8Array;
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
}

/** What the bridge offers to a backend. */
export interface BackendHost {
  /** The configuration space has changed by itself: a new generation and an EVENT_CONFIG follow. */
  configChanged(offset: number, data: Uint8Array): void;
  /** The backend cannot go on: the device gets DEVICE_NEEDS_RESET. */
  failed(reason: string): void;
}

/**
 * What serves one device, inside a lane. The bridge owns features, status, queues and recovery; a backend
 * only sees requests while the driver is ready. Calls come one at a time.
 */
export interface Backend {
  readonly description: BackendDescription;
  /** DRIVER_OK was set. `has` tells which feature bits were negotiated. */
  activate(has: (featureBit: number) => boolean): void;
  handle(request: BackendRequest): void;
  /** Applies a driver's write to the configuration space in full, or refuses it in full. */
  writeConfig(offset: number, data: Uint8Array): boolean;
  /** The device was reset; all requests are completed. */
  deactivate(): void;
  /** Releases everything; resolves when nothing of it touches guest memory or files any more. */
  close(): Promise<void>;
}
