import { assert } from '../../kit/assert.ts';
import { BoundedQueue } from '../../kit/bounded-queue.ts';
import type { Clock, Timer } from '../../kit/clock.ts';
import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import type { Backend, BackendDescription, BackendHost, BackendRequest } from '../../ports/backend.ts';
import { blkConfig, blkIdBytes, blkRequestHead, blkRequestType, blkStatus, sectorBytes } from '../../virtio/blk.ts';
import { deviceId } from '../../virtio/device-ids.ts';
import { blkFeature } from '../../virtio/features.ts';
import { readU32 } from '../../wire/bytes.ts';
import { blkCapacityBytes, blkConfigBytes, blkFeatureBits, blkQueueSize } from './blk-config.ts';
import { readRanges, type SectorRange } from './blk-ranges.ts';
import { type DiskFile, openDiskFile } from './disk-file.ts';
import { type DiskIo, threadIo } from './disk-io.ts';
import { after, bytesIn, gather, scatter, trimmed } from './parts.ts';
import { bridgeVendorId } from './vendor.ts';

const headBytes = blkRequestHead.size;
const capacityOf = (file: DiskFile): number => Math.ceil(file.sizeBytes / sectorBytes);

export interface BlkParts {
  /** Request queues, 1 by default. */
  readonly queues?: number;
  /** Told about changes of the configuration space. */
  readonly host?: BackendHost;
  /** Requests at the file at a time, of all queues; at most `limits.blkRingRequests`. */
  readonly requestsMax?: number;
  /** With it the size of the image is looked at again and again. */
  readonly clock?: Clock;
}

/**
 * Block device on an image file (virtio 1.3, 5.2). The capacity is the file size rounded up to a sector; what lies
 * behind the end of the file, the padding, reads as zero and cannot be written. A range to discard or to zero may
 * reach into the padding: what is inside the file is done, the padding is zero already.
 */
export class BlkBackend implements Backend {
  readonly description: BackendDescription;
  readonly #file: DiskFile;
  readonly #id: Uint8Array;
  readonly #host: BackendHost | undefined;
  readonly #clock: Clock | undefined;
  #poll: Timer | undefined;
  /** The limit is for all queues: a device with more of them gets no more I/O threads. */
  readonly #requestsMax: number;
  /** Requests at the file. */
  #running = 0;
  #starting = false;
  readonly #waiting = new BoundedQueue<BackendRequest>(limits.blkWaitingRequests);
  #closing: (() => void) | undefined;
  #closed = false;
  /** Whether the driver agreed to CONFIG_WCE; unknown while the device is not active. */
  #wceAgreed: boolean | undefined;
  /** The field of that name: with CONFIG_WCE the driver writes it. */
  #writeback = true;
  /** Neither FLUSH nor CONFIG_WCE: the driver expects a write-through device (virtio 1.3, 5.2.6.2). */
  #cacheless = true;
  /** After a failed fdatasync the kernel forgets which pages are dirty: no later one can be trusted. */
  #lostWrites = false;

  constructor(file: DiskFile, serial: string, parts: BlkParts = {}) {
    const { queues = 1, requestsMax = limits.blkInFlightRequests, host, clock } = parts;
    this.#requestsMax = requestsMax;
    this.#file = file;
    this.#host = host;
    this.#clock = clock;
    this.#id = new Uint8Array(blkIdBytes);
    this.#id.set(new TextEncoder().encode(serial).subarray(0, blkIdBytes));
    const { readOnly, blockBytes, canPunch } = file;
    const shape = { capacitySectors: capacityOf(file), readOnly, blockBytes, canPunch, queues };
    this.description = {
      deviceType: deviceId.blk,
      vendorId: bridgeVendorId,
      uuid: new Uint8Array(16),
      featureBits: blkFeatureBits(shape),
      queueSizes: new Array<number>(queues).fill(blkQueueSize),
      config: blkConfigBytes(shape),
      ...(readOnly ? {} : { driverConfig: [{ offset: blkConfig.at.writeback, length: 1 }] }),
      maxInFlight: requestsMax,
    };
    this.#watchSize();
  }

