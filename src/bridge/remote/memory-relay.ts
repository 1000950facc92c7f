import type { RegionWatcher, SharedMemory, SharedRegion } from '../../device/shared-memory.ts';
import type { Clock, Timer } from '../../kit/clock.ts';
import { errno } from '../../kit/errno.ts';
import { limits } from '../../kit/limits.ts';
import type { Closable } from '../../kit/scope.ts';
import { regionReadOnly } from '../../virtio-msg/bus-messages.ts';
import type { MemoryOwner, MemoryPath, StuckShare } from './peer.ts';

const pageBytes = 4096n;

/** What of a region the far side is told. */
interface Passed {
  readonly reference: number;
  readonly domain: number;
  readonly offset: bigint;
  readonly length: bigint;
}

export interface MemoryRelayHooks {
  /** The last device has left: the memory is passed on no more. */
  onLeft(): void;
  /** Nothing of it is at the far side any more. */
  onEnded(): void;
  /** The far side keeps it for too long; or, after that, has given it back. */
  onStuck(share: StuckShare, stuck: boolean): void;
}

/** Passes the regions of one driver on to the far side of a remote bus, under the same area ids. */
export class MemoryRelay implements RegionWatcher {
  /** Number of this memory at the far side; 0 where there is only one. */
  readonly peer: number;
  /** Resolves when the far side was asked for everything back, and answered or let the time pass. */
  readonly ended: Promise<void>;
  readonly #bus: MemoryPath;
  readonly #owner: MemoryOwner;
  readonly #clock: Clock;
  readonly #hooks: MemoryRelayHooks;
  /** Pages by area. */
  readonly #areas = new Map<number, number>();
  readonly #watch: Closable;
  readonly #ready: Promise<void>;
  #end!: () => void;
  #users = 1;
  #leaving = 0;
  #leftMs = 0;
  #timer: Timer | undefined;
  /** Ends the wait before the far side is asked again. */
  #askNow: (() => void) | undefined;
  /** What it kept when its time was over. */
  #stuckPages = 0;

  /** @param ready when the driver before has given its memory back */
  constructor(
    bus: MemoryPath,
    memory: SharedMemory,
    owner: MemoryOwner,
    peer: number,
    ready: Promise<void>,
    clock: Clock,
    hooks: MemoryRelayHooks,
  ) {
    this.#bus = bus;
    this.#owner = owner;
    this.peer = peer;
    this.#ready = ready;
    this.#clock = clock;
    this.#hooks = hooks;
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
    this.#watch = memory.watch(this);
  }

  retain(): this {
    this.#users += 1;
    return this;
  }

  /** Resolves when requests may be sent to devices that use this memory. */
  get ready(): Promise<void> {
    return this.#ready;
  }

  /** What the far side has kept for too long; undefined when there is nothing. */
  get stuck(): StuckShare | undefined {
    if (this.#stuckPages === 0) return undefined;
    return { owner: this.#owner, pages: this.#stuckPages, ageMs: Math.round(this.#clock.nowMs() - this.#leftMs) };
  }

  regionAdded(region: SharedRegion, done: (result: number) => void): void {
    void this.#add(region).then(done);
  }

  async #add(region: SharedRegion): Promise<number> {
    await this.#ready;
    if (this.#users === 0) return errno.ENODEV;
    const passed = this.#passed(region);
    if (typeof passed === 'number') return passed;
    const { area, readOnly } = region;
    this.#areas.set(area, Number(passed.length / pageBytes));
    const flags = readOnly ? regionReadOnly : 0;
    const result = await this.#bus.addRegion({ peer: this.peer, area, flags, ...passed });
    if (result !== 0) this.#areas.delete(area);
    return result;
  }

  /** @returns an errno when the region cannot be passed on, 0 when it is not for this far side */
  #passed({ memory, foreign }: SharedRegion): Passed | number {
    if (foreign !== undefined) {
      const { domid, reference, length } = foreign;
      return domid === this.#bus.peer.domid ? { reference, domain: this.#owner.domid, offset: 0n, length } : 0;
    }
    // Grants to our domain are of no use to another one.
    if (memory.source !== undefined && !('fd' in memory.source)) return 0;
    if (memory.source === undefined) return errno.EOPNOTSUPP;
    const reference = this.#bus.peer.giveDescriptor(memory.source.fd);
    if (typeof reference === 'string') return errno[reference];
    return { reference, domain: 0, offset: memory.source.offset, length: BigInt(memory.bytes.length) };
  }

  regionRemoved(area: number, done: (result: number) => void): void {
    void this.#remove(area).then(done);
  }

  async #remove(area: number): Promise<number> {
    if (!this.#areas.has(area)) return 0;
    const result = await this.#bus.removeRegion({ peer: this.peer, area, reserved: 0 });
    // Whatever a side that is gone had mapped is gone with it.
    if (result === 0 || result === errno.ENOENT || result === errno.ENODEV) this.#areas.delete(area);
    this.#noteGone();
    return result;
  }

  /**
   * A device uses the memory no more; the last one takes it back. Resolves when the far side has answered, or was
   * given its time: then it is asked again until it gives the memory back, or goes.
   * @param reset the device is in reset, as far as that can be known
   * @param unbind tells the far side that nobody uses the device
   */
  async release(reset: Promise<void>, unbind: () => Promise<void>): Promise<void> {
    this.#leaving += 1;
    if (this.#leaving === this.#users) this.#watchTime();
    await reset;
    this.#leaving -= 1;
    this.#users -= 1;
    if (this.#users > 0) {
      await unbind();
      return;
    }
    this.#watch.close();
    this.#hooks.onLeft();
    await this.#removeAll();
    this.#end();
    if (this.#areas.size > 0) void this.#insist(unbind);
    else await this.#finish(unbind);
  }

  #pause(): Promise<void> {
    return new Promise((resolve) => {
      const timer = this.#clock.after(limits.shareStuckMs, resolve);
      this.#askNow = () => {
        timer.cancel();
        resolve();
      };
    });
  }

  async #finish(unbind: () => Promise<void>): Promise<void> {
    this.#timer?.cancel();
    await unbind();
    this.#hooks.onEnded();
  }

  async #removeAll(): Promise<void> {
    await Promise.all([...this.#areas.keys()].map((area) => this.#remove(area)));
  }

  #watchTime(): void {
    this.#leftMs = this.#clock.nowMs();
    this.#timer?.cancel();
    this.#timer = this.#clock.after(limits.shareStuckMs, () => {
      if (this.#leaving !== this.#users) return;
      this.#stuckPages = [...this.#areas.values()].reduce((sum, count) => sum + count, 0);
      if (this.stuck !== undefined) this.#hooks.onStuck(this.stuck, true);
    });
  }

  #noteGone(): void {
    const { stuck } = this;
    if (this.#areas.size > 0 || stuck === undefined) return;
    this.#stuckPages = 0;
    this.#hooks.onStuck(stuck, false);
  }

  /** The far side is gone, and with it all that it had mapped. */
  abandon(): void {
    this.#areas.clear();
    this.#noteGone();
    this.#askNow?.();
  }

  /** Asks again and again, at a bounded rate. */
  async #insist(unbind: () => Promise<void>): Promise<void> {
    while (this.#areas.size > 0 && !this.#bus.closed) {
      await this.#pause();
      await this.#removeAll();
    }
    await this.#finish(unbind);
  }
}
