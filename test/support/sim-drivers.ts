import { blkRequestHead, blkRequestType, blkStatus, sectorBytes } from '../../src/virtio/blk.ts';
import { deviceId } from '../../src/virtio/device-ids.ts';
import { blkFeature } from '../../src/virtio/features.ts';
import type { BufferRange } from '../../src/virtio/queue.ts';
import { readU64 } from '../../src/wire/bytes.ts';
import { encode } from '../../src/wire/layout.ts';
import type { SimDisk } from './sim-disk.ts';
import type { SimGuest } from './sim-guest.ts';
import type { SimSlot } from './sim-memory.ts';
import { type DiskModel, stamp } from './sim-model.ts';
import { type SimChain, SimQueueDriver } from './sim-queue-driver.ts';

const dataAt = 64;
const sectorsMax = 10;
const untouched = 0xee;

/** A block device's driver that knows what the disk has to hold. */
export class SimBlkDriver extends SimQueueDriver {
  protected readonly deviceType = deviceId.blk;
  protected readonly wantedFeatures = [blkFeature.FLUSH, blkFeature.SEG_MAX];
  readonly #disk: SimDisk;
  readonly #model: DiskModel;

  constructor(guest: SimGuest, deviceNumber: number, disk: SimDisk, model: DiskModel) {
    super(guest, deviceNumber);
    this.#disk = disk;
    this.#model = model;
  }

  protected override onReset(): void {
    this.#model.settle();
  }

