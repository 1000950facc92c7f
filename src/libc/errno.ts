import { VmsgError } from '../kit/errors.ts';
import { errnoNumbers, lastErrno, strerror } from './native.ts';

const names = new Map<number, string>();
// Some numbers have two names (EAGAIN and EWOULDBLOCK); the first in alphabetical order is the usual one.
for (const name of Object.keys(errnoNumbers).sort((a, b) => (a < b ? -1 : 1))) {
  const number = errnoNumbers[name];
  if (number !== undefined && !names.has(number)) names.set(number, name);
}

const numberOf = (name: string): number => {
  const number = errnoNumbers[name];
  if (number === undefined) throw new Error(`invariant broken: no errno ${name}`);
  return number;
};

/** The numbers that this layer tells apart. */
export const errnos = {
  ENOENT: numberOf('ENOENT'),
  EINTR: numberOf('EINTR'),
  EBADF: numberOf('EBADF'),
  EAGAIN: numberOf('EAGAIN'),
  ENOMEM: numberOf('ENOMEM'),
  EINVAL: numberOf('EINVAL'),
  EPIPE: numberOf('EPIPE'),
  EOPNOTSUPP: numberOf('EOPNOTSUPP'),
  EADDRINUSE: numberOf('EADDRINUSE'),
  ECONNABORTED: numberOf('ECONNABORTED'),
  ECONNRESET: numberOf('ECONNRESET'),
  ENOBUFS: numberOf('ENOBUFS'),
  ENOTCONN: numberOf('ENOTCONN'),
  ETOOMANYREFS: numberOf('ETOOMANYREFS'),
  ECONNREFUSED: numberOf('ECONNREFUSED'),
} as const;

/** @returns for example 'ENOMEM'; 'E<number>' for a number without a name */
export function errnoName(errno: number): string {
  return names.get(errno) ?? `E${errno}`;
}

/** A system call failed; `errno` is positive. */
export class SystemCallError extends VmsgError {
  readonly call: string;
  readonly errno: number;
  readonly errnoName: string;

  /** @param subject what the call was about, for the message: a path, a size */
  constructor(call: string, errno: number, subject?: string) {
    const name = errnoName(errno);
    super('system-call', `${call}${subject === undefined ? '' : ` ${subject}`}: ${name} (${strerror(errno)})`);
    this.name = 'SystemCallError';
    this.call = call;
    this.errno = errno;
    this.errnoName = name;
  }
}

/** To be called right after the call that failed. @throws SystemCallError always */
export function failed(call: string, subject?: string): never {
  throw new SystemCallError(call, lastErrno(), subject);
}

/** @returns `result` when it is not negative. @throws SystemCallError */
export function checked(result: number, call: string, subject?: string): number {
  if (result < 0) failed(call, subject);
  return result;
}

/** Runs a node:fs call. @throws SystemCallError in place of Node's own error */
export function checkedFs<T>(call: string, subject: string, run: () => T): T {
  try {
    return run();
  } catch (error) {
    const errno = (error as NodeJS.ErrnoException).errno;
    throw typeof errno === 'number' ? new SystemCallError(call, Math.abs(errno), subject) : error;
  }
}
