/** What the holder of a translation may do with the bytes. */
export type Access = 'read' | 'write';

/** Keeps translated memory mapped until it is released. `release` is idempotent. */
export interface Lease {
  release(): void;
}

/** Why an address of a peer could not be used; a value, never thrown. */
export class TranslateFault {
  readonly reason: string;
  constructor(reason: string) {
    this.reason = reason;
  }
}

/**
 * The memory that one peer has shared, addressed by opaque 64-bit bus addresses. An address travels as
 * two unsigned 32-bit halves because rings and queues are read without bigint.
 */
export interface AddressSpace {
  /**
   * Appends the host bytes of [hi:lo, hi:lo + length) to `out`, more than one part when the range is
   * scattered in host memory. Nothing is appended on a fault. `length` is at least 1.
   */
  translate(hi: number, lo: number, length: number, access: Access, out: Uint8Array[]): Lease | TranslateFault;
}
