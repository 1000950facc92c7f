import { assert } from '../kit/assert.ts';

interface Span {
  readonly start: number;
  readonly length: number;
}

/** Hands out ranges of [0, size), first fit, and merges what comes back. Sans-IO. */
export class RangeAllocator {
  readonly size: number;
  /** Free spans, ascending, never touching each other. */
  #free: Span[];
  readonly #used = new Map<number, number>();

  constructor(size: number) {
    this.size = size;
    this.#free = [{ start: 0, length: size }];
  }

  /** Number of ranges that are handed out. */
  get count(): number {
    return this.#used.size;
  }

  /** @param align a power of two. @returns the start, or undefined when no free span is large enough */
  allocate(length: number, align: number): number | undefined {
    assert(length > 0 && Number.isInteger(length), 'a length is a positive integer');
    for (const [i, span] of this.#free.entries()) {
      const start = Math.ceil(span.start / align) * align;
      const tail = span.start + span.length - (start + length);
      if (tail < 0) continue;
      const parts = [
        { start: span.start, length: start - span.start },
        { start: start + length, length: tail },
      ];
      this.#free.splice(i, 1, ...parts.filter((part) => part.length > 0));
      this.#used.set(start, length);
      return start;
    }
    return undefined;
  }

  /** Takes back what `allocate` returned. */
  release(start: number): void {
    const length = this.#used.get(start);
    assert(length !== undefined, `a range starts at ${start}`);
    this.#used.delete(start);
    let low = 0;
    for (let high = this.#free.length; low < high; ) {
      const middle = (low + high) >>> 1;
      if (this.#free[middle]!.start < start) low = middle + 1;
      else high = middle;
    }
    const before = this.#free[low - 1];
    const after = this.#free[low];
    const joinsBefore = before !== undefined && before.start + before.length === start;
    const joinsAfter = after !== undefined && start + length === after.start;
    const merged = {
      start: joinsBefore ? before.start : start,
      length: length + (joinsBefore ? before.length : 0) + (joinsAfter ? after.length : 0),
    };
    this.#free.splice(joinsBefore ? low - 1 : low, (joinsBefore ? 1 : 0) + (joinsAfter ? 1 : 0), merged);
  }
}