  protected override async checkConfig(): Promise<string | undefined> {
    const { data } = await this.ask({ name: 'GET_CONFIG', body: { offset: 0, length: 8 } });
    const capacity = readU64(data as Uint8Array, 0);
    return capacity === BigInt(Math.ceil(this.#disk.bytes.length / sectorBytes)) ? undefined : `capacity ${capacity}`;
  }

  protected override next(slot: SimSlot): SimChain | undefined {
    const { random } = this.guest.loop;
    const count = 1 + random.below(Math.min(sectorsMax, this.#model.sectors));
    const first = random.below(this.#model.sectors - count + 1);
    const choice = random.below(100);
    if (choice < 45) return this.#read(slot, first, count);
    if (choice < 85) return this.#write(slot, first, count);
    if (choice < 95) return this.#flush(slot);
    return this.#outside(slot, count);
  }

  /** Reads everything: the last thing to do. */
  readAll(): void {
    const problem = this.#model.close(this.#model.open(0, this.#model.sectors), this.#disk.bytes);
    if (problem !== undefined) this.fault(`at the end, ${problem}`);
  }

  #read(slot: SimSlot, first: number, count: number): SimChain {
    const window = this.#model.open(first, count);
    const data = slot.bytes.subarray(dataAt, dataAt + count * sectorBytes);
    data.fill(untouched);
    return this.#chain(slot, blkRequestType.IN, first, [], data, {
      end: (status, writtenBytes) => {
        const wrong = this.#model.close(window, status === blkStatus.OK ? data : undefined);
        if (wrong !== undefined) return `read: ${wrong}`;
        return status === blkStatus.OK && writtenBytes !== data.length + 1
          ? `read of ${writtenBytes} bytes`
          : undefined;
      },
      abandon: () => void this.#model.close(window, undefined),
    });
  }

  #write(slot: SimSlot, first: number, count: number): SimChain {
    const data = slot.bytes.subarray(dataAt, dataAt + count * sectorBytes);
    const write = this.#model.issue(first, count);
    for (let i = 0; i < count; i++) stamp(data.subarray(i * sectorBytes, (i + 1) * sectorBytes), write.id, first + i);
    return this.#chain(slot, blkRequestType.OUT, first, [data], undefined, {
      end: (status) => {
        this.#model.end(write, status === blkStatus.OK);
        if (status !== blkStatus.OK || this.features.has(blkFeature.FLUSH)) return undefined;
        const durable = this.#disk.durable.subarray(first * sectorBytes, (first + count) * sectorBytes);
        const wrong = this.#model.close(this.#model.open(first, count), durable);
        return wrong === undefined ? undefined : `written through, but on stable storage ${wrong}`;
      },
      abandon: () => this.#model.end(write, false),
    });
  }

  #flush(slot: SimSlot): SimChain {
    const window = this.#model.open(0, this.#model.sectors);
    return this.#chain(slot, blkRequestType.FLUSH, 0, [], undefined, {
      end: (status) => {
        const wrong = this.#model.close(window, status === blkStatus.OK ? this.#disk.durable : undefined);
        return wrong === undefined ? undefined : `flushed, but on stable storage ${wrong}`;
      },
      abandon: () => void this.#model.close(window, undefined),
    });
  }

  /** A request that has to fail: it leaves the disk. */
  #outside(slot: SimSlot, count: number): SimChain {
    const write = this.guest.loop.random.chance(0.5);
    const data = slot.bytes.subarray(dataAt, dataAt + count * sectorBytes);
    const beyond = Math.ceil(this.#disk.bytes.length / sectorBytes) - count + 1;
    const type = write ? blkRequestType.OUT : blkRequestType.IN;
    return this.#chain(slot, type, beyond, write ? [data] : [], write ? undefined : data, {
      end: (status) => (status === blkStatus.IOERR ? undefined : `a request beyond the end had status ${status}`),
      abandon: () => {},
      mayFail: true,
    });
  }

  #chain(
    slot: SimSlot,
    type: number,
    sector: number,
    readable: readonly Uint8Array[],
    writable: Uint8Array | undefined,
    outcome: { end(status: number, writtenBytes: number): string | undefined; abandon(): void; mayFail?: boolean },
  ): SimChain {
    encode(blkRequestHead, { type, reserved: 0, sector: BigInt(sector) }, slot.bytes, 0);
    const statusAt = slot.bytes.length - 1;
    slot.bytes[statusAt] = untouched;
    return {
      readable: [slot.bytes.subarray(0, 16), ...readable].flatMap((part) => this.#ranges(slot, part)),
      writable: [...(writable === undefined ? [] : [writable]), slot.bytes.subarray(statusAt)].flatMap((part) =>
        this.#ranges(slot, part),
      ),
      io: {
        slot,
        issuedMs: this.guest.loop.nowMs,
        complete: (writtenBytes) => {
          const status = slot.bytes[statusAt]!;
          if (status !== blkStatus.OK && status !== blkStatus.IOERR) return `status ${status} of request type ${type}`;
          if (status === blkStatus.IOERR && outcome.mayFail !== true && !this.#excused(type)) {
            return `request type ${type} failed, but the disk did not`;
          }
          if (status === blkStatus.IOERR && writtenBytes !== 1) return `${writtenBytes} bytes of a failed request`;
          return outcome.end(status, writtenBytes);
        },
        abandon: outcome.abandon,
      },
    };
  }

  /** Whether the disk has failed for it. */
  #excused(type: number): boolean {
    const syncs =
      type === blkRequestType.FLUSH || (type === blkRequestType.OUT && !this.features.has(blkFeature.FLUSH));
    if (this.#disk.syncFailed && syncs) return true;
    this.#disk.errors -= 1;
    return this.#disk.errors >= 0;
  }

  /** Cuts a part into up to three buffers. */
  #ranges(slot: SimSlot, part: Uint8Array): BufferRange[] {
    const { random } = this.guest.loop;
    const cuts = [0, part.length];
    while (cuts.length < 4 && random.chance(0.3)) cuts.push(random.below(part.length));
    const sorted = [...new Set(cuts)].sort((a, b) => a - b);
    const base = slot.offset + part.byteOffset - slot.bytes.byteOffset;
    const hi = (slot.area << 16) >>> 0;
    return sorted.slice(1).map((end, i) => ({ hi, lo: base + sorted[i]!, length: end - sorted[i]! }));
  }
}

export class SimRngDriver extends SimQueueDriver {
  protected readonly deviceType = deviceId.rng;
  protected readonly wantedFeatures: readonly number[] = [];

  protected override onReset(): void {}

  protected override async checkConfig(): Promise<string | undefined> {
    return undefined;
  }

  protected override next(slot: SimSlot): SimChain {
    const { random } = this.guest.loop;
    const length = 1 + random.below(256);
    const data = slot.bytes.subarray(0, length);
    data.fill(0);
    const writable = [{ hi: (slot.area << 16) >>> 0, lo: slot.offset, length }];
    const complete = (writtenBytes: number): string | undefined => {
      const filled = data.indexOf(0);
      // Nothing at all: the source failed, and the device says so. More than told: a killed service began the request.
      return (filled < 0 ? length : filled) >= writtenBytes
        ? undefined
        : `${writtenBytes} random bytes, ${filled} filled`;
    };
    return { readable: [], writable, io: { slot, issuedMs: this.guest.loop.nowMs, complete, abandon: () => {} } };
  }
}
