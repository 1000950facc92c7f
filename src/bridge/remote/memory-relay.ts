import type { RegionWatcher, SharedMemory, SharedRegion } from '../../device/shared-memory.ts';
import { errno } from '../../kit/errno.ts';
import type { Closable } from '../../kit/scope.ts';
import { regionReadOnly } from '../../virtio-msg/bus-messages.ts';
import type { MemoryPath } from './peer.ts';

/** Passes the regions of one driver on to the far side of a remote bus, under the same area ids. */
export class MemoryRelay implements RegionWatcher {
  /** Number of this memory at the far side; 0 where there is only one. */
  readonly peer: number;
  /** Resolves when the far side has given everything back. */
  readonly ended: Promise<void>;
  readonly #bus: MemoryPath;
  readonly #areas = new Set<number>();
  readonly #watch: Closable;
  readonly #ready: Promise<void>;
  readonly #forget: () => void;
  #end!: () => void;
  #users = 1;

  /** @param ready when the driver before has given its memory back */
  constructor(bus: MemoryPath, memory: SharedMemory, peer: number, ready: Promise<void>, forget: () => void) {
    this.#bus = bus;
    this.peer = peer;
    this.#ready = ready;
    this.#forget = forget;
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

  regionAdded(region: SharedRegion, done: (result: number) => void): void {
    void this.#add(region).then(done);
  }

  async #add({ area, readOnly, memory }: SharedRegion): Promise<number> {
    await this.#ready;
    if (memory.source === undefined) return errno.EOPNOTSUPP;
    const reference = this.#bus.peer.giveDescriptor(memory.source.fd);
    if (typeof reference === 'string') return errno[reference];
    this.#areas.add(area);
    const result = await this.#bus.addRegion({
      peer: this.peer,
      area,
      flags: readOnly ? regionReadOnly : 0,
      reference,
      reserved: 0,
      offset: memory.source.offset,
      length: BigInt(memory.bytes.length),
    });
    if (result !== 0) this.#areas.delete(area);
    return result;
  }

  regionRemoved(area: number, done: (result: number) => void): void {
    void this.#remove(area).then(done);
  }

  async #remove(area: number): Promise<number> {
    if (!this.#areas.delete(area)) return 0;
    return await this.#bus.removeRegion({ peer: this.peer, area, reserved: 0 });
  }

  /** The device of one user is in reset: the last one takes the memory back. */
  async release(): Promise<void> {
    this.#users -= 1;
    if (this.#users > 0) return;
    this.#watch.close();
    this.#forget();
    await Promise.all([...this.#areas].map((area) => this.#remove(area)));
    this.#end();
  }
}
