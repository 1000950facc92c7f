import { linux } from './constants.ts';
import { errnos, failed } from './errno.ts';
import { flockNative, lastErrno } from './native.ts';

/**
 * Locks the open file description (flock(2)); never waits. The lock ends with the last descriptor of it.
 * @returns false when another open file description holds a lock that conflicts. @throws SystemCallError
 */
export function tryLock(fd: number, kind: 'exclusive' | 'shared'): boolean {
  const operation = (kind === 'exclusive' ? linux.LOCK_EX : linux.LOCK_SH) | linux.LOCK_NB;
  if (flockNative(fd, operation) === 0) return true;
  if (lastErrno() === errnos.EAGAIN) return false;
  return failed('flock');
}

/** @throws SystemCallError */
export function unlock(fd: number): void {
  if (flockNative(fd, linux.LOCK_UN) < 0) failed('flock');
}
