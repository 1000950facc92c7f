import type { Clock } from '../kit/clock.ts';
import { type ErrnoName, errno } from '../kit/errno.ts';
import { limits } from '../kit/limits.ts';
import type { Closable } from '../kit/scope.ts';
import type { GuestMemory, GuestResources } from '../ports/bus.ts';
import { asDomid, asGrantRef } from '../ports/hypervisor.ts';
import { type AddressSpace, TranslateFault } from '../ports/memory.ts';
import { type BusRequest, regionReadOnly } from '../virtio-msg/bus-messages.ts';
import { isGrantAddress } from '../virtio-msg/xen-bus.ts';
import { AreaTable, type AreaUser, type RegionError } from './area-table.ts';

type RegionAdd = Extract<BusRequest, { name: 'REGION_ADD' }>['body'];
type RegionDel = Extract<BusRequest, { name: 'REGION_DEL' }>['body'];

/** Memory that a guest has granted to another domain than ours. */
export interface ForeignMemory {
  /** Who may map it. */
  readonly domid: number;
  /** Grant reference of the first directory page. */
  readonly reference: number;
  /** Bytes. */
  readonly length: bigint;
}

/** A region of a guest, for those who pass it on: mapped here, or only named. */
export type SharedRegion = { readonly area: number; readonly readOnly: boolean } & (
  | { readonly memory: GuestMemory; readonly foreign?: undefined }
  | { readonly memory?: undefined; readonly foreign: ForeignMemory }
);

/** Someone who passes the guest's memory on to a device elsewhere. */
export interface RegionWatcher {
  /** @param done with 0 or an errno, once */
  regionAdded(region: SharedRegion, done: (result: number) => void): void;
  regionRemoved(area: number, done: (result: number) => void): void;
}

/** Area ids from here on are the service's: shared memory of devices. */
const ownAreaFirst = 0x7f00;
const ownAreaLast = 0x7fff;

/**
 * The memory that arrives over one connection: REGION_ADD and REGION_DEL. A guest that uses devices shares its own,
 * as peer 0; a guest that serves devices gets that of every peer whose driver uses one of them.
 */
export class SharedMemory {
  readonly #resources: GuestResources;
  readonly #clock: Clock;
  readonly #byPeer: boolean;
  readonly #tables = new Map<number, AreaTable>();
  readonly #shared = new Map<number, SharedRegion>();
  readonly #watchers = new Set<RegionWatcher>();
  #nextOwnArea = ownAreaFirst;

  /** @param byPeer memory of several peers arrives, numbered from 1 */
  constructor(resources: GuestResources, clock: Clock, byPeer: boolean) {
    this.#resources = resources;
    this.#clock = clock;
    this.#byPeer = byPeer;
    this.#tables.set(0, new AreaTable(clock));
  }

