import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import { descBytes } from '../virtio/chain.ts';
import { type FeatureSet, feature } from '../virtio/features.ts';
import { isQueueSize, ringAlign, ringBytes, ringLayout } from '../virtio/geometry.ts';
import type { DriverQueue, IndirectTable, RingAddresses } from '../virtio/queue.ts';
import { openDriverQueue } from '../virtio/rings.ts';
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
  readonly rings: DriverQueue;
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

async function chooseSize({ bus, device, index, features, options }: QueueParts): Promise<number> {
  if (options.notify === 'descriptors' && !bus.terms.queueNotify) {
    throw new VmsgError('invalid-request', 'the bus does not offer QUEUE_NOTIFY');
  }
  const now = await bus.request(device, 'GET_VQUEUE', { index });
  if (now.index !== index) throw new VmsgError('protocol-violation', 'GET_VQUEUE: the device answered another queue');
  if (now.maxSize === 0) throw new VmsgError('not-found', `device ${device} has no queue ${index}`);
  if (now.flags & vqueueEnabled) throw new VmsgError('protocol-violation', `queue ${index} is enabled after a reset`);
  const wanted = options.size ?? defaultSize;
  const layout = ringLayout(features);
  if (!isQueueSize(layout, wanted)) {
    const entries = `up to ${limits.queueSizeMax} entries${layout === 'split' ? ', a power of two' : ''}`;
    throw new VmsgError('invalid-request', `a ${layout} queue has ${entries}, not ${wanted}`);
  }
  const size = Math.min(wanted, now.maxSize);
  return layout === 'split' ? 2 ** Math.floor(Math.log2(size)) : size;
}

function allocate(memory: GuestMemory, size: number, features: FeatureSet): QueueMemory {
  const layout = ringLayout(features);
  const bytes = ringBytes(layout, size);
  const align = ringAlign(layout);
  const buffers: GuestBuffer[] = [];
  const take = (length: number, align: number): GuestBuffer => {
    const buffer = memory.alloc(length, align);
    buffers.push(buffer);
    return buffer;
  };
  try {
    const desc = take(bytes.desc, align.desc);
    const driver = take(bytes.driver, align.driver);
    const device = take(bytes.device, align.device);
    const rings = openDriverQueue({
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
