import { errno } from '../../src/kit/errno.ts';
import type { BusRequest } from '../../src/virtio-msg/bus-messages.ts';
import type { SimLoop } from './sim-loop.ts';
import type { SimReference } from './sim-resources.ts';

/** How a request ended; `lost`: with the connection, or with its device. */
export type SimOutcome =
  | { readonly kind: 'response'; readonly body: Record<string, unknown> }
  | { readonly kind: 'failure'; readonly errno: number }
  | { readonly kind: 'lost' };

/** What the regions need of their guest. */
export interface SimRegionOwner {
  readonly loop: SimLoop;
  /** Messages may get lost. */
  readonly noisy: boolean;
  readonly hasConnection: boolean;
  request(device: number, message: BusRequest): Promise<SimOutcome>;
}

/** The memory that a guest shares, over all its connections. */
export class SimRegions {
  /** Handed over and not yet used. */
  readonly references = new Map<number, SimReference>();
  readonly #guest: SimRegionOwner;
  readonly #areas = new Map<number, Uint8Array>();
  /** Areas that this connection knows, with the answer. */
  readonly #announced = new Map<number, Promise<SimOutcome>>();
  #nextReference = 0;
  #nextArea = 1;

  constructor(guest: SimRegionOwner) {
    this.#guest = guest;
  }

  reference(thing: SimReference): number {
    this.#nextReference = (this.#nextReference + 1) >>> 0;
    this.references.set(this.#nextReference, thing);
    return this.#nextReference;
  }

  newArea(): number {
    return this.#nextArea++ & 0x7fff;
  }

  /** A new connection knows nothing of the former one. */
  renew(): void {
    this.references.clear();
    this.#announced.clear();
  }

  async announceAll(): Promise<void> {
    for (const [area, bytes] of this.#areas) await this.add(area, bytes);
  }

  /** Shares memory; it stays shared over reconnections. */
  async add(area: number, bytes: Uint8Array): Promise<boolean> {
    this.#areas.set(area, bytes);
    const outcome = await this.#announce(area, bytes);
    const { loop, noisy } = this.#guest;
    const fine = outcome.kind === 'response' && outcome.body.errno === 0;
    if (outcome.kind === 'response' && !fine) loop.check(noisy, `REGION_ADD: errno ${outcome.body.errno}`);
    return fine;
  }

  #announce(area: number, bytes: Uint8Array): Promise<SimOutcome> {
    let announced = this.#announced.get(area);
    if (announced === undefined && this.#guest.hasConnection) {
      const reference = this.reference({ kind: 'region', bytes });
      const body = { peer: 0, area, flags: 0, reference, domain: 0, offset: 0n, length: BigInt(bytes.length) };
      announced = this.#guest.request(0, { kind: 'request', name: 'REGION_ADD', body });
      this.#announced.set(area, announced);
    }
    return announced ?? Promise.resolve({ kind: 'lost' });
  }

  /** @returns whether nothing of the service uses the region any more; `busy` when some device has to be reset first */
  async remove(area: number): Promise<'gone' | 'busy'> {
    // Never shared, or taken back already.
    const known = this.#announced.delete(area);
    if (!this.#areas.delete(area) || !known) return 'busy';
    const body = { peer: 0, area, reserved: 0 };
    const outcome = await this.#guest.request(0, { kind: 'request', name: 'REGION_DEL', body });
    if (outcome.kind !== 'response') return 'busy';
    const result = outcome.body.errno as number;
    const { loop, noisy } = this.#guest;
    loop.check([0, errno.EBUSY].includes(result) || noisy, `REGION_DEL of area ${area}: errno ${result}`);
    return result === 0 ? 'gone' : 'busy';
  }
}
