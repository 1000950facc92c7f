/** Arithmetic on scattered buffers: lists of parts that together are one range of bytes. */

export const bytesIn = (parts: readonly Uint8Array[]): number => parts.reduce((sum, part) => sum + part.length, 0);

/** What remains behind the first `count` bytes. */
export function after(parts: readonly Uint8Array[], count: number): Uint8Array[] {
  let skip = count;
  const rest: Uint8Array[] = [];
  for (const part of parts) {
    if (skip >= part.length) skip -= part.length;
    else {
      rest.push(skip === 0 ? part : part.subarray(skip));
      skip = 0;
    }
  }
  return rest;
}

/** The first `count` bytes. */
export function trimmed(parts: readonly Uint8Array[], count: number): Uint8Array[] {
  let left = count;
  const kept: Uint8Array[] = [];
  for (const part of parts) {
    if (left === 0) break;
    const take = part.length <= left ? part : part.subarray(0, left);
    kept.push(take);
    left -= take.length;
  }
  return kept;
}

/** A private copy of the first `count` bytes, or undefined when there are fewer. */
export function gather(parts: readonly Uint8Array[], count: number): Uint8Array | undefined {
  const copy = new Uint8Array(count);
  let at = 0;
  for (const part of trimmed(parts, count)) {
    copy.set(part, at);
    at += part.length;
  }
  return at === count ? copy : undefined;
}

/** Copies as much of `data` as fits. @returns bytes copied */
export function scatter(data: Uint8Array, parts: readonly Uint8Array[]): number {
  let at = 0;
  for (const part of parts) {
    const piece = data.subarray(at, at + part.length);
    part.set(piece);
    at += piece.length;
  }
  return at;
}
