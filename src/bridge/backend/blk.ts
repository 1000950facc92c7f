import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import type { Backend, BackendDescription, BackendRequest } from '../../ports/backend.ts';
import { blkConfig, blkIdBytes, blkRequestHead, blkRequestType, blkStatus, sectorBytes } from '../../virtio/blk.ts';
import { deviceId } from '../../virtio/device-ids.ts';
import { blkFeature } from '../../virtio/features.ts';
import { readU32 } from '../../wire/bytes.ts';
import { encode } from '../../wire/layout.ts';
import { type DiskFile, openDiskFile } from './disk-file.ts';
import { after, bytesIn, gather, scatter, trimmed } from './parts.ts';
import { bridgeVendorId } from './vendor.ts';

const queueSize = 256;
const headBytes = blkRequestHead.size;

/**
 * Block device on an image file (virtio 1.3, 5.2). The capacity is the file size rounded up to a sector; what lies
 * behind the end of the file reads as zero and cannot be written.
 */
export class BlkBackend implements Backend {
  readonly description: BackendDescription;
  readonly #file: DiskFile;
  readonly #id: Uint8Array;
  readonly #capacitySectors: number;
  /** Without FLUSH the driver expects a write-through device (virtio 1.3, 5.2.6.2). */
  #writeThrough = true;
  /** After a failed fdatasync the kernel forgets which pages are dirty: no later one can be trusted. */
  #lostWrites = false;

  constructor(file: DiskFile, serial: string) {
    this.#file = file;
    this.#id = new Uint8Array(blkIdBytes);
    this.#id.set(new TextEncoder().encode(serial).subarray(0, blkIdBytes));
    this.#capacitySectors = Math.ceil(file.sizeBytes / sectorBytes);
    this.description = {
      deviceType: deviceId.blk,
      vendorId: bridgeVendorId,
      uuid: new Uint8Array(16),
      featureBits: [
        blkFeature.SEG_MAX,
        blkFeature.BLK_SIZE,
        blkFeature.FLUSH,
        ...(file.readOnly ? [blkFeature.RO] : []),
      ],
      queueSizes: [queueSize],
      config: blkConfigBytes(this.#capacitySectors),
      maxInFlight: limits.blkInFlightRequests,
    };
  }

  activate(has: (featureBit: number) => boolean): void {
    this.#writeThrough = !has(blkFeature.FLUSH);
  }

  deactivate(): void {}

  writeConfig(): boolean {
    return false;
  }

  handle(request: BackendRequest): void {
    // Without a status byte there is nowhere to report to; the driver gets its chain back.
    if (request.writableBytes < 1) {
      request.complete(0);
      return;
    }
    const head = gather(request.readable, headBytes);
    if (head === undefined) {
      finish(request, blkStatus.IOERR, 0);
      return;
    }
    const at = blkRequestHead.at.sector;
    // Above 2^53 the number is inexact, but far beyond any capacity all the same.
    const sector = readU32(head, at + 4) * 0x1_0000_0000 + readU32(head, at);
    switch (readU32(head, blkRequestHead.at.type)) {
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
        finish(request, blkStatus.OK, scatter(this.#id, trimmed(request.writable, request.writableBytes - 1)));
        return;
      default:
        finish(request, blkStatus.UNSUPP, 0);
    }
  }

  /** Bytes of the range, or undefined when it is not whole sectors inside the capacity. */
  #range(sector: number, length: number): { offset: number; end: number } | undefined {
    const inside = length % sectorBytes === 0 && sector + length / sectorBytes <= this.#capacitySectors;
    return inside ? { offset: sector * sectorBytes, end: sector * sectorBytes + length } : undefined;
  }

  #read(request: BackendRequest, sector: number): void {
    const length = request.writableBytes - 1;
    const range = this.#range(sector, length);
    if (range === undefined) {
      finish(request, blkStatus.IOERR, 0);
      return;
    }
    const parts = trimmed(request.writable, length);
    const inFile = Math.max(0, Math.min(range.end, this.#file.sizeBytes) - range.offset);
    for (const part of after(parts, inFile)) part.fill(0);
    if (inFile === 0) {
      finish(request, blkStatus.OK, length);
      return;
    }
    this.#file.read(trimmed(parts, inFile), range.offset, (error) => {
      if (error === null) finish(request, blkStatus.OK, length);
      else finish(request, blkStatus.IOERR, 0);
    });
  }

  #write(request: BackendRequest, sector: number): void {
    const parts = after(request.readable, headBytes);
    const range = this.#range(sector, bytesIn(parts));
    if (range === undefined || this.#file.readOnly || range.end > this.#file.sizeBytes) {
      finish(request, blkStatus.IOERR, 0);
      return;
    }
    if (parts.length === 0) {
      finish(request, blkStatus.OK, 0);
      return;
    }
    this.#file.write(parts, range.offset, (error) => {
      if (error !== null) finish(request, blkStatus.IOERR, 0);
      else if (this.#writeThrough) this.#flush(request);
      else finish(request, blkStatus.OK, 0);
    });
  }

  #flush(request: BackendRequest): void {
    if (this.#lostWrites) {
      finish(request, blkStatus.IOERR, 0);
      return;
    }
    this.#file.datasync((error) => {
      if (error !== null) this.#lostWrites = true;
      // The kernel reports a loss once: another one that ran at the same time may have succeeded.
      finish(request, this.#lostWrites ? blkStatus.IOERR : blkStatus.OK, 0);
    });
  }

  async close(): Promise<void> {
    await this.#file.close();
  }
}

/** Writes the status byte, the last byte of the writable part, and completes. */
function finish(request: BackendRequest, status: number, dataBytes: number): void {
  const [last] = after(request.writable, request.writableBytes - 1);
  last![0] = status;
  request.complete(dataBytes + 1);
}

function blkConfigBytes(capacitySectors: number): Uint8Array {
  const config = new Uint8Array(blkConfig.size);
  const zero = Object.fromEntries(Object.keys(blkConfig.fields).map((name) => [name, 0]));
  const values = { ...zero, capacity: BigInt(capacitySectors), segMax: queueSize - 2, blkSize: sectorBytes };
  encode(blkConfig, values as never, config);
  return config;
}

/** Opens the image and makes the device. @throws VmsgError backend-unusable */
export async function openBlk(spec: {
  readonly path: string;
  readonly readOnly: boolean;
  readonly serial: string;
}): Promise<Backend> {
  if (new TextEncoder().encode(spec.serial).length > blkIdBytes) {
    throw new VmsgError('invalid-request', `a serial has at most ${blkIdBytes} bytes`, { pointer: '/serial' });
  }
  return new BlkBackend(await openDiskFile(spec.path, spec.readOnly), spec.serial);
}