  activate(has: (featureBit: number) => boolean): void {
    this.#wceAgreed = has(blkFeature.CONFIG_WCE);
    this.#cacheless = !has(blkFeature.FLUSH) && !this.#wceAgreed;
    // A driver that cannot flush starts without a cache (virtio 1.3, 5.2.5.2).
    if (this.#wceAgreed && !has(blkFeature.FLUSH)) this.#changeWriteback(false);
  }

  /** The next driver finds the cache mode of a new device. */
  deactivate(): void {
    this.#wceAgreed = undefined;
    if (!this.#file.readOnly) this.#changeWriteback(true);
  }

  #changeWriteback(on: boolean): void {
    if (this.#writeback === on) return;
    this.#writeback = on;
    this.#host?.configChanged(blkConfig.at.writeback, Uint8Array.of(on ? 1 : 0));
  }

  writeConfig(offset: number, data: Uint8Array): boolean {
    const [value] = data;
    const valid = offset === blkConfig.at.writeback && data.length === 1 && (value === 0 || value === 1);
    if (!valid || this.#file.readOnly || this.#wceAgreed === false) return false;
    const flushes = this.#writeback && value === 0;
    this.#writeback = value === 1;
    // Drivers do not flush any more from now on; what is written already becomes stable too. If it does not, the
    // next write fails.
    if (flushes) this.#sync(() => {});
    return true;
  }

  get #writesThrough(): boolean {
    return this.#cacheless || (this.#wceAgreed === true && !this.#writeback);
  }

  #watchSize(): void {
    if (this.#closed) return;
    this.#poll = this.#clock?.after(limits.blkSizePollMs, () => {
      const before = capacityOf(this.#file);
      // A look that fails changes nothing; the next one may tell.
      this.#file.refresh(() => {
        const now = capacityOf(this.#file);
        const { offset, data } = blkCapacityBytes(now);
        if (now !== before && !this.#closed) this.#host?.configChanged(offset, data);
        this.#watchSize();
      });
    });
  }

  handle(request: BackendRequest): void {
    // Without a status byte there is nowhere to report to; the driver gets its chain back.
    if (request.writableBytes < 1) request.complete(0);
    else if (this.#running < this.#requestsMax) this.#start(request);
    else assert(this.#waiting.push(request), 'each queue hands over a bounded number of requests');
  }

  /** What has not begun is given back; the driver need not wait for it. */
  cancel(queue: number): void {
    this.#giveBack((request) => request.queue === queue);
  }

  #giveBack(which: (request: BackendRequest) => boolean): void {
    for (let left = this.#waiting.length; left > 0; left--) {
      const request = this.#waiting.shift()!;
      if (which(request)) request.release();
      else this.#waiting.push(request);
    }
  }

  #start(request: BackendRequest): void {
    this.#running += 1;
    const head = gather(request.readable, headBytes);
    if (head === undefined) {
      this.#finish(request, blkStatus.IOERR, 0);
      return;
    }
    const at = blkRequestHead.at.sector;
    // Above 2^53 the number is inexact, but far beyond any capacity all the same.
    const sector = readU32(head, at + 4) * 0x1_0000_0000 + readU32(head, at);
    const type = readU32(head, blkRequestHead.at.type);
    switch (type) {
      case blkRequestType.IN:
        this.#read(request, sector);
        return;
      case blkRequestType.OUT:
        this.#write(request, sector);
        return;
      case blkRequestType.FLUSH:
        this.#flush(request);
        return;
      case blkRequestType.GET_ID:
        this.#finish(request, blkStatus.OK, scatter(this.#id, trimmed(request.writable, request.writableBytes - 1)));
        return;
      case blkRequestType.DISCARD:
      case blkRequestType.WRITE_ZEROES:
        this.#erase(request, type);
        return;
      default:
        this.#finish(request, blkStatus.UNSUPP, 0);
    }
  }

  /** Writes the status byte, the last byte of the writable part, completes, and lets the next request in. */
  #finish(request: BackendRequest, status: number, dataBytes: number): void {
    const [last] = after(request.writable, request.writableBytes - 1);
    last![0] = status;
    this.#running -= 1;
    request.complete(dataBytes + 1);
    this.#startWaiting();
    if (this.#running === 0) this.#closing?.();
  }

  /** A request that ends at once must not start the next from within its own start: there may be many. */
  #startWaiting(): void {
    if (this.#starting) return;
    this.#starting = true;
    while (this.#running < this.#requestsMax && this.#waiting.length > 0) this.#start(this.#waiting.shift()!);
    this.#starting = false;
  }

  /** Bytes of the range, or undefined when it is not whole sectors inside the capacity. */
  #range(sector: number, length: number): { offset: number; end: number } | undefined {
    const inside = length % sectorBytes === 0 && sector + length / sectorBytes <= capacityOf(this.#file);
    return inside ? { offset: sector * sectorBytes, end: sector * sectorBytes + length } : undefined;
  }

  #read(request: BackendRequest, sector: number): void {
    const length = request.writableBytes - 1;
    const range = this.#range(sector, length);
    if (range === undefined) {
      this.#finish(request, blkStatus.IOERR, 0);
      return;
    }
    const parts = trimmed(request.writable, length);
    const inFile = Math.max(0, Math.min(range.end, this.#file.sizeBytes) - range.offset);
    for (const part of after(parts, inFile)) part.fill(0);
    if (inFile === 0) {
      this.#finish(request, blkStatus.OK, length);
      return;
    }
    this.#file.read(trimmed(parts, inFile), range.offset, (error) => {
      if (error === null) this.#finish(request, blkStatus.OK, length);
      else this.#finish(request, blkStatus.IOERR, 0);
    });
  }

  #write(request: BackendRequest, sector: number): void {
    const parts = after(request.readable, headBytes);
    const range = this.#range(sector, bytesIn(parts));
    if (range === undefined || this.#file.readOnly || range.end > this.#file.sizeBytes) {
      this.#finish(request, blkStatus.IOERR, 0);
      return;
    }
    if (parts.length === 0) this.#finish(request, blkStatus.OK, 0);
    else this.#file.write(parts, range.offset, (error) => this.#written(request, error));
  }

