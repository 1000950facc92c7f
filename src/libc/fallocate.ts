import { linux } from './constants.ts';
import { errnos, SystemCallError } from './errno.ts';
import { fallocateNative, lastErrno } from './native.ts';

export type FallocateDone = (error: SystemCallError | null) => void;

/**
 * Releases the storage of a range, which then reads as zero; the file keeps its size.
 * Runs on the thread pool that node:fs uses too: on a slow disk it waits as long as a write does. Bytes, below 2^53.
 */
export function punchHole(fd: number, offset: number, length: number, done: FallocateDone): void {
  run(fd, linux.FALLOC_FL_PUNCH_HOLE | linux.FALLOC_FL_KEEP_SIZE, offset, length, done);
}

/** Makes a range read as zero without writing it, and keeps storage for it; otherwise as `punchHole`. */
export function zeroRange(fd: number, offset: number, length: number, done: FallocateDone): void {
  run(fd, linux.FALLOC_FL_ZERO_RANGE | linux.FALLOC_FL_KEEP_SIZE, offset, length, done);
}

function run(fd: number, mode: number, offset: number, length: number, done: FallocateDone): void {
  fallocateNative.async(fd, mode, offset, length, (failure, result) => {
    // koffi carries errno of the pool thread over to this callback.
    const errno = lastErrno();
    if (failure === null && result === 0) done(null);
    // Doing it again does no harm: the range reads as zero, or will.
    else if (failure === null && errno === errnos.EINTR) run(fd, mode, offset, length, done);
    else done(new SystemCallError('fallocate', errno, `${length} bytes at ${offset}`));
  });
}
