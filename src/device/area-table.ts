import type { Clock, Timer } from '../kit/clock.ts';
import { limits } from '../kit/limits.ts';
import type { GuestMemory } from '../ports/bus.ts';
import { type Access, type AddressSpace, type Lease, TranslateFault } from '../ports/memory.ts';

/** Someone who translates addresses; told when a region that it still uses is taken away. */
export interface AreaUser {
  onRevoked(area: number): void;
}

/** Linux errno values that a guest can get for a region. */
export type RegionError = 'EINVAL' | 'EEXIST' | 'ENOENT' | 'ENOSPC' | 'EBUSY';

/** A region as people see it. */
export interface AreaSnapshot {
  readonly area: number;
  readonly bytes: number;
  readonly readOnly: boolean;
  readonly pins: number;
  readonly state: 'active' | 'draining';
}

class Region {
  readonly area: number;
  readonly backing: GuestMemory;
  readonly readOnly: boolean;
  readonly pins = new Map<AreaUser, number>();
  onIdle: (() => void) | undefined;

  constructor(area: number, backing: GuestMemory, readOnly: boolean) {
    this.area = area;
    this.backing = backing;
    this.readOnly = readOnly;
  }
}

class RegionLease implements Lease {
  readonly #region: Region;
  readonly #user: AreaUser;
  #held = true;

  constructor(region: Region, user: AreaUser) {
    this.#region = region;
    this.#user = user;
    region.pins.set(user, (region.pins.get(user) ?? 0) + 1);
  }

  release(): void {
    if (!this.#held) return;
    this.#held = false;
    const { pins } = this.#region;
    const left = (pins.get(this.#user) ?? 0) - 1;
    if (left > 0) pins.set(this.#user, left);
    else pins.delete(this.#user);
    if (pins.size === 0) this.#region.onIdle?.();
  }
}

/** The high 32 bits of an address hold bit 63, the area id (bits 62..48) and the top of the offset. */
const areaOf = (hi: number): number => hi >>> 16;
const offsetOf = (hi: number, lo: number): number => (hi & 0xffff) * 0x1_0000_0000 + lo;
const areaMax = 0x7fff;

/**
 * The regions that one guest has shared in one epoch; a bus address is area id << 48 | offset. A region stays mapped
 * until its last lease ends, also after its removal.
 */
export class AreaTable {
  readonly #clock: Clock;
  readonly #regions = new Map<number, Region>();
  readonly #draining = new Set<Region>();
  #bytes = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  get regions(): number {
    return this.#regions.size;
  }

  get regionBytes(): number {
    return this.#bytes;
  }

  /** Regions removed but still pinned. */
  get regionsDraining(): number {
    return this.#draining.size;
  }

  snapshot(): AreaSnapshot[] {
    const describe = (state: AreaSnapshot['state']) => (region: Region) => ({
      area: region.area,
      bytes: region.backing.bytes.length,
      readOnly: region.readOnly,
      pins: [...region.pins.values()].reduce((sum, pins) => sum + pins, 0),
      state,
    });
    return [...[...this.#regions.values()].map(describe('active')), ...[...this.#draining].map(describe('draining'))];
  }

  /** Whether a region of this size and id may be added; `add` must follow without another call between. */
  check(area: number, length: number): RegionError | undefined {
    if (area < 1 || area > areaMax || length < 1 || length > limits.regionMaxBytes) return 'EINVAL';
    if (this.#regions.has(area) || this.#drains(area)) return 'EEXIST';
    const count = this.#regions.size + this.#draining.size;
    if (count >= limits.regionsPerBus || this.#bytes + length > limits.regionTotalMaxBytes) return 'ENOSPC';
    return undefined;
  }

  add(area: number, backing: GuestMemory, readOnly: boolean): void {
    this.#regions.set(area, new Region(area, backing, readOnly));
    this.#bytes += backing.bytes.length;
  }

  #drains(area: number): boolean {
    for (const region of this.#draining) if (region.area === area) return true;
    return false;
  }

  /**
   * Stops new translations at once; `done` is called when the last lease has ended, or with EBUSY after a bounded
   * wait. Then every remaining user is told, and the memory goes with its last lease.
   * @param revoked called after that
   */
  remove(area: number, done: (error: RegionError | undefined) => void, revoked: () => void = () => {}): void {
    const region = this.#regions.get(area);
    if (region === undefined) {
      done('ENOENT');
      return;
    }
    let timer: Timer | undefined;
    let answered = false;
    const answer = (error: RegionError | undefined): void => {
      if (answered) return;
      answered = true;
      timer?.cancel();
      done(error);
    };
    if (region.pins.size > 0) {
      timer = this.#clock.after(limits.regionRemovalTimeoutMs, () => {
        answer('EBUSY');
        for (const user of [...region.pins.keys()]) user.onRevoked(area);
        revoked();
      });
    }
    this.#retire(region, () => answer(undefined));
  }

  /** Removes all regions without waiting; each is unmapped with its last lease. */
  clear(): void {
    for (const region of [...this.#regions.values()]) this.#retire(region, () => {});
  }

  #retire(region: Region, unmapped: () => void): void {
    this.#regions.delete(region.area);
    this.#draining.add(region);
    region.onIdle = () => {
      this.#unmap(region);
      unmapped();
    };
    if (region.pins.size === 0) region.onIdle();
  }

  #unmap(region: Region): void {
    region.onIdle = undefined;
    this.#draining.delete(region);
    this.#bytes -= region.backing.bytes.length;
    region.backing.close();
  }

  /** The address space as one user sees it; its leases are accounted to that user. */
  spaceFor(user: AreaUser): AddressSpace {
    return { translate: (hi, lo, length, access, out) => this.#translate(user, hi, lo, length, access, out) };
  }

  #translate(
    user: AreaUser,
    hi: number,
    lo: number,
    length: number,
    access: Access,
    out: Uint8Array[],
  ): Lease | TranslateFault {
    const region = this.#regions.get(areaOf(hi));
    if (region === undefined) return new TranslateFault(`no region has area id ${areaOf(hi)}`);
    if (access === 'write' && region.readOnly) return new TranslateFault(`area ${region.area} is read-only`);
    const offset = offsetOf(hi, lo);
    const { bytes } = region.backing;
    if (length < 1 || offset + length > bytes.length) {
      return new TranslateFault(
        `${length} bytes at offset ${offset} leave area ${region.area} of ${bytes.length} bytes`,
      );
    }
    out.push(bytes.subarray(offset, offset + length));
    return new RegionLease(region, user);
  }
}
