import assert from 'node:assert/strict';
import { linux } from '../../src/libc/constants.ts';
import { detach } from '../../src/libc/detach.ts';
import type { Fd } from '../../src/libc/fd.ts';
import { createMemfd } from '../../src/libc/memfd.ts';
import { isMapFailed, mmap, munmap, viewMemory } from '../../src/libc/native.ts';
import { grantPageBytes } from '../../src/ports/hypervisor.ts';

const domainPages = 131_072;

/** Pages of a domain, side by side in this process, whatever their order is in the domain's memory. */
export class FakeView {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly #address: number;
  readonly #length: number;

  constructor(fd: number, frames: readonly number[], writable: boolean) {
    this.#length = frames.length * grantPageBytes;
    const flags = linux.MAP_PRIVATE | linux.MAP_ANONYMOUS | linux.MAP_NORESERVE;
    this.#address = mapped(mmap(0, this.#length, linux.PROT_READ, flags, -1, 0));
    const protection = writable ? linux.PROT_READ | linux.PROT_WRITE : linux.PROT_READ;
    for (let from = 0, to = 0; from < frames.length; from = to) {
      for (to = from + 1; frames[to] === frames[to - 1]! + 1; ) to++;
      const length = (to - from) * grantPageBytes;
      const at = this.#address + from * grantPageBytes;
      const fixed = linux.MAP_SHARED | linux.MAP_FIXED;
      mapped(mmap(at, length, protection, fixed, fd, frames[from]! * grantPageBytes));
    }
    this.bytes = new Uint8Array(viewMemory(this.#address, this.#length));
  }

  /** Idempotent. */
  close(): void {
    if (this.bytes.length === 0) return;
    assert.ok(detach(this.bytes.buffer));
    assert.equal(munmap(this.#address, this.#length), 0);
  }
}

function mapped(address: number | bigint): number {
  assert.ok(!isMapFailed(address), 'mmap failed');
  return address;
}

/** The memory of one domain: a sparse file, so that any of its pages can be mapped in any order. */
export class FakeMemory {
  readonly #file: Fd;
  readonly #free: number[] = [];
  #next = 0;

  constructor(name: string) {
    this.#file = createMemfd(name, domainPages * grantPageBytes);
  }

  /** @returns frames of zeroed pages, undefined when there is no room */
  allocate(pages: number): number[] | undefined {
    if (domainPages - this.#next + this.#free.length < pages) return undefined;
    const frames = Array.from({ length: pages }, () => this.#free.pop() ?? this.#next++);
    const view = this.view(frames, true);
    view.bytes.fill(0);
    view.close();
    return frames;
  }

  free(frame: number): void {
    this.#free.push(frame);
  }

  view(frames: readonly number[], writable: boolean): FakeView {
    return new FakeView(this.#file.number, frames, writable);
  }

  /** For another process; undefined unless the frames lie side by side in the file. */
  handOver(frames: readonly number[]): { fd: number; offset: bigint } | undefined {
    const inRow = frames.every((frame, i) => frame === frames[0]! + i);
    return inRow ? { fd: this.#file.number, offset: BigInt(frames[0]! * grantPageBytes) } : undefined;
  }

  /** Views that are open stay usable. */
  close(): void {
    this.#file.close();
  }
}
