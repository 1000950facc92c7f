import type { Clock } from '../kit/clock.ts';
import { type ErrnoName, errno } from '../kit/errno.ts';
import { limits } from '../kit/limits.ts';
import type { Closable } from '../kit/scope.ts';
import type { GuestMemory, GuestResources } from '../ports/bus.ts';
import { type BusRequest, regionReadOnly } from '../virtio-msg/bus-messages.ts';
import { AreaTable } from './area-table.ts';

type RegionAdd = Extract<BusRequest, { name: 'REGION_ADD' }>['body'];
type RegionDel = Extract<BusRequest, { name: 'REGION_DEL' }>['body'];

/** A region of a guest, for those who pass it on. */
export interface SharedRegion {
  readonly area: number;
  readonly readOnly: boolean;
  readonly memory: GuestMemory;
}

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

  /** @param done with 0 or an errno, once every watcher has it as well */
  add(body: RegionAdd, done: (result: number) => void): void {
    const region = this.#open(body);
    if (typeof region === 'string') {
      done(errno[region]);
      return;
    }
    if (!this.#byPeer) this.#shared.set(region.area, region);
    this.#tellAll((watcher, told) => watcher.regionAdded(region, told), done);
  }

  #open(body: RegionAdd): SharedRegion | ErrnoName {
    const { area, flags, offset, length } = body;
    const aligned = offset % 4096n === 0n && length % 4096n === 0n && offset < 1n << 52n;
    const wellFormed = body.reserved === 0 && (flags & ~regionReadOnly) === 0 && aligned && area < ownAreaFirst;
    // Where several peers are told apart, 0 is nobody.
    const areas = this.#byPeer && body.peer === 0 ? undefined : this.areasOf(body.peer);
    if (!wellFormed || areas === undefined || length > BigInt(limits.regionMaxBytes)) return 'EINVAL';
    const refused = areas.check(area, Number(length));
    if (refused !== undefined) return refused;
    const readOnly = (flags & regionReadOnly) !== 0;
    const memory = this.#resources.openRegion(body.reference, offset, length, readOnly);
    if (typeof memory === 'string') return memory;
    areas.add(area, memory, readOnly);
    return { area, readOnly, memory };
  }

  remove(body: RegionDel, done: (result: number) => void): void {
    const areas = this.#tables.get(body.peer);
    if (areas === undefined || body.reserved !== 0 || body.area >= ownAreaFirst) {
      done(areas === undefined && this.#byPeer ? errno.ENOENT : errno.EINVAL);
      return;
    }
    const known = this.#shared.delete(body.area);
    areas.remove(body.area, (error) => {
      if (error !== undefined || !known) done(error === undefined ? 0 : errno[error]);
      else this.#tellAll((watcher, told) => watcher.regionRemoved(body.area, told), done);
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
