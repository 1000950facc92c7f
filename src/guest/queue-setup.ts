import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import { descBytes } from '../virtio/chain.ts';
import { type FeatureSet, feature } from '../virtio/features.ts';
import { isQueueSize, type RingLayout, ringAlign, ringBytes, ringLayout } from '../virtio/geometry.ts';
import type { DriverQueue, IndirectTable, RingAddresses } from '../virtio/queue.ts';
import { openDriverQueue } from '../virtio/rings.ts';
import { setVqueueFlags, vqueueEnabled } from '../virtio-msg/transport-messages.ts';
import type { GuestBuffer } from './buffer.ts';
import type { GuestBus } from './bus.ts';
import type { GuestMemory } from './memory.ts';
import { messageNotifier, type Notifier, signalNotifier } from './notifier.ts';
import { indirectEntries, type QueueOptions, VirtQueue } from './queue.ts';

export interface QueueParts {
  readonly bus: GuestBus;
  /** Memory that the device reaches. */
  readonly memory: GuestMemory;
  readonly device: number;
  readonly index: number;
  readonly features: FeatureSet;
  readonly options: QueueOptions;
  /** Whether another program works on the queues of the device. */
  readonly hasProgram: () => Promise<boolean>;
}

const defaultSize = 128;
const pageBytes = 4096;
const tableBytes = indirectEntries * descBytes;

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
  const memory = allocate(parts.memory, size, parts.features);
  const notifier = await makeNotifier(parts, memory.buffers);
  const queue = new VirtQueue({ index: parts.index, notifier, ...memory }, onFault);
  register(queue);
  await configure(parts, memory.rings.setup, size);
  await notifier.wire('normal');
  return queue;
}

const hasOwnSignal = ({ notify }: QueueOptions): boolean => notify === 'own' || notify === 'descriptors';

async function chooseSize({ bus, memory, device, index, features, options }: QueueParts): Promise<number> {
  if (hasOwnSignal(options) && !bus.terms.queueNotify) {
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
  const size = Math.min(wanted, now.maxSize, largestSize(layout, memory.scattered));
  return layout === 'split' ? 2 ** Math.floor(Math.log2(size)) : size;
}

/** The most entries; parts of scattered memory have to fit into a page. */
function largestSize(layout: RingLayout, scattered: boolean): number {
  let size: number = limits.queueSizeMax;
  while (scattered && Math.max(...Object.values(ringBytes(layout, size))) > pageBytes) size /= 2;
  return size;
}

function allocate(memory: GuestMemory, size: number, features: FeatureSet): QueueMemory {
  const layout = ringLayout(features);
  const bytes = ringBytes(layout, size);
  const align = ringAlign(layout);
  const buffers: GuestBuffer[] = [];
  // A part that has to fit in a page does not cross one either.
  const within = (length: number, least: number): number =>
    memory.scattered ? Math.max(least, 2 ** Math.ceil(Math.log2(length))) : least;
  const take = (length: number, align: number): GuestBuffer => {
    const buffer = memory.alloc(length, align);
    buffers.push(buffer);
    return buffer;
  };
  try {
    const desc = take(bytes.desc, within(bytes.desc, align.desc));
    const driver = take(bytes.driver, within(bytes.driver, align.driver));
    const device = take(bytes.device, within(bytes.device, align.device));
    const rings = openDriverQueue({
      size,
      features,
      descAddr: desc.busAddress,
      driverAddr: driver.busAddress,
      deviceAddr: device.busAddress,
      memory: { desc: desc.bytes, driver: driver.bytes, device: device.bytes },
    });
    const indirect = features.has(feature.INDIRECT_DESC);
    const tables = indirect ? Array.from({ length: size }, () => tableIn(take(tableBytes, tableBytes))) : [];
    return { rings, tables, buffers };
  } catch (error) {
    for (const buffer of buffers) buffer.free();
    throw error;
  }
}

function tableIn({ hi, lo, bytes }: GuestBuffer): IndirectTable {
  return { hi, lo, words: new Uint32Array(bytes.buffer, bytes.byteOffset, tableBytes / 4) };
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

async function makeNotifier(
  { bus, device, index, options, hasProgram }: QueueParts,
  buffers: readonly GuestBuffer[],
): Promise<Notifier> {
  try {
    const forProgram = options.notify !== 'messages' && (await hasProgram());
    if (!forProgram && !hasOwnSignal(options)) return messageNotifier(bus, device, index);
    return signalNotifier(bus, device, index, bus.makeQueueSignal(forProgram));
  } catch (error) {
    for (const buffer of buffers) buffer.free();
    throw error;
  }
}
