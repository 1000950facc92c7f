import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import type { PageOf, PageRequest } from '../commands.ts';

/** @throws VmsgError `invalid-request` */
export function checkLimit({ limit }: PageRequest<unknown>): void {
  if (Number.isInteger(limit) && limit >= 1 && limit <= limits.apiPageMaxItems) return;
  throw new VmsgError('invalid-request', `limit must be 1 to ${limits.apiPageMaxItems}`);
}

/** One page of items, in the order of their keys. */
export function pageOf<T, Key extends string | number>(
  items: Iterable<T>,
  keyOf: (item: T) => Key,
  { limit, after }: PageRequest<Key>,
): PageOf<T, Key> {
  const rest = [...items]
    .filter((item) => after === undefined || keyOf(item) > after)
    .sort((a, b) => (keyOf(a) < keyOf(b) ? -1 : 1));
  const page = rest.slice(0, limit);
  const last = page.at(-1);
  return { items: page, next: rest.length > limit && last !== undefined ? keyOf(last) : null };
}
