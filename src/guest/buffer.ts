import { VmsgError } from '../kit/errors.ts';

/** A range of bus memory that a device can be pointed to. */
export interface BusRange {
  /** Upper and lower half of the bus address. */
  readonly hi: number;
  readonly lo: number;
  /** Bytes. */
  readonly length: number;
}

const twoTo32 = 0x1_0000_0000;

export interface BufferParts {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Bus address of the first byte. */
  readonly hi: number;
  readonly lo: number;
  /** The memory that the address belongs to: only its devices understand it. */
  readonly owner: object;
  readonly release: () => void;
}

/** Shared memory that devices read and write directly. What a device may write can change at any time. */
export class GuestBuffer implements BusRange {
  /** Of length 0 once the bus is closed. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly hi: number;
  readonly lo: number;
  readonly length: number;
  readonly #owner: object;
  #release: (() => void) | undefined;

  constructor({ bytes, hi, lo, owner, release }: BufferParts) {
    this.bytes = bytes;
    this.hi = hi;
    this.lo = lo;
    this.length = bytes.length;
    this.#owner = owner;
    this.#release = release;
  }

  get busAddress(): bigint {
    return (BigInt(this.hi) << 32n) | BigInt(this.lo);
  }

  /** Whether it is of this memory; a device understands addresses of its own memory only. */
  isOf(owner: object): boolean {
    return this.#owner === owner;
  }

  /** A part of it, as a device sees it. */
  range(offset: number, length: number): BusRange {
    if (offset < 0 || length < 1 || offset + length > this.length) {
      throw new VmsgError('invalid-request', `bytes ${offset}..${offset + length} of a buffer of ${this.length}`);
    }
    const lo = this.lo + offset;
    return lo < twoTo32 ? { hi: this.hi, lo, length } : { hi: this.hi + 1, lo: lo - twoTo32, length };
  }

  /** A part of it as a buffer that is not freed by itself. */
  slice(offset: number, length: number): GuestBuffer {
    const { hi, lo } = this.range(offset, length);
    const bytes = this.bytes.subarray(offset, offset + length);
    return new GuestBuffer({ bytes, hi, lo, owner: this.#owner, release: () => {} });
  }

  /** Gives the memory back. No device may use it any more: requests on it have ended. Idempotent. */
  free(): void {
    const release = this.#release;
    this.#release = undefined;
    release?.();
  }
}
