/**
 * Every bound of the service in one place; the unit is in the name. Hitting one is counted and tested.
 */
export const limits = {
  /** virtio-msg D5: the smallest maximum message size a bus may advertise. */
  messageSizeMinBytes: 52,
  /** D5 recommends not to advertise more. */
  messageSizeMaxBytes: 264,
  messageSizeDefaultBytes: 64,
  /** Data bytes of one direction of a message ring. */
  ringMaxBytes: 1024 * 1024,
  ringSlotsMin: 2,
  /** Messages taken from one channel before others get their turn. */
  channelBatchMessages: 64,
  /** Requests of one device waiting behind one that is not yet answered. */
  devicePendingRequests: 32,
  /** Responses and events kept for a guest whose ring is full, then the connection ends. */
  channelBacklogMessages: 1024,
  /** Message headers that the flight recorder of a bus keeps. */
  flightRecords: 256,
  /** Bounded completion of a request inside the bridge. */
  requestTimeoutMs: 5_000,
  /** Time the kernel and the guest get to finish the handshake. */
  handshakeTimeoutMs: 5_000,
  handshakeMessageMaxBytes: 512,
  fdsPerMessage: 8,
  /** Descriptors received but not yet used by a message. */
  pendingFdsPerBus: 16,
  regionMaxBytes: 4 * 1024 ** 3,
  /** One ArrayBuffer over foreign memory; Node 20 aborts above. */
  viewMaxBytes: 4 * 1024 ** 3,
  regionsPerBus: 64,
  /** Memory peers of one guest that serves devices. */
  peersPerBus: 64,
  /** Mapped bytes of all regions of one bus. */
  regionTotalMaxBytes: 16 * 1024 ** 3,
  /** A removed region may stay pinned by I/O this long before its users need a reset. */
  regionRemovalTimeoutMs: 2_000,
  /** Queues of a device that is reset may drain this long before the backend is reported as stuck. */
  resetTimeoutMs: 30_000,
  queueSizeMax: 1024,
  queuesPerDevice: 64,
  /** Requests to one serving side that have no response yet. */
  remoteRequests: 1024,
  /** Bytes that a backend keeps beside the state of its device. */
  backendMemoryMaxBytes: 64,
  /** Two queues a port and two for control messages are at most `queuesPerDevice`. */
  consolePortsMax: 31,
  consolePortNameMaxBytes: 64,
  /** Requests of one queue of a console that wait for data or for room. */
  consoleInFlightRequests: 64,
  /** Bytes that a console port takes from its host program before others get their turn. */
  consoleTurnMaxBytes: 256 * 1024,
  /** How often a pseudo terminal is looked at: whether a program has it open, and its window size. */
  consoleTerminalPollMs: 250,
  /** Connections to a console port that wait to be accepted. */
  consoleBacklogConnections: 4,
  /** Descriptors of one chain, indirect ones included. */
  chainDescriptorsMax: 1024,
  /** Chains taken from one queue before other queues get their turn. */
  queueBatchChains: 64,
  /** Requests of one blk device at the operating system at a time: one slow disk must not take every I/O thread. */
  blkInFlightRequests: 8,
  /** Reads up to this size are served at once when the page cache has them; larger ones would hold others up. */
  blkReadNowBytes: 16 * 1024,
  /** Queues that a blk device may be given. */
  blkQueuesMax: 16,
  /** Requests of all queues of one blk device that wait for their turn: each queue hands over as many as may run. */
  blkWaitingRequests: 16 * 8,
  /** Segment that a blk device asks drivers not to exceed. */
  blkSegmentMaxBytes: 4 * 1024 ** 2,
  /** Ranges of one discard or write-zeroes request. */
  blkRangesPerRequest: 32,
  blkDiscardRangeMaxBytes: 1024 ** 3,
  /** Less: where the file system cannot zero a range, the zeroes are written. */
  blkZeroRangeMaxBytes: 32 * 1024 ** 2,
  /** Zeroes of one write, where they are written. */
  blkZeroWriteBytes: 1024 ** 2,
  /** Time between two looks at the size of an image file. */
  blkSizePollMs: 1_000,
  /** Text that one request of the template device carries. */
  templateTextMaxBytes: 1024,
  shmRegionMinBytes: 4096,
  shmRegionDefaultBytes: 64 * 1024,
  shmRegionMaxBytes: 16 * 1024 ** 2,
  devicesPerBus: 256,
  busesMax: 256,
  domainsMax: 256,
  backendsMax: 1024,
  attachmentsMax: 4096,
  apiBodyMaxBytes: 64 * 1024,
  apiPageMaxItems: 1000,
  apiPageDefaultItems: 100,
  /** Events kept for one slow event stream before it is dropped. */
  eventStreamBacklogEvents: 1024,
  eventStreamsMax: 64,
  /** Loopback domains get numbers 1..0x7fee; FF-A keeps those above for itself. */
  loopbackDomidMax: 0x7fee,
  laneCallTimeoutMs: 15_000,
  /** Time a lane gets to let go of the kernel when the process ends. */
  laneReleaseTimeoutMs: 2_000,
  /** Requests a guest has without a response at a time, over all devices. */
  guestPendingRequests: 256,
  /** Longer than the bound of the service, so that its FAILURE comes first. */
  guestRequestTimeoutMs: 8_000,
  /** GET_DEVICES windows read in one enumeration. */
  guestDeviceWindows: 512,
  /** Feature blocks of 32 bits that a driver looks at. */
  guestFeatureBlocks: 8,
  /** Attempts to read a configuration space that keeps changing. */
  guestConfigReadAttempts: 8,
  guestConfigMaxBytes: 64 * 1024,
  /** Requests waiting for a free descriptor of one queue, or for a request slot of one driver. */
  guestQueueWaiters: 4096,
  guestMemoryDefaultBytes: 16 * 1024 * 1024,
  guestResetPollMaxMs: 100,
  guestReconnectDefaultMs: 30_000,
  guestReconnectDelayMinMs: 20,
  guestReconnectDelayMaxMs: 250,
  /** Doorbell packets discarded at a time; there is seldom another, and looking for it costs a system call. */
  guestDoorbellReads: 1,
  admittedUidsPerBus: 64,
  /** `sun_path` holds 108 bytes, the last one is zero. */
  unixSocketPathMaxBytes: 107,
  /** Operations that wait for their turn on one object. */
  operationsWaitingPerObject: 64,
  /** An object that could not be opened or attached is tried again after this long, doubling up to the second value. */
  reconcileRetryMinMs: 1_000,
  reconcileRetryMaxMs: 60_000,
  /** Past events kept for streams that reconnect. */
  eventHistoryEvents: 1024,
  eventStreamHeartbeatMs: 15_000,
  apiConnectionsMax: 256,
  /** Time a client gets to send a whole request. */
  apiRequestTimeoutMs: 30_000,
  /** Calls under way and event streams get this long when the service ends, then their connections are cut. */
  apiCloseTimeoutMs: 10_000,
  apiTokenMinChars: 16,
  apiTokenFileMaxBytes: 4096,
  /** Time to find out whether another service answers on a socket. */
  socketProbeTimeoutMs: 2_000,
  configFileMaxBytes: 4 * 1024 * 1024,
  storeFileMaxBytes: 64 * 1024 * 1024,
} as const;
