import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { Closable } from '../kit/scope.ts';
import type { ForeignFd } from '../libc/fd.ts';
import { Mapping } from '../libc/mapping.ts';
import { inspectMemfd } from '../libc/memfd.ts';
import { type Access, type AddressSpace, type Lease, TranslateFault } from '../ports/memory.ts';
import { joinU64 } from '../wire/bytes.ts';
import type { RegionDescription } from './regions.ts';

const ADDRESS_END = 1n << 64n;

/** One mapped region. It stays mapped after its removal for as long as somebody uses bytes of it. */
class Region {
  readonly description: RegionDescription;
  readonly #mapping: Mapping;
  #leases = 0;
  #removed = false;

  constructor(description: RegionDescription, mapping: Mapping) {
    this.description = description;
    this.#mapping = mapping;
  }

  bytes(offset: number, length: number): Uint8Array {
    return this.#mapping.bytes.subarray(offset, offset + length);
  }

  lease(): void {
    this.#leases += 1;
  }

  release(): void {
    this.#leases -= 1;
    this.#closeUnused();
  }

  remove(): void {
    this.#removed = true;
    this.#closeUnused();
  }

  #closeUnused(): void {
    if (this.#removed && this.#leases === 0) this.#mapping.close();
  }
}

const overlaps = (a: bigint, b: bigint, aSize: bigint, bSize: bigint): boolean => a < b + bSize && b < a + aSize;

/** What a front-end has shared, mapped. Bus addresses are its guest addresses; its queues lie at user addresses. */
export class GuestMemory implements AddressSpace, Closable {
  #regions: Region[] = [];

  get count(): number {
    return this.#regions.length;
  }

  /**
   * Maps a region of a memfd that cannot shrink.
   * @param fd stays the caller's
   * @returns why it is refused
   */
  add(description: RegionDescription, fd: ForeignFd): string | undefined {
    const wrong = this.#whyNot(description);
    if (wrong !== undefined) return wrong;
    const file = inspectMemfd(fd.number);
    if (typeof file === 'string') return file;
    const { size, mmapOffset } = description;
    if (mmapOffset + size > BigInt(file.sizeBytes)) return `the file has ${file.sizeBytes} bytes`;
    try {
      const mapping = Mapping.map(fd.number, Number(mmapOffset), Number(size), { writable: true });
      this.#regions.push(new Region(description, mapping));
      return undefined;
    } catch (error) {
      if (error instanceof VmsgError) return error.message;
      throw error;
    }
  }

  #whyNot({ guestAddress, userAddress, size }: RegionDescription): string | undefined {
    if (size === 0n || size > BigInt(limits.viewMaxBytes)) return `a region of ${size} bytes`;
    if (guestAddress + size > ADDRESS_END || userAddress + size > ADDRESS_END)
      return 'a region beyond the last address';
    for (const { description: other } of this.#regions) {
      if (overlaps(guestAddress, other.guestAddress, size, other.size)) return 'guest addresses that overlap';
      if (overlaps(userAddress, other.userAddress, size, other.size)) return 'user addresses that overlap';
    }
    return undefined;
  }

  /** @returns false when there is no region of these addresses and this size */
  remove({ guestAddress, userAddress, size }: RegionDescription): boolean {
    const index = this.#regions.findIndex(
      ({ description: each }) =>
        each.guestAddress === guestAddress && each.userAddress === userAddress && each.size === size,
    );
    if (index < 0) return false;
    for (const region of this.#regions.splice(index, 1)) region.remove();
    return true;
  }

  removeAll(): void {
    for (const region of this.#regions.splice(0)) region.remove();
  }

  /** @returns the guest address of something that lies at a user address */
  guestAddressOf(userAddress: bigint): bigint | undefined {
    for (const { description: each } of this.#regions) {
      const offset = userAddress - each.userAddress;
      if (offset >= 0n && offset < each.size) return each.guestAddress + offset;
    }
    return undefined;
  }

  translate(hi: number, lo: number, length: number, _access: Access, out: Uint8Array[]): Lease | TranslateFault {
    const used: Region[] = [];
    const pieces: Uint8Array[] = [];
    let address = joinU64(hi, lo);
    for (let left = length; left > 0; ) {
      const region = this.#regions.find(({ description: each }) => {
        const offset = address - each.guestAddress;
        return offset >= 0n && offset < each.size;
      });
      if (region === undefined) return new TranslateFault(`no memory at 0x${address.toString(16)}`);
      const offset = Number(address - region.description.guestAddress);
      const part = Math.min(left, Number(region.description.size) - offset);
      pieces.push(region.bytes(offset, part));
      used.push(region);
      left -= part;
      address += BigInt(part);
    }
    out.push(...pieces);
    for (const region of used) region.lease();
    return {
      release: () => {
        for (const region of used.splice(0)) region.release();
      },
    };
  }

  close(): void {
    this.removeAll();
  }
}
