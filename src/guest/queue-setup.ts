import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import { type FeatureSet, feature } from '../virtio/features.ts';
import type { IndirectTable } from '../virtio/queue.ts';
import { openSplitDriverQueue, type RingAddresses, type SplitDriverQueue } from '../virtio/split/driver-queue.ts';
import { descBytes, splitRingAlign, splitRingBytes } from '../virtio/split/ring.ts';
import { setVqueueFlags, vqueueEnabled } from '../virtio-msg/transport-messages.ts';
import type { GuestBus } from './bus.ts';
import type { GuestBuffer, GuestMemory } from './memory.ts';
import { DescriptorNotifier, messageNotifier, type Notifier } from './notifier.ts';
import { indirectEntries, type QueueOptions, VirtQueue } from './queue.ts';

export interface QueueParts {
  readonly bus: GuestBus;
  readonly device: number;
  readonly index: number;
  readonly features: FeatureSet;
  readonly options: QueueOptions;
}

const defaultSize = 128;

interface QueueMemory {
  readonly rings: SplitDriverQueue;
  readonly tables: IndirectTable[];
  readonly buffers: readonly GuestBuffer[];
}

/**
 * Sets a queue up and confirms that the device took it over (D5, SET_VQUEUE; GET_VQUEUE tells).
 * @param register takes the queue before the device hears of it: its memory goes back only after a reset
 */
export async function openQueue(
  parts: QueueParts,
  onFault: (error: VmsgError) => void,
  register: (queue: VirtQueue) => void,
): Promise<VirtQueue> {
  const size = await chooseSize(parts);
  const memory = allocate(parts.bus.memory, size, parts.features);
  const notifier = makeNotifier(parts);
  const queue = new VirtQueue({ index: parts.index, notifier, ...memory }, onFault);
  register(queue);
  await configure(parts, memory.rings.setup, size);
  await notifier.wire('normal');
  return queue;
}

async function chooseSize({ bus, device, index, options }: QueueParts): Promise<number> {
  if (options.notify === 'descriptors' && !bus.terms.queueNotify) {
    throw new VmsgError('invalid-request', 'the bus does not offer QUEUE_NOTIFY');
  }
  const now = await bus.request(device, 'GET_VQUEUE', { index });
  if (now.index !== index) throw new VmsgError('protocol-violation', 'GET_VQUEUE: the device answered another queue');
  if (now.maxSize === 0) throw new VmsgError('not-found', `device ${device} has no queue ${index}`);
  if (now.flags & vqueueEnabled) throw new VmsgError('protocol-violation', `queue ${index} is enabled after a reset`);
  const wanted = options.size ?? defaultSize;
  if (!Number.isInteger(Math.log2(wanted)) || wanted > limits.queueSizeMax) {
    throw new VmsgError('invalid-request', `a queue has a power of two up to ${limits.queueSizeMax}, not ${wanted}`);
  }
  return 2 ** Math.floor(Math.log2(Math.min(wanted, now.maxSize)));
}

function allocate(memory: GuestMemory, size: number, features: FeatureSet): QueueMemory {
  const bytes = splitRingBytes(size);
  const buffers: GuestBuffer[] = [];
  const take = (length: number, align: number): GuestBuffer => {
    const buffer = memory.alloc(length, align);
    buffers.push(buffer);
    return buffer;
  };
  try {
    const desc = take(bytes.desc, splitRingAlign.desc);
    const driver = take(bytes.driver, splitRingAlign.driver);
    const device = take(bytes.device, splitRingAlign.device);
    const rings = openSplitDriverQueue({
      size,
      features,
      descAddr: desc.busAddress,
      driverAddr: driver.busAddress,
      deviceAddr: device.busAddress,
      memory: { desc: desc.bytes, driver: driver.bytes, device: device.bytes },
    });
    const indirect = features.has(feature.INDIRECT_DESC);
    const tables = indirect ? makeTables(take(size * indirectEntries * descBytes, descBytes), size) : [];
    return { rings, tables, buffers };
  } catch (error) {
    for (const buffer of buffers) buffer.free();
    throw error;
  }
}

function makeTables(buffer: GuestBuffer, count: number): IndirectTable[] {
  const tableBytes = indirectEntries * descBytes;
  return Array.from({ length: count }, (_, i) => {
    const { hi, lo } = buffer.range(i * tableBytes, tableBytes);
    const { bytes } = buffer;
    return { hi, lo, words: new Uint32Array(bytes.buffer, bytes.byteOffset + i * tableBytes, tableBytes / 4) };
  });
}

async function configure({ bus, device, index }: QueueParts, rings: RingAddresses, size: number): Promise<void> {
  const { descAddr, driverAddr, deviceAddr } = rings;
  const flags = setVqueueFlags.enable;
  await bus.request(device, 'SET_VQUEUE', { index, flags, size, reserved: 0, descAddr, driverAddr, deviceAddr });
  const now = await bus.request(device, 'GET_VQUEUE', { index });
  const same = now.descAddr === descAddr && now.driverAddr === driverAddr && now.deviceAddr === deviceAddr;
  if (now.index !== index || now.size !== size || !(now.flags & vqueueEnabled) || !same) {
    throw new VmsgError('protocol-violation', `device ${device} did not take queue ${index} over`);
  }
}

const makeNotifier = ({ bus, device, index, options }: QueueParts): Notifier =>
  options.notify === 'descriptors' ? new DescriptorNotifier(bus, device, index) : messageNotifier(bus, device, index);