  /** The areas of a peer, made at first sight; undefined for a number that no peer has. */
  areasOf(peer: number): AreaTable | undefined {
    const known = this.#tables.get(peer);
    if (known !== undefined || !this.#byPeer || this.#tables.size > limits.peersPerBus) return known;
    const table = new AreaTable(this.#clock);
    this.#tables.set(peer, table);
    return table;
  }

  /** Addresses as the driver of this peer gives them to a device: areas and, where the bus has them, grants. */
  spaceFor(peer: number, user: AreaUser): AddressSpace {
    const areas = this.areasOf(peer)!;
    const inAreas = areas.spaceFor(user);
    const grants = this.#byPeer ? undefined : this.#resources.grants;
    return {
      translate: (hi, lo, length, access, out) => {
        if (grants !== undefined && isGrantAddress(hi)) return grants.translate(hi, lo, length, access, out);
        const lease = inAreas.translate(hi, lo, length, access, out);
        return lease instanceof TranslateFault ? this.#explain(hi, lo, lease) : lease;
      },
    };
  }

  /** Says more about an address that no area has. */
  #explain(hi: number, lo: number, fault: TranslateFault): TranslateFault {
    const address = `0x${hi.toString(16).padStart(8, '0')}${lo.toString(16).padStart(8, '0')}`;
    if (isGrantAddress(hi)) {
      const why = this.#byPeer ? 'devices that another domain serves use pools only' : 'this bus has none';
      return new TranslateFault(`${address} names a grant: ${why}`);
    }
    const foreign = this.#shared.get(hi >>> 16)?.foreign;
    if (foreign !== undefined) {
      return new TranslateFault(
        `${address} lies in area ${hi >>> 16}, which is granted to domain ${foreign.domid} only`,
      );
    }
    if (this.#byPeer || this.#resources.grants === undefined || this.#shared.size > 0) return fault;
    return new TranslateFault(
      `the guest shares no pool and ${address} is no grant address: its driver has to add a pool (REGION_ADD), or to grant its buffers and set bit 63`,
    );
  }

  /** @param done with 0 or an errno, once every watcher has it as well */
  add(body: RegionAdd, done: (result: number) => void): void {
    const region = this.#open(body);
    if (typeof region === 'string') {
      done(errno[region]);
      return;
    }
    if (!this.#byPeer) this.#shared.set(region.area, region);
    this.#tellAll(
      (watcher, told) => watcher.regionAdded(region, told),
      (result) => {
        // Nobody holds a foreign region that was refused; its area is free again.
        const refused = result !== 0 && region.foreign !== undefined;
        if (refused && this.#shared.get(region.area) === region) this.#shared.delete(region.area);
        done(result);
      },
    );
  }

  #open(body: RegionAdd): SharedRegion | ErrnoName {
    const { area, flags, offset, length } = body;
    const aligned = offset % 4096n === 0n && length % 4096n === 0n && offset < 1n << 52n;
    const wellFormed = (flags & ~regionReadOnly) === 0 && aligned && area < ownAreaFirst;
    // Where several peers are told apart, 0 is nobody.
    const areas = this.#byPeer && body.peer === 0 ? undefined : this.areasOf(body.peer);
    if (!wellFormed || areas === undefined || length > BigInt(limits.regionMaxBytes)) return 'EINVAL';
    const refused = this.#shared.has(area) ? 'EEXIST' : areas.check(area, Number(length));
    if (refused !== undefined) return refused;
    const readOnly = (flags & regionReadOnly) !== 0;
    if (body.domain !== 0 && this.#resources.grants === undefined) return 'EOPNOTSUPP';
    if (body.domain !== 0 && !this.#byPeer) return this.#openForeign(body, readOnly);
    const memory = this.#resources.openRegion(body.reference, offset, length, readOnly, body.domain);
    if (typeof memory === 'string') return memory;
    areas.add(area, memory, readOnly);
    return { area, readOnly, memory };
  }

  /** Memory that another domain maps: passed on to whoever serves devices there. */
  #openForeign({ area, domain, reference, offset, length }: RegionAdd, readOnly: boolean): SharedRegion | ErrnoName {
    if (this.#watchers.size === 0) return 'EOPNOTSUPP';
    const domid = asDomid(domain);
    if (domid === undefined || asGrantRef(reference) === undefined || offset !== 0n) return 'EINVAL';
    if (this.#shared.size >= limits.regionsPerBus) return 'ENOSPC';
    return { area, readOnly, foreign: { domid, reference, length } };
  }

  remove(body: RegionDel, done: (result: number) => void): void {
    const areas = this.#tables.get(body.peer);
    if (areas === undefined || body.reserved !== 0 || body.area >= ownAreaFirst) {
      done(areas === undefined && this.#byPeer ? errno.ENOENT : errno.EINVAL);
      return;
    }
    const known = this.#byPeer ? undefined : this.#shared.get(body.area);
    const regionRemoved = (watcher: RegionWatcher, told: (result: number) => void): void =>
      watcher.regionRemoved(body.area, told);
    const tell = (): void => this.#tellAll(regionRemoved, done);
    if (known !== undefined) this.#shared.delete(body.area);
    if (known?.foreign !== undefined) {
      tell();
      return;
    }
    const removed = (error: RegionError | undefined): void => {
      if (error !== undefined || known === undefined) done(error === undefined ? 0 : errno[error]);
      else tell();
    };
    // Who used it has failed by then; nobody keeps it for the next driver.
    areas.remove(body.area, removed, () => {
      if (known !== undefined) this.#tellAll(regionRemoved, () => {});
    });
  }

  /** Calls every watcher; `done` with the first errno that is not 0. */
  #tellAll(
    tell: (watcher: RegionWatcher, told: (result: number) => void) => void,
    done: (result: number) => void,
  ): void {
    let left = this.#watchers.size;
    let worst = 0;
    if (left === 0) done(0);
    for (const watcher of [...this.#watchers]) {
      tell(watcher, (result) => {
        worst ||= result;
        left -= 1;
        if (left === 0) done(worst);
      });
    }
  }

  /** Tells a watcher what is there now and what comes and goes. */
  watch(watcher: RegionWatcher): Closable {
    this.#watchers.add(watcher);
    for (const region of this.#shared.values()) watcher.regionAdded(region, () => {});
    return { close: () => void this.#watchers.delete(watcher) };
  }

  /** Gives memory of a device an area id of the service. @returns undefined when there is none left */
  addOwn(memory: GuestMemory): number | undefined {
    if (this.#nextOwnArea > ownAreaLast) return undefined;
    const area = this.#nextOwnArea++;
    this.areasOf(0)?.add(area, memory, false);
    return area;
  }

  /** The areas of a peer that will not come back. */
  dropPeer(peer: number): void {
    if (peer === 0) return;
    this.#tables.get(peer)?.clear();
    this.#tables.delete(peer);
  }

  clear(): void {
    for (const table of this.#tables.values()) table.clear();
    this.#shared.clear();
    this.#watchers.clear();
  }
}
