import { VmsgError } from '../kit/errors.ts';
import {
  blkConfig,
  blkIdBytes,
  blkRange,
  blkRequestHead,
  blkRequestType,
  blkStatus,
  sectorBytes,
} from '../virtio/blk.ts';
import { deviceId } from '../virtio/device-ids.ts';
import { blkFeature, FeatureSet } from '../virtio/features.ts';
import { type Decoded, decode, encode, Malformed } from '../wire/layout.ts';
import { encodeRanges, type RangeLimits, splitRanges } from './blk-ranges.ts';
import { type BlkStreamOptions, readBlkStream } from './blk-stream.ts';
import { type BusRange, GuestBuffer } from './buffer.ts';
import type { GuestBus } from './bus.ts';
import { VirtioDevice } from './device.ts';
import { Emitter } from './emitter.ts';
import type { QueueOptions, RingOptions, VirtQueue } from './queue.ts';
import { inParallel, Slots } from './slots.ts';

export interface BlkOptions extends QueueOptions, RingOptions {
  /** Requests in flight at a time, over all queues; 16 by default. */
  readonly depth?: number;
  /** Queues to spread requests over, at most as many as the device has; 1 by default. */
  readonly queues?: number;
  /** Largest request, bytes, a multiple of 512; 128 KiB by default. Larger reads and writes are split. */
  readonly transferBytes?: number;
}

export interface BlkEvents {
  resized: { readonly capacityBytes: number };
  /** See `DeviceEvents.failed`. */
  failed: VmsgError;
}

/** Memory of one request: head, bounce data and status; and the queue that it goes to. */
interface Slot {
  readonly queue: VirtQueue;
  readonly head: GuestBuffer;
  readonly status: GuestBuffer;
  readonly data: GuestBuffer;
}

const wanted = FeatureSet.of(
  blkFeature.SIZE_MAX,
  blkFeature.SEG_MAX,
  blkFeature.RO,
  blkFeature.BLK_SIZE,
  blkFeature.FLUSH,
  blkFeature.TOPOLOGY,
  blkFeature.CONFIG_WCE,
  blkFeature.MQ,
  blkFeature.DISCARD,
  blkFeature.WRITE_ZEROES,
);
/** Beyond it byte positions are no exact numbers. */
const capacityMaxSectors = BigInt(Math.floor(Number.MAX_SAFE_INTEGER / sectorBytes));
/** More in one request only make others wait longer. */
const rangesPerRequest = 32;
const metaBytes = 32;
const statusOffset = 16;
/** A value that no device writes, so that a status it did not write is noticed. */
const statusUnwritten = 0xff;

/**
 * Driver of a block device (virtio 1.3, 5.2). Positions are sectors of 512 bytes, lengths bytes in whole sectors.
 *
 * All methods reject with VmsgError: 'invalid-request' outside the disk, or a write to a read-only one; 'io-error'
 * when the device reports a failure; 'device-failed', 'not-found' or 'bus-lost' when it is gone.
 */
export class BlkDriver extends Emitter<BlkEvents> {
  readonly device: VirtioDevice;
  /** Queues in use. */
  readonly queues: number;
  readonly #slots: Slots<Slot>;
  readonly #depth: number;
  readonly #transferBytes: number;
  #config: Decoded<typeof blkConfig>;
  #closed = false;

