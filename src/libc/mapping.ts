import { fstatSync } from 'node:fs';
import { assert } from '../kit/assert.ts';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { Closable } from '../kit/scope.ts';
import { linux } from './constants.ts';
import { type Detach, detach } from './detach.ts';
import { checkedFs, failed } from './errno.ts';
import { isMapFailed, mmap, munmap, sysconf, viewMemory } from './native.ts';

export interface MapOptions {
  /** Without it a store into `bytes` ends the process (SIGSEGV): JavaScript has no read-only views. */
  readonly writable: boolean;
  /** How buffers are emptied before their memory goes; only tests choose another one. */
  readonly detach?: Detach;
}

const pageSizeBytes = sysconf(linux._SC_PAGESIZE);

/**
 * Memory mapped into this process, seen without a copy. After `close` every view of `bytes.buffer` has length 0;
 * where the runtime cannot do that, the views show private zeroes and the address range is never used again.
 * Nothing else may be at work on the memory when it is closed: a read in flight on a pool thread would land in
 * whatever is mapped there next.
 */
export class Mapping implements Closable {
  /** All of the mapped range. Views of `bytes.buffer` may be made; Atomics work on them, `Atomics.wait` does not. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Of the first byte, for system calls. */
  readonly address: number;
  /** In bytes. */
  readonly length: number;
  readonly #pages: { readonly address: number; readonly length: number };
  readonly #detach: Detach;
  #closed = false;

  private constructor(pages: { address: number; length: number }, skip: number, length: number, empty: Detach) {
    this.#pages = pages;
    this.#detach = empty;
    this.address = pages.address + skip;
    this.length = length;
    this.bytes = new Uint8Array(viewMemory(this.address, length));
  }

  /**
   * Maps `length` bytes of `fd` from `offset` on, shared. The offset need not be a multiple of the page size.
   * A regular file must reach that far, else the first touch would be a SIGBUS; that it stays so is the caller's
   * to know (`inspectMemfd`).
   * @throws VmsgError memory-refused: empty, larger than `limits.viewMaxBytes`, or beyond the end of the file
   * @throws SystemCallError
   */
  static map(fd: number, offset: number, length: number, options: MapOptions): Mapping {
    checkRange(offset, length);
    const stat = checkedFs('fstat', String(fd), () => fstatSync(fd, { bigint: true }));
    if (stat.isFile() && BigInt(offset) + BigInt(length) > stat.size) {
      throw new VmsgError('memory-refused', `bytes ${offset}..${offset + length} of a file of ${stat.size} bytes`);
    }
    const skip = offset % pageSizeBytes;
    const protection = options.writable ? linux.PROT_READ | linux.PROT_WRITE : linux.PROT_READ;
    const pages = mapPages(skip + length, protection, linux.MAP_SHARED, fd, offset - skip);
    return new Mapping(pages, skip, length, options.detach ?? detach);
  }

  /** Private zeroed memory for structures that system calls read and write. @throws as `map` */
  static anonymous(length: number): Mapping {
    checkRange(0, length);
    const flags = linux.MAP_PRIVATE | linux.MAP_ANONYMOUS;
    return new Mapping(mapPages(length, linux.PROT_READ | linux.PROT_WRITE, flags, -1, 0), 0, length, detach);
  }

  get closed(): boolean {
    return this.#closed;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    const { address, length } = this.#pages;
    if (this.#detach(this.bytes.buffer)) {
      if (munmap(address, length) < 0) failed('munmap');
      return;
    }
    const flags = linux.MAP_PRIVATE | linux.MAP_ANONYMOUS | linux.MAP_FIXED | linux.MAP_NORESERVE;
    const result = mmap(address, length, linux.PROT_READ | linux.PROT_WRITE, flags, -1, 0);
    if (isMapFailed(result)) failed('mmap', `${length} bytes in place of closed ones`);
  }
}

function checkRange(offset: number, length: number): void {
  assert(Number.isSafeInteger(offset) && offset >= 0, `mapping offset ${offset}`);
  assert(Number.isSafeInteger(length) && length >= 0, `mapping length ${length}`);
  if (length === 0) throw new VmsgError('memory-refused', 'an empty range cannot be mapped');
  if (length > limits.viewMaxBytes) {
    throw new VmsgError('memory-refused', `${length} bytes in one view, at most ${limits.viewMaxBytes} are possible`);
  }
}

function mapPages(length: number, protection: number, flags: number, fd: number, offset: number) {
  const address = mmap(0, length, protection, flags, fd, offset);
  if (isMapFailed(address)) return failed('mmap', `${length} bytes`);
  return { address, length };
}
