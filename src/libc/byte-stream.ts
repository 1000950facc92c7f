import { linux } from './constants.ts';
import { errnos } from './errno.ts';
import { lastErrno, pollNative, readInto, writeFrom } from './native.ts';

/**
 * Reads what is there into memory that may be shared with others. The descriptor is non-blocking: a stream socket or
 * the master of a pseudo terminal.
 * @returns bytes; 'empty': nothing now; 'ended': nothing will come, also after any error of the other side
 */
export function readStream(fd: number, into: Uint8Array): number | 'empty' | 'ended' {
  const count = readInto(fd, into, into.length);
  if (count > 0) return count;
  return count < 0 && isLater(lastErrno()) ? 'empty' : 'ended';
}

/** Writes what fits. @returns bytes, 0 when nothing fits now; 'ended': nobody will ever read it */
export function writeStream(fd: number, from: Uint8Array): number | 'ended' {
  const count = writeFrom(fd, from, from.length);
  if (count >= 0) return count;
  return isLater(lastErrno()) ? 0 : 'ended';
}

const isLater = (errno: number): boolean => errno === errnos.EAGAIN || errno === errnos.EINTR;

/** The other side of a stream socket or of a pseudo terminal. */
export interface FarSide {
  /** Nobody is there: both directions have ended. */
  readonly gone: boolean;
  /** It sends no more, though there may still be something to read. */
  readonly silent: boolean;
}

/** Does not wait. */
export function farSide(fd: number): FarSide {
  // struct pollfd: int fd, short events, short revents
  const pollfd = new Uint32Array([fd, linux.POLLRDHUP]);
  pollNative(pollfd, 1, 0);
  const events = pollfd[1]! >>> 16;
  const gone = (events & (linux.POLLHUP | linux.POLLERR)) !== 0;
  return { gone, silent: gone || (events & linux.POLLRDHUP) !== 0 };
}
