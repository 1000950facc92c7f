/**
 * Drives virtio devices from a guest process, over virtio-msg. Start with `connect`, then `BlkDriver.open` or
 * `RngDriver.open`, or `VirtioDevice.open` for a driver of your own. See docs/guest.md.
 */
export { type ErrorCode, VmsgError } from '../kit/errors.ts';
export type { Backend, BackendDescription, BackendRequest } from '../ports/backend.ts';
export { FeatureSet, feature } from '../virtio/features.ts';
export type { BusAccess, OwnRegion, QueueSignal } from './access.ts';
export { BlkDriver, type BlkEvents, type BlkOptions } from './blk.ts';
export type { BlkStreamOptions } from './blk-stream.ts';
export { type BusRange, GuestBuffer } from './buffer.ts';
export { GuestBus } from './bus.ts';
export type { MemoryUse } from './bus-memories.ts';
export type { BusEvents, BusOptions, BusStatistics } from './bus-types.ts';
export { type ConnectOptions, connect, connectXen, type XenConnectOptions } from './connect.ts';
export { ConsoleDriver, type ConsoleEvents, type ConsoleOptions, type ConsoleSize } from './console.ts';
export type { ConsolePort, ConsolePortEvents } from './console-port.ts';
export { type DeviceEvents, type DeviceOptions, VirtioDevice } from './device.ts';
export { type DeviceInfo, deviceInfo } from './device-info.ts';
export { DeviceServer, type DeviceServerEvents, type DeviceServerOptions, serveDevices } from './device-server.ts';
export { offeredFeatures } from './feature-blocks.ts';
export { type LoopbackOptions, loopbackFactory } from './loopback-transport.ts';
export { GuestMemory } from './memory.ts';
export type { QueueOptions, RingOptions, VirtQueue } from './queue.ts';
export { RngDriver } from './rng.ts';
export { type DeviceMemory, openDeviceMemory } from './shared-memory.ts';
export type {
  GuestTransport,
  ResumePoint,
  TransportCounters,
  TransportFactory,
  TransportHandlers,
  TransportTerms,
} from './transport.ts';
export type { XenOptions } from './xen-access.ts';
