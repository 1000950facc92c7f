import { linux } from './constants.ts';
import { errnos } from './errno.ts';
import { lastErrno, preadv2Into } from './native.ts';

/**
 * Reads what a file has in memory, without waiting for a disk (RWF_NOWAIT).
 * @param fd a regular file. @param offset bytes
 * @returns bytes read, fewer than wanted where the rest is not in memory; 'later': it would wait, or has failed, so an
 *   ordinary read shall tell; 'never': this file cannot be read so
 */
export function readNow(fd: number, into: Uint8Array, offset: number): number | 'later' | 'never' {
  const result = preadv2Into(fd, [{ base: into, length: into.length }], 1, offset, linux.RWF_NOWAIT);
  if (result >= 0) return result;
  const errno = lastErrno();
  return errno === errnos.EOPNOTSUPP || errno === errnos.EINVAL ? 'never' : 'later';
}
