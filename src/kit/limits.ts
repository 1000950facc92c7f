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
  /** Memory of ours that one device on the shadow path copies through, its rings included. */
  shadowMemoryBytes: 16 * 1024 ** 2,
  /** Entries of one ring towards the serving side, and of all rings of one device together. */
  shadowRingEntries: 256,
  shadowRingEntriesTotal: 2048,
  /** Requests of one queue that the shadow path takes before it has completed any. */
  shadowInFlightRequests: 128,
  /** Configuration space of a device on the shadow path; a device record keeps no more. */
  shadowConfigMaxBytes: 1024,
  /** Configuration of the serving side is read this long after it said that it changed: changes in between are one. */
  shadowConfigReadMs: 20,
  /** When the service ends, requests that the serving side has get this long before they are taken back. */
  shadowDrainMs: 1_000,
  /** Guests of a bus wait this long at a start for devices that other guests serve and that resume. */
  resumeHoldMs: 10_000,
  /** Memory that a serving side has not given back after this long is reported as stuck, and it is told again this often. */
  shareStuckMs: 3_000,
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
  /**
   * Requests of one blk device at the operating system at a time, in the thread pool and in an io_uring: one slow disk
   * must not take every I/O thread.
   */
  blkInFlightRequests: 8,
  blkRingRequests: 16,
  /** Entries of the io_uring of one image file, a power of two: also for what is no request of a driver. */
  blkRingEntries: 64,
  /** Threads of the kernel for all io_urings of a lane: as many as four slow disks take. */
  blkRingThreads: 64,
  /** Reads up to this size are served at once when the page cache has them; larger ones would hold others up. */
  blkReadNowBytes: 16 * 1024,
  /** Writes up to this size may be taken at once by an io_uring, where the file system can do that without waiting. */
  blkWriteNowBytes: 256 * 1024,
  /** Queues that a blk device may be given. */
  blkQueuesMax: 16,
  /** Requests of all queues of one blk device that wait for their turn: each queue hands over as many as may run. */
  blkWaitingRequests: 16 * 16,
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
  /** Time in which a bus of Xen has to appear, and to be offered to this guest. */
  guestXenOfferTimeoutMs: 5_000,
  /** Offers answered in one attempt to connect; the service may withdraw one when it restarts. */
  guestXenOfferAttempts: 4,
  /** Time the service gets to let go of what this guest shared. */
  guestXenCloseTimeoutMs: 2_000,
  guestRingDefaultPages: 4,
  /** Pages that memory made of grants grows by at least, and has at most. */
  guestGrantChunkPages: 64,
  guestGrantMaxPages: 16_384,
  /** Chunks looked through for consecutive references before an allocation fails. */
  guestGrantAttempts: 4,
  admittedUidsPerBus: 64,
  /** Time that the toolstack gets to end a domain. */
  domainDestroyTimeoutMs: 30_000,
  /** Xen buses of one domain. */
  busesPerDomain: 32,
  /** Memory that the guest of one Xen bus may share as regions; a guest has 32768 grants. */
  poolMinBytes: 4096,
  poolMaxBytes: 64 * 1024 ** 2,
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
  /** Grant references that one call maps or shares. */
  grantMapMaxPages: 16_384,
  /** Event channels of one lane or guest process; domains have 131071 of them. */
  eventChannelsMax: 4096,
  /** Events taken from the kernel before others get their turn. */
  eventBatchPorts: 128,
  /** Payload of one message of xenstore's protocol (public/io/xs_wire.h). */
  xenstoreValueMaxBytes: 4096,
  xenstorePathMaxBytes: 3072,
  /** Names of one directory that are looked at. */
  xenstoreDirectoryNames: 32_768,
  xenstoreTransactionTries: 32,
  /** Watches of one connection; xenstored allows a guest 128. */
  xenstoreWatches: 2048,
  /** Running domains whose names are known; each takes two watches. */
  xenDomainsMax: 1000,
  /** Watch events taken before others get their turn. */
  xenstoreBatchEvents: 128,
  /** Pages of one ring of a Xen bus. */
  xenRingMaxPages: 16,
  /** Offers to a guest that keeps leaving: so many at once, then one more after each interval. */
  xenOfferBurst: 4,
  xenOfferIntervalMs: 250,
  /** Looks at the state of a guest that keeps changing it. */
  xenLookBurst: 16,
  xenLookIntervalMs: 50,
  /** A guest's directory that was removed is made again after this long, if its domain still runs. */
  xenDirectoryPauseMs: 1_000,
  /** Pools and event channels that one guest has mapped and bound, a pool once for each of these pages. */
  xenWorkBurst: 1024,
  xenWorkIntervalMs: 10,
  xenWorkPages: 256,
  /** Event channels of the queues of one bus. */
  xenQueuePortsPerBus: 1024,
  /** Pages of one descriptor that names grants: 4 MiB at any offset. */
  grantRunMaxPages: 1025,
  /** Pages of one bus that are mapped through descriptors at a time. */
  grantMappedMaxPages: 16_384,
  /** Pages of one bus that stay mapped between descriptors (feature-persistent). */
  grantCacheMaxPages: 4096,
  /** GRANT_RELEASE requests that wait for I/O. */
  grantReleasesWaiting: 64,
  /** Payload of one vhost-user message; the longest in use is a whole memory table. */
  vhostUserPayloadMaxBytes: 4096,
  /** Descriptors of one vhost-user message, as the protocol bounds them. */
  vhostUserFdsPerMessage: 8,
  /** Configuration space that one vhost-user message carries. */
  vhostUserConfigMaxBytes: 256,
  /** The protocol keeps a queue index in 8 bits. */
  vhostUserQueuesMax: 256,
  /** Regions of one vhost-user memory table that is sent as a whole. */
  vhostUserTableRegions: 8,
  /** Memory slots used of a back-end that takes regions one by one. */
  vhostUserMemSlotsMax: 512,
  /** Requests to one back-end without an answer, or to be served for one front-end. */
  vhostUserPendingRequests: 256,
  /** Messages that wait because the peer does not read. */
  vhostUserSendQueueMessages: 256,
  /** Messages taken from one vhost-user socket before others get their turn. */
  vhostUserBatchMessages: 16,
  vhostUserRequestTimeoutMs: 10_000,
  /** From the connection until a back-end has told what it serves, and has our memory; less than a lane call may take. */
  vhostUserOpenTimeoutMs: 8_000,
  /** A back-end stops its queues and completes what it has taken, or loses its connection. */
  vhostUserResetTimeoutMs: 8_000,
  vhostUserDrainMs: 5_000,
  /** Before the first try to connect again to a back-end that was lost; somebody starts it anew, which takes less. */
  vhostUserRetryMinMs: 100,
  /** A back-end with requests that completes none for so long is asked whether it is there. */
  vhostUserWatchdogMs: 15_000,
  /** A back-end that stops a queue may have to wait for its storage first. */
  vhostUserStopTimeoutMs: 30_000,
  /** A program that the service starts has to listen by then, the end of an earlier one of its backend included. */
  programStartTimeoutMs: 6_000,
  /** A program that was asked to end gets this long before it is killed: it may have to write its caches. */
  programGraceMs: 4_000,
  /** After this long a killed process that is still there is reported; the kernel may wait for a disk or a server. */
  programKillTimeoutMs: 5_000,
  /** Longest pause between two looks whether a program listens, or whether its processes are gone. */
  programLookMaxMs: 50,
  /** Programs that are started for new guests of a device at once, and then one in each interval. */
  programRenewalBurst: 8,
  /** Until it is there. */
  programRenewalTimeoutMs: 30_000,
  programRenewalIntervalMs: 2_000,
  /** Parts of a command line. */
  programArgumentsMax: 256,
  programArgumentMaxBytes: 4096,
  /** Of one line that a program prints; the rest of the line is dropped. */
  programLineMaxBytes: 500,
  /** Lines of one program that are logged at once, and then one in each interval. */
  programLineBurst: 50,
  programLineIntervalMs: 200,
  /** A program that prints more is not read for this long. */
  programFloodPauseMs: 100,
  /** Last lines of a program that the reason of its end quotes. */
  programTailLines: 4,
  /** Open files of a program, where nothing else is said and the service may have as many. */
  programOpenFilesDefault: 65_536,
  /** Writable memory of its own that a program may have, where nothing else is said; memory of guests does not count. */
  programMemoryDefaultBytes: 4 * 1024 ** 3,
  /** Programs that the config file names. */
  programsMax: 64,
  /** Ports that one network forwards. */
  forwardedPortsMax: 64,
  /** Threads that pass notifications on between guests and programs. */
  dataPlaneWorkersMax: 8,
  /** Joined queues of one such thread. */
  dataPlaneJoinsPerWorker: 4096,
  /** Descriptors with an event that one look takes, and notifications that are passed on before the next look. */
  dataPlaneBatchEvents: 64,
  dataPlaneBatchSignals: 128,
  /** Commands that are carried out before notifications get their turn. */
  dataPlaneBatchCommands: 16,
  /** A thread without events looks whether it is to end after this long, should nobody have been able to wake it. */
  dataPlaneWaitMs: 1_000,
  dataPlaneReplyTimeoutMs: 5_000,
  /** Time that looking for the next event without sleeping may be set to. */
  dataPlaneSpinMaxUs: 1_000,
  /** Waits without such a look after many looks in a row that found nothing. */
  dataPlaneSpinPauseWaits: 1024,
  configFileMaxBytes: 4 * 1024 * 1024,
  storeFileMaxBytes: 64 * 1024 * 1024,
} as const;
