import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { Fd } from '../libc/fd.ts';
import { Mapping } from '../libc/mapping.ts';
import { createMemfd } from '../libc/memfd.ts';
import { RangeAllocator } from './allocator.ts';
import { serviceError } from './errno.ts';
import type { BusRequestBody, BusResponseBody } from './requests.ts';

const pageBytes = 4096;
const areaMax = 0x7fff;

/** How memory tells the service about regions; 'resume' while a new connection is made ready. */
export interface RegionAnnouncer {
  add(
    fd: number,
    region: Omit<BusRequestBody<'REGION_ADD'>, 'reference'>,
    phase: 'normal' | 'resume',
  ): Promise<BusResponseBody<'REGION_ADD'>>;
  remove(region: { peer: number; area: number }): Promise<BusResponseBody<'REGION_DEL'>>;
}

interface Region {
  readonly area: number;
  readonly fd: Fd;
  readonly mapping: Mapping;
  readonly allocator: RangeAllocator;
  /** 'adding': the service may not know it yet; 'removing': nothing is allocated from it any more. */
  state: 'adding' | 'added' | 'removing';
}

/** A range of bus memory that a device can be pointed to. */
export interface BusRange {
  /** Upper and lower half of the bus address. */
  readonly hi: number;
  readonly lo: number;
  /** Bytes. */
  readonly length: number;
}

/** Shared memory that devices read and write directly. What a device may write can change at any time. */
export class GuestBuffer implements BusRange {
  /** Of length 0 once the bus is closed. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly hi: number;
  readonly lo: number;
  #release: (() => void) | undefined;

  constructor(bytes: Uint8Array<ArrayBuffer>, hi: number, lo: number, release: () => void) {
    this.bytes = bytes;
    this.hi = hi;
    this.lo = lo;
    this.length = bytes.length;
    this.#release = release;
  }

  readonly length: number;

  get busAddress(): bigint {
    return (BigInt(this.hi) << 32n) | BigInt(this.lo);
  }

  /** A part of it, as a device sees it. A region is at most 4 GiB, so the upper half never changes. */
  range(offset: number, length: number): BusRange {
    if (offset < 0 || length < 1 || offset + length > this.length) {
      throw new VmsgError('invalid-request', `bytes ${offset}..${offset + length} of a buffer of ${this.length}`);
    }
    return { hi: this.hi, lo: this.lo + offset, length };
  }

  /** A part of it as a buffer that is not freed by itself. */
  slice(offset: number, length: number): GuestBuffer {
    const { hi, lo } = this.range(offset, length);
    return new GuestBuffer(this.bytes.subarray(offset, offset + length), hi, lo, () => {});
  }

  /** Gives the memory back. No device may use it any more: requests on it have ended. Idempotent. */
  free(): void {
    const release = this.#release;
    this.#release = undefined;
    release?.();
  }
}

/**
 * The memory that this guest shares with the service: sealed memfds, each a region with a bus address of
 * `area << 48 | offset` (docs/protocol/loopback.md, "Memory").
 */
export class GuestMemory {
  readonly #announcer: RegionAnnouncer;
  readonly #regions = new Map<number, Region>();
  /** Calls that wait until the bus is connected again, or for good lost. */
  #waiting: Array<{ resolve: () => void; reject: (error: Error) => void }> = [];
  #lastArea = 0;
  /** Why there will be no other connection. */
  #ended: Error | undefined;

  constructor(announcer: RegionAnnouncer) {
    this.#announcer = announcer;
  }

