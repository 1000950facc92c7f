import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { BusAccess, OwnRegion } from './access.ts';
import { RangeAllocator } from './allocator.ts';
import { GuestBuffer } from './buffer.ts';
import { serviceError } from './errno.ts';
import type { GrantArena } from './grant-arena.ts';
import type { BusRequestBody, BusResponseBody } from './requests.ts';
import type { GuestTransport } from './transport.ts';

const pageBytes = 4096;
/** Ids above are the service's. */
const areaMax = 0x7eff;

/** How memory tells the service about regions; 'resume' while a new connection is made ready. */
export interface RegionAnnouncer {
  add(
    body: (transport: GuestTransport) => BusRequestBody<'REGION_ADD'>,
    phase: 'normal' | 'resume',
  ): Promise<BusResponseBody<'REGION_ADD'>>;
  remove(region: { peer: number; area: number }): Promise<BusResponseBody<'REGION_DEL'>>;
}

/** Area ids of one bus. */
export class AreaIds {
  readonly #used = new Set<number>();
  #last = 0;

  /** The next one, so that one is not used again soon. */
  take(): number {
    do this.#last = this.#last === areaMax ? 1 : this.#last + 1;
    while (this.#used.has(this.#last));
    this.#used.add(this.#last);
    return this.#last;
  }

  give(area: number): void {
    this.#used.delete(area);
  }
}

interface Region {
  readonly area: number;
  readonly memory: OwnRegion;
  readonly length: number;
  readonly allocator: RangeAllocator;
  /** 'adding': the service may not know it yet; 'removing': nothing is allocated from it any more. */
  state: 'adding' | 'added' | 'removing';
}

export interface GuestMemoryParts {
  readonly announcer: RegionAnnouncer;
  readonly access: Pick<BusAccess, 'makeRegion'>;
  readonly areas: AreaIds;
  /** Domain that maps this memory; undefined: that of the service. */
  readonly peer?: number;
  /** Where memory comes from that no region has. */
  readonly grants?: GrantArena | undefined;
}

/**
 * The memory that this guest shares: regions with a bus address of `area << 48 | offset`, announced to the service
 * (docs/protocol/loopback.md, "Memory"), and on Xen, where they were asked for, grants (docs/protocol/xen-bus.md).
 */
export class GuestMemory {
  readonly #parts: GuestMemoryParts;
  readonly #regions = new Map<number, Region>();
  /** Calls that wait until the bus is connected again, or for good lost. */
  #waiting: Array<{ resolve: () => void; reject: (error: Error) => void }> = [];
  /** Why there will be no other connection. */
  #ended: Error | undefined;

  constructor(parts: GuestMemoryParts) {
    this.#parts = parts;
  }

  /** Regions with their size and use, in bytes and buffers. */
  get regions(): ReadonlyArray<{ readonly area: number; readonly bytes: number; readonly buffers: number }> {
    return [...this.#regions.values()].map(({ area, length, allocator }) => ({
      area,
      bytes: length,
      buffers: allocator.count,
    }));
  }

  /** Whether it is made of grants: a large buffer needs references in a row, which the kernel may not have. */
  get scattered(): boolean {
    return this.#parts.grants !== undefined;
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
    const { access, areas, peer } = this.#parts;
    const memory = access.makeRegion(bytes, peer);
    return { area: areas.take(), memory, length: bytes, allocator: new RangeAllocator(bytes), state: 'adding' };
  }

  async #announce(region: Region, phase: 'normal' | 'resume'): Promise<void> {
    const { area, length, memory } = region;
    const { announcer, peer = 0 } = this.#parts;
    const body = { peer: 0, area, flags: 0, domain: peer, offset: 0n, length: BigInt(length) };
    const { errno } = await announcer.add((transport) => ({ ...body, reference: memory.offer(transport) }), phase);
    if (errno !== 0) throw new VmsgError('memory-refused', serviceError(`REGION_ADD of area ${area}`, errno).message);
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
    await this.#remove(region);
  }

  async #remove(region: Region): Promise<void> {
    region.state = 'removing';
    try {
      const { errno } = await this.#parts.announcer.remove({ peer: 0, area: region.area });
      if (errno !== 0) throw serviceError(`REGION_DEL of area ${region.area}`, errno);
    } catch (error) {
      // A connection that is gone has taken its regions along.
      if (!(error instanceof VmsgError && error.code === 'bus-lost')) throw error;
    } finally {
      this.#drop(region);
    }
  }

  /** Takes every region away, buffers or not. Never rejects. */
  async retire(): Promise<void> {
    this.lost(new VmsgError('bus-lost', 'the memory is no longer used'));
    await Promise.allSettled([...this.#regions.values()].map((region) => this.#remove(region)));
  }

  /**
   * Allocates zero-copy memory; its contents are whatever was there before.
   * @param align of the bus address, a power of two up to 4096
   * @throws VmsgError 'limit-reached' when there is no room
   */
  alloc(bytes: number, align = 64): GuestBuffer {
    if (!Number.isInteger(bytes) || bytes < 1 || !Number.isInteger(Math.log2(align)) || align > pageBytes) {
      throw new VmsgError('invalid-request', `cannot allocate ${bytes} bytes aligned to ${align}`);
    }
    for (const region of this.#regions.values()) {
      const start = region.state === 'added' ? region.allocator.allocate(bytes, align) : undefined;
      if (start === undefined) continue;
      return new GuestBuffer({
        bytes: region.memory.bytes.subarray(start, start + bytes),
        hi: region.area << 16,
        lo: start,
        owner: this,
        release: () => region.allocator.release(start),
      });
    }
    if (this.#parts.grants !== undefined) return this.#parts.grants.alloc(bytes, align, this);
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
    this.#parts.areas.give(region.area);
    region.memory.close();
  }

  /** Unmaps everything; `bytes` of every buffer become empty. Idempotent. */
  close(): void {
    this.lost(new VmsgError('bus-lost', 'the bus is closed'));
    for (const region of [...this.#regions.values()]) this.#drop(region);
    this.#parts.grants?.close();
  }
}
