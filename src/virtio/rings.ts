import { assert } from '../kit/assert.ts';
import { limits } from '../kit/limits.ts';
import type { AddressSpace } from '../ports/memory.ts';
import { isQueueSize, ringAlign, ringBytes, ringLayout } from './geometry.ts';
import type { InflightLog } from './inflight.ts';
import { openPackedDeviceQueue } from './packed/device-queue.ts';
import { PackedDriver, type PackedDriverState } from './packed/driver-queue.ts';
import { PackedInflightLog } from './packed/inflight.ts';
import { type DeviceQueue, type DriverQueue, type DriverQueueSetup, QueueFault, type QueueSetup } from './queue.ts';
import { openSplitDeviceQueue } from './split/device-queue.ts';
import { SplitDriver, type SplitDriverState } from './split/driver-queue.ts';
import { SplitInflightLog } from './split/inflight.ts';

/**
 * Opens the device half of a queue, split or packed as negotiated. With a log that is resumable the queue continues
 * where the last process stopped: chains in flight are popped again first, in their order, and nothing that the
 * driver saw completed. With any other log, or none, the rings are taken to be at their beginning and the log is
 * started. The log is one of the layout and size of the queue.
 *
 * With IN_ORDER chains are handed back as they were made available, whatever the order of `push`, each with an
 * element of its own.
 */
export function openDeviceQueue(setup: QueueSetup, memory: AddressSpace, log?: InflightLog): DeviceQueue | QueueFault {
  const layout = ringLayout(setup.features);
  if (!isQueueSize(layout, setup.size)) return new QueueFault('queue-size', `${setup.size} entries`);
  if (layout === 'packed') {
    assert(log === undefined || log instanceof PackedInflightLog, 'the log has the layout of its queue');
    return openPackedDeviceQueue(setup, memory, log);
  }
  assert(log === undefined || log instanceof SplitInflightLog, 'the log has the layout of its queue');
  return openSplitDeviceQueue(setup, memory, log);
}

/** The private half of a driver queue as plain data: with it a queue continues on its ring memory. */
export type DriverQueueState = SplitDriverState | PackedDriverState;

/** A driver queue whose private half can be copied. */
export interface RingDriverQueue extends DriverQueue {
  save(): DriverQueueState;
}

/**
 * Opens the driver half of a queue, split or packed as negotiated, and zeroes the ring memory. With a saved state the
 * queue continues on ring memory as it is, outstanding chains included, as after a restart of the device's service;
 * the next `kick` then asks for a notification, since an earlier one may be lost.
 */
export function openDriverQueue(setup: DriverQueueSetup, state?: DriverQueueState): RingDriverQueue {
  const { size, memory } = setup;
  const layout = ringLayout(setup.features);
  assert(isQueueSize(layout, size), `${size} entries are possible, up to ${limits.queueSizeMax}`);
  const bytes = ringBytes(layout, size);
  const alignment = ringAlign(layout);
  for (const part of ['desc', 'driver', 'device'] as const) {
    const align = alignment[part];
    assert(memory[part].length === bytes[part], `the ${part} area has ${bytes[part]} bytes`);
    assert(memory[part].byteOffset % align === 0, `the ${part} area is aligned to ${align}`);
    assert(setup[`${part}Addr`] % BigInt(align) === 0n, `the ${part} address is aligned to ${align}`);
    if (state === undefined) memory[part].fill(0);
  }
  assert(state === undefined || state.layout === layout, 'the saved state has the layout of the queue');
  assert(state === undefined || state.writable.length === size, 'the saved state has the size of the queue');
  return layout === 'packed'
    ? new PackedDriver(setup, state as PackedDriverState | undefined)
    : new SplitDriver(setup, state as SplitDriverState | undefined);
}
