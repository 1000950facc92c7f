import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import { grantPageBytes, type SharedPages } from '../ports/hypervisor.ts';
import { grantAddressHi, grantAddressLo } from '../virtio-msg/xen-bus.ts';
import { RangeAllocator } from './allocator.ts';
import { GuestBuffer } from './buffer.ts';

/** Pages side by side whose references are consecutive: what one address can reach. */
interface Run {
  readonly first: number;
  readonly count: number;
  /** Where it starts in the chunk. */
  readonly page: number;
  readonly allocator: RangeAllocator;
}

interface Chunk {
  readonly pages: SharedPages;
  readonly runs: readonly Run[];
  /** 'leaving': nothing is allocated from it; the service is asked to let go of it. */
  state: 'active' | 'leaving';
}

/** @returns resolves when the service has no mapping of these references any more */
export type ReleaseGrants = (first: number, count: number) => Promise<void>;

function runsOf(references: Uint32Array): Run[] {
  const runs: Run[] = [];
  for (let from = 0, to = 0; from < references.length; from = to) {
    for (to = from + 1; to < references.length && references[to] === references[to - 1]! + 1; ) to += 1;
    const count = to - from;
    const allocator = new RangeAllocator(count * grantPageBytes);
    runs.push({ first: references[from]!, count, page: from, allocator });
  }
  return runs;
}

const isEmpty = (chunk: Chunk): boolean => chunk.runs.every((run) => run.allocator.count === 0);

/**
 * Memory that is granted page by page and named by its grant references. It grows in chunks and gives chunks back
 * when they are empty, but for one.
 */
export class GrantArena {
  readonly #share: (pages: number) => SharedPages;
  readonly #chunks = new Set<Chunk>();
  #release: ReleaseGrants = async () => {};
  #closed = false;

  /** @param share may throw VmsgError 'limit-reached' */
  constructor(share: (pages: number) => SharedPages) {
    this.#share = share;
  }

  /** What has to happen before a grant ends. */
  set release(release: ReleaseGrants) {
    this.#release = release;
  }

  get pages(): number {
    let pages = 0;
    for (const chunk of this.#chunks) pages += chunk.pages.references.length;
    return pages;
  }

  /** @param owner memory that the buffer counts as. @throws VmsgError 'limit-reached' */
  alloc(bytes: number, align: number, owner: object): GuestBuffer {
    if (this.#closed) throw new VmsgError('bus-lost', 'the bus is closed');
    for (const chunk of this.#chunks) {
      const buffer = chunk.state === 'active' ? this.#allocIn(chunk, bytes, align, owner) : undefined;
      if (buffer !== undefined) return buffer;
    }
    const pages = Math.ceil(bytes / grantPageBytes);
    for (let attempt = 0; attempt < limits.guestGrantAttempts; attempt++) {
      // Twice as many: a run may begin anywhere in what the kernel gives; and the more, the longer it may be.
      const buffer = this.#allocIn(this.#grow(pages, pages * 2 ** (attempt + 1)), bytes, align, owner);
      if (buffer !== undefined) return buffer;
    }
    this.#trim();
    throw new VmsgError('limit-reached', `the kernel gives no ${pages} consecutive grant references: use a pool`);
  }

  #allocIn(chunk: Chunk, bytes: number, align: number, owner: object): GuestBuffer | undefined {
    for (const run of chunk.runs) {
      const start = run.allocator.allocate(bytes, align);
      if (start === undefined) continue;
      const from = run.page * grantPageBytes + start;
      const reference = run.first + Math.floor(start / grantPageBytes);
      return new GuestBuffer({
        bytes: chunk.pages.bytes.subarray(from, from + bytes),
        hi: grantAddressHi(reference),
        lo: grantAddressLo(reference, start % grantPageBytes),
        owner,
        release: () => this.#free(chunk, run, start),
      });
    }
    return undefined;
  }

  #grow(needed: number, wanted: number): Chunk {
    const room = limits.guestGrantMaxPages - this.pages;
    if (needed > room) {
      throw new VmsgError('limit-reached', `${needed} pages more than ${this.pages} of ${limits.guestGrantMaxPages}`);
    }
    const pages = this.#shareUpTo(Math.min(room, Math.max(wanted, limits.guestGrantChunkPages)), needed);
    const chunk: Chunk = { pages, runs: runsOf(pages.references), state: 'active' };
    this.#chunks.add(chunk);
    return chunk;
  }

  /** Where the kernel allows no more, what is needed has to do. */
  #shareUpTo(most: number, needed: number): SharedPages {
    try {
      return this.#share(most);
    } catch (error) {
      if (most === needed || !(error instanceof VmsgError && error.code === 'limit-reached')) throw error;
      return this.#share(needed);
    }
  }

  #free(chunk: Chunk, run: Run, start: number): void {
    run.allocator.release(start);
    if (!this.#closed && isEmpty(chunk)) this.#trim();
  }

  /** Gives every empty chunk back, but for the smallest. */
  #trim(): void {
    const empty = [...this.#chunks].filter((chunk) => chunk.state === 'active' && isEmpty(chunk));
    empty.sort((a, b) => a.pages.references.length - b.pages.references.length);
    for (const chunk of empty.slice(1)) void this.#giveBack(chunk);
  }

  /** Never rejects. */
  async #giveBack(chunk: Chunk): Promise<void> {
    chunk.state = 'leaving';
    try {
      for (const { first, count } of chunk.runs) await this.#release(first, count);
      this.#drop(chunk);
    } catch {
      // The service still uses it: it serves on, and is given back when it is empty again.
      chunk.state = 'active';
    }
  }

  #drop(chunk: Chunk): void {
    if (this.#chunks.delete(chunk)) chunk.pages.close();
  }

  /** Ends every grant; buffers become empty. Idempotent. */
  close(): void {
    this.#closed = true;
    for (const chunk of [...this.#chunks]) this.#drop(chunk);
  }
}