  private constructor(
    device: VirtioDevice,
    queues: readonly VirtQueue[],
    config: Decoded<typeof blkConfig>,
    options: Required<Pick<BlkOptions, 'depth' | 'transferBytes'>>,
  ) {
    super();
    this.device = device;
    this.queues = queues.length;
    this.#config = config;
    this.#depth = options.depth;
    const slots = makeSlots(device, queues, options.depth, options.transferBytes);
    this.#transferBytes = slots[0]!.data.length;
    this.#slots = new Slots(slots);
    device.on('config', () => {
      this.#refresh().catch(() => {
        // The device has failed, which 'failed' tells; or the next change tells.
      });
    });
    device.on('failed', (error) => {
      this.#slots.end(error);
      this.emit('failed', error);
    });
  }

  /**
   * Takes block device `number` of a bus and makes it ready.
   * @throws VmsgError 'invalid-request' when it is no block device; else as `VirtioDevice.open`
   */
  static async open(bus: GuestBus, number: number, options: BlkOptions = {}): Promise<BlkDriver> {
    const {
      depth = 16,
      transferBytes = 128 * 1024,
      queues: queuesWanted = 1,
      packed = false,
      inOrder = false,
      ...queueOptions
    } = options;
    if (depth < 1 || queuesWanted < 1 || transferBytes < sectorBytes || transferBytes % sectorBytes !== 0) {
      throw new VmsgError(
        'invalid-request',
        `depth ${depth}, queues ${queuesWanted}, transferBytes ${transferBytes} are not possible`,
      );
    }
    const device = await VirtioDevice.open(bus, number, { type: deviceId.blk, features: wanted, packed, inOrder });
    try {
      const config = await readConfig(device);
      const count = Math.min(queuesWanted, depth, device.features.has(blkFeature.MQ) ? config.numQueues : 1);
      const queues: VirtQueue[] = [];
      while (queues.length < Math.max(1, count)) queues.push(await device.addQueue(queues.length, queueOptions));
      const sizeMax = device.features.has(blkFeature.SIZE_MAX) ? config.sizeMax - (config.sizeMax % sectorBytes) : 0;
      const most = sizeMax === 0 ? transferBytes : Math.min(transferBytes, sizeMax);
      const driver = new BlkDriver(device, queues, config, { depth, transferBytes: most });
      await device.start();
      return driver;
    } catch (error) {
      await device.close();
      throw error;
    }
  }

  get capacityBytes(): number {
    return Number(this.#config.capacity) * sectorBytes;
  }

  get capacitySectors(): number {
    return Number(this.#config.capacity);
  }

  get readOnly(): boolean {
    return this.device.features.has(blkFeature.RO);
  }

  /** Bytes in which the device likes to be used; 512 when it does not say. */
  get blockSize(): number {
    return this.device.features.has(blkFeature.BLK_SIZE) ? this.#config.blkSize : sectorBytes;
  }

  /** Whether completed writes may still be lost before a `flush`. */
  get writeback(): boolean {
    const { features } = this.device;
    return features.has(blkFeature.CONFIG_WCE) ? this.#config.writeback !== 0 : features.has(blkFeature.FLUSH);
  }

  /**
   * Chooses between a write cache and a device that completes only what is durable.
   * @throws VmsgError 'invalid-request' when the device lets nobody choose
   */
  async setWriteback(on: boolean): Promise<void> {
    this.#needs(blkFeature.CONFIG_WCE, 'a choice of cache modes');
    await this.device.config.write(blkConfig.at.writeback, Uint8Array.of(on ? 1 : 0));
    await this.#refresh();
  }

  #needs(bit: number, what: string): void {
    if (this.device.features.has(bit)) return;
    throw new VmsgError('invalid-request', `device ${this.device.info.number} does not offer ${what}`);
  }

  async #refresh(): Promise<void> {
    const before = this.capacityBytes;
    this.#config = await readConfig(this.device);
    if (this.capacityBytes !== before) this.emit('resized', { capacityBytes: this.capacityBytes });
  }

  /**
   * Reads whole sectors. @param into a number of bytes to allocate, memory to copy into, or shared memory that the
   * device then fills without a copy and owns until the promise settles
   * @returns the bytes: new ones, `into`, or those of the shared buffer
   */
  async read(sector: number, into: number | Uint8Array | GuestBuffer): Promise<Uint8Array> {
    const target = typeof into === 'number' ? new Uint8Array(this.#checkLength(into)) : into;
    await this.#transfer(blkRequestType.IN, sector, target);
    return target instanceof GuestBuffer ? target.bytes : target;
  }

  /** Writes whole sectors, from shared memory without a copy. Durable after `flush`. */
  async write(sector: number, from: Uint8Array | GuestBuffer): Promise<void> {
    if (this.readOnly) throw new VmsgError('invalid-request', `device ${this.device.info.number} is read-only`);
    await this.#transfer(blkRequestType.OUT, sector, from);
  }

  #checkLength(length: number): number {
    if (Number.isSafeInteger(length) && length >= 0 && length % sectorBytes === 0 && length <= this.capacityBytes) {
      return length;
    }
    throw new VmsgError('invalid-request', `${length} bytes are not whole sectors of the disk`);
  }

  #checkRange(sector: number, bytes: number): number {
    const length = this.#checkLength(bytes);
    if (Number.isSafeInteger(sector) && sector >= 0 && sector + length / sectorBytes <= this.capacitySectors) {
      return length;
    }
    throw new VmsgError('invalid-request', `sector ${sector} and ${length} bytes exceed the disk`);
  }

  /**
   * Tells the device that sectors hold nothing of worth. What they read as afterwards is open.
   * @param length bytes. @throws VmsgError also 'invalid-request' when the device does not offer it
   */
  async discard(sector: number, length: number): Promise<void> {
    this.#needs(blkFeature.DISCARD, 'discard');
    const { maxDiscardSectors: sectors, maxDiscardSeg: ranges, discardSectorAlignment: alignment } = this.#config;
    await this.#erase(blkRequestType.DISCARD, sector, length, { sectors, ranges, alignment }, false);
  }

  /**
   * Makes sectors read as zero. @param length bytes
   * @param options unmap lets the device give their storage back
   * @throws VmsgError also 'invalid-request' when the device does not offer it
   */
  async writeZeroes(sector: number, length: number, { unmap = false }: { unmap?: boolean } = {}): Promise<void> {
    this.#needs(blkFeature.WRITE_ZEROES, 'writing zeroes');
    const { maxWriteZeroesSectors: sectors, maxWriteZeroesSeg: ranges } = this.#config;
    await this.#erase(blkRequestType.WRITE_ZEROES, sector, length, { sectors, ranges, alignment: 0 }, unmap);
  }

  async #erase(type: number, sector: number, bytes: number, limits: RangeLimits, unmap: boolean): Promise<void> {
    const sectors = this.#checkRange(sector, bytes) / sectorBytes;
    const room = Math.min(rangesPerRequest, Math.floor(this.#transferBytes / blkRange.size));
    // A limit of 0 is none at all.
    const most = { ...limits, sectors: limits.sectors || 0xffff_ffff, ranges: Math.min(limits.ranges || 1, room) };
    const requests = splitRanges(sector, sectors, most);
    await inParallel(requests.length, this.#depth, async (index) => {
      const slot = await this.#slots.take();
      const length = encodeRanges(requests[index]!, unmap, slot.data.bytes);
      await this.#request(slot, type, 0, [slot.data.range(0, length)], []);
      this.#slots.give(slot);
    });
  }

  async #transfer(type: number, sector: number, memory: Uint8Array | GuestBuffer): Promise<void> {
    const length = this.#checkRange(sector, memory.length);
    const most = this.#transferBytes;
    await inParallel(Math.ceil(length / most), this.#depth, (index) => {
      const offset = index * most;
      const part = { offset, length: Math.min(most, length - offset) };
      return this.#transferPart(type, sector + offset / sectorBytes, memory, part);
    });
  }

  async #transferPart(
    type: number,
    sector: number,
    memory: Uint8Array | GuestBuffer,
    part: { readonly offset: number; readonly length: number },
  ): Promise<void> {
    const slot = await this.#slots.take();
    // Of other shared memory the device knows nothing.
    const direct = memory instanceof GuestBuffer && memory.isOf(this.device.memory) ? memory : undefined;
    const source = memory instanceof GuestBuffer ? memory.bytes : memory;
    const bytes = direct === undefined ? source.subarray(part.offset, part.offset + part.length) : undefined;
    const data = (direct ?? slot.data).range(direct === undefined ? 0 : part.offset, part.length);
    if (bytes !== undefined && type === blkRequestType.OUT) slot.data.bytes.set(bytes);
    await this.#request(slot, type, sector, type === blkRequestType.OUT ? [data] : [], [
      ...(type === blkRequestType.IN ? [data] : []),
    ]);
    if (bytes !== undefined && type === blkRequestType.IN) bytes.set(slot.data.bytes.subarray(0, part.length));
    this.#slots.give(slot);
  }

  /** Runs one request. A slot whose request failed is given back here; else the caller does so. */
  async #request(
    slot: Slot,
    type: number,
    sector: number,
    readable: readonly BusRange[],
    writable: readonly BusRange[],
  ): Promise<void> {
    try {
      if (this.device.failure !== undefined) throw this.device.failure;
      encode(blkRequestHead, { type, reserved: 0, sector: BigInt(sector) }, slot.head.bytes);
      slot.status.bytes[0] = statusUnwritten;
      const written = await slot.queue.submit([slot.head, ...readable], [...writable, slot.status]);
      const room = writable.reduce((sum, range) => sum + range.length, 1);
      checkResult(slot.status.bytes[0] ?? statusUnwritten, written, room, sector);
    } catch (error) {
      this.#slots.give(slot);
      throw error;
    }
  }

  /** Makes all completed writes durable. A device without FLUSH writes through: nothing is left to do. */
  async flush(): Promise<void> {
    if (!this.device.features.has(blkFeature.FLUSH)) return;
    const slot = await this.#slots.take();
    await this.#request(slot, blkRequestType.FLUSH, 0, [], []);
    this.#slots.give(slot);
  }

  /** The serial of the disk, at most 20 characters; what is not printable shows as `?`. */
  async getId(): Promise<string> {
    const slot = await this.#slots.take();
    await this.#request(slot, blkRequestType.GET_ID, 0, [], [slot.data.range(0, blkIdBytes)]);
    const bytes = slot.data.bytes.slice(0, blkIdBytes);
    this.#slots.give(slot);
    const end = bytes.indexOf(0);
    const text = new TextDecoder('latin1').decode(bytes.subarray(0, end < 0 ? blkIdBytes : end));
    return text.replace(/[^\x20-\x7e]/g, '?');
  }

  /**
   * Reads a range in order, with the next parts already under way.
   * @param options range in bytes, by default the whole disk
   * @returns shared memory of the device, each part valid until the next one is asked for
   */
  stream(options: BlkStreamOptions = {}): AsyncGenerator<GuestBuffer, void, void> {
    return readBlkStream(this, options);
  }

  /** Resets the device; what waits ends with 'bus-lost'. Never rejects. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#slots.end(new VmsgError('bus-lost', `device ${this.device.info.number} was closed`));
    await this.device.close();
  }
}

function checkResult(status: number, written: number, room: number, sector: number): void {
  if (status === blkStatus.OK && written === room) return;
  const where = `sector ${sector}`;
  if (status === blkStatus.IOERR) throw new VmsgError('io-error', `${where}: the device reports an I/O error`);
  if (status === blkStatus.UNSUPP) throw new VmsgError('io-error', `${where}: the device does not support the request`);
  throw new VmsgError('io-error', `${where}: the device wrote ${written} of ${room} bytes, status ${status}`);
}

async function readConfig(device: VirtioDevice): Promise<Decoded<typeof blkConfig>> {
  // A device without later features may have a shorter space: what is missing reads as zero.
  const bytes = new Uint8Array(blkConfig.size);
  bytes.set(await device.config.read(0, Math.min(device.config.size, blkConfig.size)));
  const config = decode(blkConfig, bytes, 0, bytes.length);
  if (config instanceof Malformed || config.capacity > capacityMaxSectors) {
    throw new VmsgError('protocol-violation', `device ${device.info.number} has an impossible capacity`);
  }
  return config;
}

function makeSlots(device: VirtioDevice, queues: readonly VirtQueue[], depth: number, transferBytes: number): Slot[] {
  const meta = Array.from({ length: depth }, () => device.alloc(metaBytes));
  const data = device.allocEqual(depth, transferBytes);
  return Array.from({ length: depth }, (_, i) => ({
    queue: queues[i % queues.length]!,
    head: meta[i]!.slice(0, blkRequestHead.size),
    status: meta[i]!.slice(statusOffset, 1),
    data: data[i]!,
  }));
}
