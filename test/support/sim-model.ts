import { sectorBytes } from '../../src/virtio/blk.ts';
import { readU32, writeU32 } from '../../src/wire/bytes.ts';

/** A write that a guest has issued; `id` is stamped on each of its sectors. */
export interface ModelWrite {
  readonly id: number;
  readonly first: number;
  readonly count: number;
  /** Writes of any of its sectors that ended while this one was under way: they may have come last. */
  readonly endedMeanwhile: Set<number>;
}

/** What a read that is under way may find: the ids of each of its sectors. */
export interface ModelWindow {
  readonly first: number;
  readonly allowed: ReadonlyArray<Set<number>>;
}

/** Fills a sector with what write `id` puts there. */
export function stamp(sector: Uint8Array, id: number, number: number): void {
  writeU32(sector, 0, id);
  for (let at = 4; at < sector.length; at += 4) writeU32(sector, at, wordOf(id, number, at));
}

const wordOf = (id: number, number: number, at: number): number =>
  (Math.imul(id + 1, 0x9e3779b1) ^ Math.imul(number + 1, 0x85ebca6b) ^ Math.imul(at, 0xc2b2ae35)) >>> 0;

/** The id that a sector bears, or undefined when it is not the work of one write. */
function stampOf(sector: Uint8Array, number: number): number | undefined {
  const id = readU32(sector, 0);
  for (let at = 4; at < sector.length; at += 4) if (readU32(sector, at) !== wordOf(id, number, at)) return undefined;
  return id;
}

/**
 * What a disk may hold, from what its guests were told: after an acknowledged write a sector holds that write, or
 * one that was under way at the same time. Writes that were never acknowledged may have happened or not.
 */
export class DiskModel {
  readonly sectors: number;
  readonly #settled: Array<Set<number>>;
  readonly #underWay = new Map<number, ModelWrite>();
  readonly #windows = new Set<ModelWindow>();
  #lastId = 0;

  constructor(sectors: number) {
    this.sectors = sectors;
    this.#settled = Array.from({ length: sectors }, () => new Set([0]));
  }

  issue(first: number, count: number): ModelWrite {
    const write = { id: ++this.#lastId, first, count, endedMeanwhile: new Set<number>() };
    this.#underWay.set(write.id, write);
    for (const window of this.#windows) {
      for (const [i, allowed] of window.allowed.entries()) if (covers(write, window.first + i)) allowed.add(write.id);
    }
    return write;
  }

  /** `acknowledged` false: it failed, or nobody will ever tell; it cannot happen any more. */
  end(write: ModelWrite, acknowledged: boolean): void {
    if (!this.#underWay.delete(write.id)) return;
    for (const other of this.#underWay.values()) if (overlap(write, other)) other.endedMeanwhile.add(write.id);
    for (let number = write.first; number < write.first + write.count; number++) {
      const before = acknowledged ? write.endedMeanwhile : this.#settled[number]!;
      this.#settled[number] = new Set([...before, write.id]);
    }
  }

  /** All that is under way has happened or never will. */
  settle(): void {
    for (const write of [...this.#underWay.values()]) this.end(write, false);
  }

  open(first: number, count: number): ModelWindow {
    const allowed = Array.from({ length: count }, (_, i) => {
      const ids = new Set(this.#settled[first + i]);
      for (const write of this.#underWay.values()) if (covers(write, first + i)) ids.add(write.id);
      return ids;
    });
    const window = { first, allowed };
    this.#windows.add(window);
    return window;
  }

  /** @param data the sectors of the window. @returns what is wrong with them */
  close(window: ModelWindow, data: Uint8Array | undefined): string | undefined {
    this.#windows.delete(window);
    if (data === undefined) return undefined;
    for (const [i, allowed] of window.allowed.entries()) {
      const number = window.first + i;
      const sector = data.subarray(i * sectorBytes, (i + 1) * sectorBytes);
      const id = stampOf(sector, number);
      if (id === undefined) return `sector ${number} holds garbage`;
      if (!allowed.has(id)) return `sector ${number} holds write ${id}, expected one of ${[...allowed].join(' ')}`;
    }
    return undefined;
  }
}

// A write covers sectors that its settled set replaced long ago too; only its own range counts.
const covers = (write: ModelWrite, number: number): boolean =>
  number >= write.first && number < write.first + write.count;
const overlap = (a: ModelWrite, b: ModelWrite): boolean => a.first < b.first + b.count && b.first < a.first + a.count;
