import type { DriverRingMemory, IndirectTable } from '../../src/virtio/queue.ts';
import type { SimGuest } from './sim-guest.ts';

/** Memory for one request: an indirect table and room for buffers. */
export interface SimSlot {
  readonly area: number;
  readonly bytes: Uint8Array;
  readonly table: IndirectTable;
  /** Offset of `bytes` in its area. */
  readonly offset: number;
}

interface Area {
  readonly id: number;
  readonly bytes: Uint8Array;
  retired: boolean;
}

const slotBytes = 8192;
const tableBytes = 1024;
const ringAreaBytes = 16384;
const driverAt = 8192;
const deviceAt = 12288;
const canary = 0xa5;

/** The memory that a driver shares for its device: rings, and request slots in areas that come and go. */
export class SimMemory {
  readonly #guest: SimGuest;
  readonly #rings: Area;
  readonly #areas: Area[] = [];
  readonly #free: SimSlot[] = [];
  readonly #used = new Set<SimSlot>();
  /** Taken back: nobody may write there any more. */
  readonly #graves: Area[] = [];
  #shared = false;
  #takenBack = false;

  constructor(guest: SimGuest, deviceNumber: number) {
    this.#guest = guest;
    this.#rings = { id: guest.regions.newArea(), bytes: new Uint8Array(ringAreaBytes), retired: false };
    this.#areas.push(this.#newArea(2 + (deviceNumber % 3) * 6));
  }

  #newArea(slots: number): Area {
    const area = { id: this.#guest.regions.newArea(), bytes: new Uint8Array(slots * slotBytes), retired: false };
    for (let i = 0; i < slots; i++) {
      const offset = i * slotBytes;
      const words = new Uint32Array(area.bytes.buffer, offset, tableBytes / 4);
      const table = { words, hi: (area.id << 16) >>> 0, lo: offset };
      const at = offset + tableBytes;
      this.#free.push({ area: area.id, bytes: area.bytes.subarray(at, offset + slotBytes), table, offset: at });
    }
    return area;
  }

  get #base(): bigint {
    return BigInt(this.#rings.id) << 48n;
  }

  get descAddr(): bigint {
    return this.#base;
  }

  get driverAddr(): bigint {
    return this.#base + BigInt(driverAt);
  }

  get deviceAddr(): bigint {
    return this.#base + BigInt(deviceAt);
  }

  ringParts(bytes: { desc: number; driver: number; device: number }): DriverRingMemory {
    const part = (at: number, length: number) => this.#rings.bytes.subarray(at, at + length);
    return { desc: part(0, bytes.desc), driver: part(driverAt, bytes.driver), device: part(deviceAt, bytes.device) };
  }

  /** Shares what is not shared yet. */
  async share(): Promise<void> {
    if (this.#shared) return;
    this.#shared = true;
    for (const area of [this.#rings, ...this.#areas]) {
      if (!this.#takenBack) await this.#guest.regions.add(area.id, area.bytes);
    }
  }

  take(): SimSlot | undefined {
    if (this.#free.length === 0) return undefined;
    const [slot] = this.#free.splice(this.#guest.loop.random.below(this.#free.length), 1);
    this.#used.add(slot!);
    return slot;
  }

  give(slot: SimSlot): void {
    this.#used.delete(slot);
    if (this.#areas.some((area) => area.id === slot.area && !area.retired)) this.#free.push(slot);
  }

  /** After a reset: whatever is still written or read from here would be noticed. */
  scribble(): void {
    for (const area of this.#areas) area.bytes.fill(canary);
    this.#rings.bytes.fill(canary);
    for (const area of this.#areas.filter((candidate) => candidate.retired)) this.#bury(area);
  }

  async extend(): Promise<void> {
    if (this.#areas.length >= 4) return;
    const before = this.#free.length;
    const area = this.#newArea(4);
    const slots = this.#free.splice(before);
    this.#areas.push(area);
    // Slots come into use when the service knows the region.
    if (await this.#guest.regions.add(area.id, area.bytes)) this.#free.push(...slots);
  }

  /** Takes an area back, with requests in it or not. @returns 'busy' when the device must be reset for it */
  async shrink(withRequests: boolean): Promise<'gone' | 'busy' | undefined> {
    const area = this.#areas.find((candidate, i) => i > 0 && !candidate.retired);
    if (area === undefined) return undefined;
    if (!withRequests && [...this.#used].some((slot) => slot.area === area.id)) return undefined;
    area.retired = true;
    const kept = this.#free.filter((slot) => slot.area !== area.id);
    this.#free.length = 0;
    this.#free.push(...kept);
    const outcome = await this.#guest.regions.remove(area.id);
    // What is still unanswered in there can only end with a fault of the device, or has ended just now.
    if (outcome === 'gone') {
      area.bytes.fill(canary);
      this.#bury(area);
    }
    return outcome;
  }

  /** The device is gone. */
  async takeBack(): Promise<void> {
    this.#takenBack = true;
    for (const area of [this.#rings, ...this.#areas]) await this.#guest.regions.remove(area.id);
  }

  #bury(area: Area): void {
    this.#areas.splice(this.#areas.indexOf(area), 1);
    this.#graves.push(area);
  }

  /** Whether the memory of a request was taken back before its end was seen: what is in it is lost. */
  isTakenBack(slot: SimSlot): boolean {
    return this.#graves.some((area) => area.id === slot.area);
  }

  /** Whether memory that was taken back has changed since. */
  wasTrespassed(): boolean {
    return this.#graves.some((area) => area.bytes.some((byte) => byte !== canary));
  }
}