  /** A write-through device completes what is stable. The cache mode counts at the end: it may have changed. */
  #written(request: BackendRequest, error: Error | null): void {
    if (error !== null) this.#finish(request, blkStatus.IOERR, 0);
    else if (this.#writesThrough) this.#flush(request);
    else this.#finish(request, blkStatus.OK, 0);
  }

  #flush(request: BackendRequest): void {
    this.#sync((stable) => this.#finish(request, stable ? blkStatus.OK : blkStatus.IOERR, 0));
  }

  #sync(done: (stable: boolean) => void): void {
    if (this.#lostWrites) {
      done(false);
      return;
    }
    this.#file.datasync((error) => {
      if (error !== null) this.#lostWrites = true;
      // The kernel reports a loss once: another one that ran at the same time may have succeeded.
      done(!this.#lostWrites);
    });
  }

  #erase(request: BackendRequest, type: typeof blkRequestType.DISCARD | typeof blkRequestType.WRITE_ZEROES): void {
    const discards = type === blkRequestType.DISCARD;
    if (this.#file.readOnly || (discards && !this.#file.canPunch)) {
      this.#finish(request, blkStatus.UNSUPP, 0);
      return;
    }
    const ranges = readRanges(type, after(request.readable, headBytes), capacityOf(this.#file));
    if (typeof ranges === 'number') {
      this.#finish(request, ranges, 0);
      return;
    }
    this.#eraseNext(ranges, 0, discards, (error) => {
      // What a discarded range holds is open, so there is nothing to make stable.
      if (discards) this.#finish(request, error === null ? blkStatus.OK : blkStatus.IOERR, 0);
      else this.#written(request, error);
    });
  }

  /** One range after the other: a request takes one I/O thread. */
  #eraseNext(
    ranges: readonly SectorRange[],
    index: number,
    discards: boolean,
    done: (error: Error | null) => void,
  ): void {
    const range = ranges[index];
    if (range === undefined) {
      done(null);
      return;
    }
    const next = (error: Error | null): void => {
      if (error === null) this.#eraseNext(ranges, index + 1, discards, done);
      else done(error);
    };
    const offset = range.sector * sectorBytes;
    const length = Math.min(offset + range.sectors * sectorBytes, this.#file.sizeBytes) - offset;
    if (length <= 0) next(null);
    else if (discards || (range.unmap && this.#file.canPunch)) this.#file.punch(offset, length, next);
    else this.#file.zero(offset, length, next);
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#poll?.cancel();
    this.#giveBack(() => true);
    if (this.#running > 0) {
      await new Promise<void>((resolve) => {
        this.#closing = resolve;
      });
    }
    await this.#file.close();
  }
}

export interface BlkSpec {
  readonly path: string;
  readonly readOnly: boolean;
  readonly serial: string;
  readonly queues?: number;
}

/** Opens the image and makes the device. @throws VmsgError backend-unusable */
export async function openBlk(spec: BlkSpec, host: BackendHost, clock: Clock, io: DiskIo = threadIo): Promise<Backend> {
  if (new TextEncoder().encode(spec.serial).length > blkIdBytes) {
    throw new VmsgError('invalid-request', `a serial has at most ${blkIdBytes} bytes`, { pointer: '/serial' });
  }
  const { queues = 1 } = spec;
  const { requestsMax } = io;
  const file = await openDiskFile(spec.path, spec.readOnly, io);
  return new BlkBackend(file, spec.serial, { queues, requestsMax, host, clock });
}
