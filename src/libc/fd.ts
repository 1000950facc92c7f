import { readlinkSync } from 'node:fs';
import { assert } from '../kit/assert.ts';
import type { Closable } from '../kit/scope.ts';
import { linux } from './constants.ts';
import { checked, errnos, failed } from './errno.ts';
import { closeNative, fcntl, lastErrno } from './native.ts';

/** @throws SystemCallError when the number is not an open descriptor; other failures leave it closed all the same */
export function closeFd(fd: number): void {
  // Linux frees the number whatever close reports, EINTR included: a retry would close somebody else's file.
  if (closeNative(fd) < 0 && lastErrno() === errnos.EBADF) failed('close', String(fd));
}

/** @returns a new descriptor of the same open file description, close-on-exec. @throws SystemCallError */
export function dupFd(fd: number): number {
  return checked(fcntl(fd, linux.F_DUPFD_CLOEXEC, 'int', 0), 'fcntl(F_DUPFD_CLOEXEC)', String(fd));
}

/** File status flags (O_*); they belong to the open file description. @throws SystemCallError */
export function statusFlags(fd: number): number {
  return checked(fcntl(fd, linux.F_GETFL, 'int', 0), 'fcntl(F_GETFL)', String(fd));
}

/** @throws SystemCallError */
export function setStatusFlags(fd: number, flags: number): void {
  checked(fcntl(fd, linux.F_SETFL, 'int', flags), 'fcntl(F_SETFL)', String(fd));
}

/**
 * What the kernel calls an open descriptor: '/path', '/memfd:name (deleted)', 'socket:[inode]',
 * 'anon_inode:[eventfd]'. Does no I/O on the file. @returns undefined when it is not open
 */
export function fdLink(fd: number): string | undefined {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    return undefined;
  }
}

/** Owns one descriptor of this process. */
export class Fd implements Closable {
  #number: number;

  /** Takes ownership of `number`. */
  constructor(number: number) {
    assert(Number.isInteger(number) && number >= 0, `descriptor ${number}`);
    this.#number = number;
  }

  get number(): number {
    assert(this.#number >= 0, 'a closed descriptor is not used');
    return this.#number;
  }

  get closed(): boolean {
    return this.#number < 0;
  }

  /** @throws SystemCallError */
  dup(): Fd {
    return new Fd(dupFd(this.number));
  }

  /** Gives up ownership, for example to another thread. @returns the number, still open */
  release(): number {
    const number = this.number;
    this.#number = -1;
    return number;
  }

  close(): void {
    if (this.#number < 0) return;
    const number = this.release();
    this.dispose(number);
  }

  /** How the number is closed. */
  protected dispose(number: number): void {
    closeFd(number);
  }
}

/**
 * Closing a file of an unknown kind may wait for others: a FUSE file system that never answers, a TCP socket
 * with SO_LINGER, alone or queued inside a Unix socket. Only eventfds and memory files are known not to; a
 * path tells nothing, for a peer can make any path in a mount namespace of its own.
 */
function closesAtOnce(fd: number): boolean {
  return fcntl(fd, linux.F_GET_SEALS, 'int', 0) >= 0 || fdLink(fd) === 'anon_inode:[eventfd]';
}

/** A descriptor that a peer sent or can fill; what might wait while it is closed is closed on a pool thread. */
export class ForeignFd extends Fd {
  protected override dispose(number: number): void {
    if (closesAtOnce(number)) closeFd(number);
    else closeNative.async(number, () => {});
  }
}
