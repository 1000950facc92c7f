import { type ErrorCode, VmsgError } from '../kit/errors.ts';
import { errnoName } from '../libc/errno.ts';

const codeByName: Readonly<Record<string, ErrorCode>> = {
  ENODEV: 'not-found',
  ENOENT: 'not-found',
  ETIMEDOUT: 'timeout',
  EBUSY: 'unavailable',
  EINVAL: 'protocol-violation',
  ENOSPC: 'limit-reached',
};

/** The error for an errno that the service gave as the result of `what`. */
export function serviceError(what: string, errno: number): VmsgError {
  const name = errnoName(errno);
  return new VmsgError(codeByName[name] ?? 'unavailable', `${what}: the service answered ${name}`);
}