  /** Regions with their size and use, in bytes and buffers. */
  get regions(): ReadonlyArray<{ readonly area: number; readonly bytes: number; readonly buffers: number }> {
    return [...this.#regions.values()].map(({ area, mapping, allocator }) => ({
      area,
      bytes: mapping.length,
      buffers: allocator.count,
    }));
  }

  /**
   * Makes and shares a region. @param bytes a multiple of 4096, at most 4 GiB. @returns its area id
   * @throws VmsgError 'invalid-request', 'limit-reached', 'memory-refused', 'system-call'
   */
  async addRegion(bytes: number): Promise<number> {
    if (!Number.isInteger(bytes) || bytes < pageBytes || bytes % pageBytes !== 0 || bytes > limits.regionMaxBytes) {
      throw new VmsgError('invalid-request', `a region has a multiple of ${pageBytes} bytes up to 4 GiB, not ${bytes}`);
    }
    if (this.#ended !== undefined) throw this.#ended;
    if (this.#regions.size >= limits.regionsPerBus) {
      throw new VmsgError('limit-reached', `at most ${limits.regionsPerBus} regions`);
    }
    const region = this.#makeRegion(bytes);
    this.#regions.set(region.area, region);
    try {
      await this.#untilConnected(() => this.#announce(region, 'normal'));
      region.state = 'added';
      return region.area;
    } catch (error) {
      this.#drop(region);
      throw error;
    }
  }

  #makeRegion(bytes: number): Region {
    const fd = createMemfd('vmsg-region', bytes);
    try {
      const mapping = Mapping.map(fd.number, 0, bytes, { writable: true });
      return { area: this.#freeArea(), fd, mapping, allocator: new RangeAllocator(bytes), state: 'adding' };
    } catch (error) {
      fd.close();
      throw error;
    }
  }

  /** The next id, so that one is not used again soon. */
  #freeArea(): number {
    do this.#lastArea = this.#lastArea === areaMax ? 1 : this.#lastArea + 1;
    while (this.#regions.has(this.#lastArea));
    return this.#lastArea;
  }

  async #announce(region: Region, phase: 'normal' | 'resume'): Promise<void> {
    const body = {
      peer: 0,
      area: region.area,
      flags: 0,
      reserved: 0,
      offset: 0n,
      length: BigInt(region.mapping.length),
    };
    const { errno } = await this.#announcer.add(region.fd.number, body, phase);
    if (errno !== 0) {
      throw new VmsgError('memory-refused', serviceError(`REGION_ADD of area ${region.area}`, errno).message);
    }
  }

  /** Runs an action again after each reconnection; ends when the bus is lost. */
  async #untilConnected(action: () => Promise<void>): Promise<void> {
    for (;;) {
      try {
        await action();
        return;
      } catch (error) {
        if (!(error instanceof VmsgError && error.code === 'bus-lost') || this.#ended !== undefined) throw error;
        await new Promise<void>((resolve, reject) => this.#waiting.push({ resolve, reject }));
      }
    }
  }

  /**
   * Takes a region away. @throws VmsgError 'in-use' while buffers of it are allocated, 'not-found',
   * 'unavailable' when the service says that I/O still uses it: it is gone for new requests all the same
   */
  async removeRegion(area: number): Promise<void> {
    const region = this.#regions.get(area);
    if (region === undefined || region.state !== 'added') throw new VmsgError('not-found', `no region ${area}`);
    if (region.allocator.count > 0) {
      throw new VmsgError('in-use', `region ${area} has ${region.allocator.count} buffers`);
    }
    region.state = 'removing';
    try {
      const { errno } = await this.#announcer.remove({ peer: 0, area });
      if (errno !== 0) throw serviceError(`REGION_DEL of area ${area}`, errno);
    } catch (error) {
      // A connection that is gone has taken its regions along.
      if (!(error instanceof VmsgError && error.code === 'bus-lost')) throw error;
    } finally {
      this.#drop(region);
    }
  }

  /**
   * Allocates zero-copy memory; its contents are whatever was there before.
   * @param align of the bus address, a power of two up to 4096
   * @throws VmsgError 'limit-reached' when no region has room
   */
  alloc(bytes: number, align = 64): GuestBuffer {
    if (!Number.isInteger(bytes) || bytes < 1 || !Number.isInteger(Math.log2(align)) || align > pageBytes) {
      throw new VmsgError('invalid-request', `cannot allocate ${bytes} bytes aligned to ${align}`);
    }
    for (const region of this.#regions.values()) {
      const start = region.state === 'added' ? region.allocator.allocate(bytes, align) : undefined;
      if (start === undefined) continue;
      const view = region.mapping.bytes.subarray(start, start + bytes);
      return new GuestBuffer(view, region.area << 16, start, () => region.allocator.release(start));
    }
    throw new VmsgError('limit-reached', `no region has ${bytes} free bytes: add a region`);
  }

  /** Shares every region again under its area id, on a new connection. */
  async announce(): Promise<void> {
    for (const region of [...this.#regions.values()]) {
      if (region.state === 'added') await this.#announce(region, 'resume');
    }
  }

  /** A new connection is in general use. */
  connected(): void {
    for (const { resolve } of this.#waiting.splice(0)) resolve();
  }

  /** There will be no other connection. */
  lost(error: Error): void {
    this.#ended ??= error;
    for (const { reject } of this.#waiting.splice(0)) reject(error);
  }

  #drop(region: Region): void {
    if (!this.#regions.delete(region.area)) return;
    region.mapping.close();
    region.fd.close();
  }

  /** Unmaps everything; `bytes` of every buffer become empty. Idempotent. */
  close(): void {
    this.lost(new VmsgError('bus-lost', 'the bus is closed'));
    for (const region of [...this.#regions.values()]) this.#drop(region);
  }
}
