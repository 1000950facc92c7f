import { VmsgError } from '../kit/errors.ts';
import type { Closable } from '../kit/scope.ts';
import { Mapping } from '../libc/mapping.ts';
import { inspectMemfd } from '../libc/memfd.ts';
import type { GuestBus } from './bus.ts';
import { serviceError } from './errno.ts';

/** Memory that a device shares with its driver, mapped. */
export interface DeviceMemory extends Closable {
  readonly bytes: Uint8Array;
  /** Where the device's queues may name it. */
  readonly busAddress: bigint;
}

/**
 * Maps shared memory region `id` of a device (GET_SHM, SHM_OPEN). It stays mapped until it is closed, also when the
 * device goes.
 * @throws VmsgError 'not-found' when the device has no such region; 'protocol-violation', 'memory-refused'
 */
export async function openDeviceMemory(bus: GuestBus, device: number, id: number): Promise<DeviceMemory> {
  const { length, address } = await bus.request(device, 'GET_SHM', { index: id });
  if (length === 0n) throw new VmsgError('not-found', `device ${device} has no shared memory region ${id}`);
  const { errno, reference } = await bus.busRequest('SHM_OPEN', { device, reserved: 0, index: id });
  if (errno !== 0) throw serviceError(`SHM_OPEN of region ${id}`, errno);
  const fd = bus.takeDescriptor(reference);
  if (fd === undefined)
    throw new VmsgError('protocol-violation', 'the service named a descriptor that it did not send');
  try {
    const info = inspectMemfd(fd.number);
    if (typeof info === 'string') throw new VmsgError('memory-refused', `shared memory ${id}: ${info}`);
    if (BigInt(info.sizeBytes) < length) throw new VmsgError('protocol-violation', 'the region is smaller than said');
    const mapping = Mapping.map(fd.number, 0, Number(length), { writable: true });
    return { bytes: mapping.bytes, busAddress: address, close: () => mapping.close() };
  } finally {
    fd.close();
  }
}
