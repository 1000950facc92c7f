import { closeSync, openSync } from 'node:fs';
import { errnoName } from '../libc/errno.ts';
import { dupFd, Fd } from '../libc/fd.ts';
import { lastErrno } from '../libc/native.ts';
import { type CallSubject, HypervisorError } from './errors.ts';

const hints: Readonly<Record<string, string>> = {
  ENOENT: 'Is this a domain of Xen, and are its device nodes there?',
  EACCES: 'Run as root, or give the service access to the device nodes of Xen.',
  EPERM: 'Run as root, or give the service access to the device nodes of Xen.',
};

/** To be called right after the call that failed. @throws HypervisorError always */
export function callFailed(call: string, subject: CallSubject = {}): never {
  throw new HypervisorError(call, errnoName(lastErrno()), subject);
}

/**
 * @param node what the call opens, for the message
 * @returns a handle that is not null. @throws HypervisorError
 */
export function checkedHandle(handle: number, call: string, node: string): number {
  if (handle !== 0) return handle;
  const errno = errnoName(lastErrno());
  throw new HypervisorError(call, errno, { what: node }, hints[errno]);
}

/** Opens a device node of Xen. @throws HypervisorError */
export function openNode(node: string): Fd {
  try {
    const opened = openSync(node, 'r+');
    try {
      // The runtime closes what it has opened in a thread with the thread, whatever has that number by then.
      return new Fd(dupFd(opened));
    } finally {
      closeSync(opened);
    }
  } catch (error) {
    const errno = (error as NodeJS.ErrnoException).code ?? 'EIO';
    throw new HypervisorError('open', errno, { what: node }, hints[errno]);
  }
}
