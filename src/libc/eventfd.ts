import { linux } from './constants.ts';
import { checked, errnos, failed } from './errno.ts';
import { Fd, fdLink } from './fd.ts';
import {
  eventfdNative,
  lastErrno,
  oneAddress,
  pollNative,
  preadv2,
  readNative,
  sinkAddress,
  sinkIovecAddress,
  writeNative,
} from './native.ts';

/** @param initial 0..0xffffffff. @throws SystemCallError */
export function createEventfd(initial = 0): Fd {
  return new Fd(checked(eventfdNative(initial, linux.EFD_CLOEXEC | linux.EFD_NONBLOCK), 'eventfd'));
}

/** True for an eventfd, whoever made it; such a link cannot be forged, for real paths start with a slash. */
export function isEventfd(fd: number): boolean {
  return fdLink(fd) === 'anon_inode:[eventfd]';
}

/**
 * Adds 1. A counter at its maximum counts as signalled. Waits for ever when somebody who shares the eventfd has
 * cleared O_NONBLOCK and filled the counter: only for eventfds that no hostile peer shares.
 * @throws SystemCallError
 */
export function signalEventfd(fd: number): void {
  if (writeNative(fd, oneAddress, 8) < 0 && lastErrno() !== errnos.EAGAIN) failed('write(eventfd)');
}

/**
 * The same for an eventfd that somebody else holds too. One that cannot be written is signalled. It waits only for who
 * fills the counter between the two calls and has cleared O_NONBLOCK.
 * @throws SystemCallError
 */
export function signalSharedEventfd(fd: number): void {
  if (checked(pollNative(new Uint32Array([fd, linux.POLLOUT]), 1, 0), 'poll') > 0) signalEventfd(fd);
}

/**
 * Sets the counter to 0. Never waits, even when a peer has cleared O_NONBLOCK on the shared file description
 * (RWF_NOWAIT, on eventfds since Linux 5.8). The descriptor must be an eventfd, see `isEventfd`.
 * @returns whether it had been signalled. @throws SystemCallError
 */
export function drainEventfd(fd: number): boolean {
  if (preadv2(fd, sinkIovecAddress, 1, -1, linux.RWF_NOWAIT) >= 0) return true;
  const errno = lastErrno();
  if (errno === errnos.EAGAIN) return false;
  if (errno === errnos.EOPNOTSUPP) return drainEventfdPolled(fd);
  return failed('preadv2(eventfd)');
}

/**
 * The same for older kernels. One race stays: a peer that clears O_NONBLOCK and takes the count between the poll
 * and the read makes this wait for the next signal.
 */
export function drainEventfdPolled(fd: number): boolean {
  const pollfd = new Uint32Array([fd, linux.POLLIN]);
  if (checked(pollNative(pollfd, 1, 0), 'poll') === 0) return false;
  if (readNative(fd, sinkAddress, 8) >= 0) return true;
  return lastErrno() === errnos.EAGAIN ? false : failed('read(eventfd)');
}
