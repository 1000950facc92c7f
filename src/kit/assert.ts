/**
 * Stops on a broken invariant of our own. Never use it on data that a peer supplied: peers get an
 * error value or a dropped message, not an exception.
 * @throws Error when `condition` is false
 */
export function assert(condition: unknown, what: string): asserts condition {
  if (!condition) throw new Error(`invariant broken: ${what}`);
}

/** For the default branch of an exhaustive switch. @throws Error always */
export function unreachable(value: never, what: string): never {
  throw new Error(`invariant broken: unexpected ${what} ${JSON.stringify(value)}`);
}
