import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { BusAccess } from './access.ts';
import { AreaIds, GuestMemory, type RegionAnnouncer } from './memory.ts';

/** The memory that a device's addresses mean, for as long as it is open. */
export interface MemoryUse {
  readonly memory: GuestMemory;
  /** Idempotent. */
  end(): void;
}

interface PeerMemory {
  readonly memory: GuestMemory;
  readonly ready: Promise<unknown>;
  users: number;
}

/** All memory of one bus: that of the bus itself, and one pool for each domain that serves devices on it itself. */
export class BusMemories {
  readonly main: GuestMemory;
  readonly #access: BusAccess;
  readonly #announcer: RegionAnnouncer;
  readonly #poolBytes: number;
  readonly #areas = new AreaIds();
  readonly #peers = new Map<number, PeerMemory>();

  /** @param poolBytes of the memory for another domain */
  constructor(access: BusAccess, announcer: RegionAnnouncer, poolBytes: number = limits.guestMemoryDefaultBytes) {
    this.#access = access;
    this.#announcer = announcer;
    this.#poolBytes = poolBytes;
    this.main = new GuestMemory({ access, announcer, areas: this.#areas, grants: access.grants });
  }

  /** @throws VmsgError when the memory that the device needs cannot be made */
  async use(device: number): Promise<MemoryUse> {
    const domain = this.#access.peerOf(device);
    if (domain === undefined) return { memory: this.main, end: () => {} };
    const peer = this.#peers.get(domain) ?? this.#make(domain);
    peer.users += 1;
    let ended = false;
    const end = (): void => {
      if (ended) return;
      ended = true;
      peer.users -= 1;
      if (peer.users > 0) return;
      if (this.#peers.get(domain) === peer) this.#peers.delete(domain);
      void peer.memory.retire();
    };
    try {
      await peer.ready;
      return { memory: peer.memory, end };
    } catch (error) {
      end();
      throw error;
    }
  }

  #make(domain: number): PeerMemory {
    if (this.#peers.size >= limits.peersPerBus) {
      throw new VmsgError('limit-reached', `devices of at most ${limits.peersPerBus} domains`);
    }
    const parts = { access: this.#access, announcer: this.#announcer, areas: this.#areas, peer: domain };
    const memory = new GuestMemory(parts);
    const peer: PeerMemory = { memory, ready: memory.addRegion(this.#poolBytes), users: 0 };
    this.#peers.set(domain, peer);
    return peer;
  }

  /** Shares everything again on a new connection. */
  async announce(): Promise<void> {
    await this.main.announce();
    for (const { memory } of this.#peers.values()) {
      await memory.announce().catch((error: unknown) => {
        // The domain may be gone, or not back yet: then its devices are, too, and say so themselves.
        if (!(error instanceof VmsgError && error.code === 'memory-refused')) throw error;
      });
    }
  }

  /** See `GuestMemory`. */
  connected(): void {
    for (const memory of this.#all()) memory.connected();
  }

  lost(error: Error): void {
    for (const memory of this.#all()) memory.lost(error);
  }

  close(): void {
    for (const memory of this.#all()) memory.close();
    this.#peers.clear();
  }

  #all(): GuestMemory[] {
    return [this.main, ...[...this.#peers.values()].map((peer) => peer.memory)];
  }
}
