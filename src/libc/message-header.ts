import { linux } from './constants.ts';
import { ForeignFd } from './fd.ts';

/** Offsets in struct msghdr on 64-bit Linux; the padding counts as part of the length before it. */
export const messageHeader = {
  iov: 16,
  iovCount: 24,
  control: 32,
  controlLength: 40,
  flags: 48,
  bytes: 56,
} as const;

/** The kernel's bound of descriptors in one message (SCM_MAX_FD). */
export const messageMaxFds = 253;

/** struct cmsghdr: u64 length, i32 level, i32 type. */
export const controlHeaderBytes = 16;

/**
 * Room for every descriptor that can come with a message. With less, the kernel drops descriptors, which closes
 * them right in the receiving call, and that may wait (see ForeignFd).
 */
export const controlMaxBytes = controlHeaderBytes + messageMaxFds * 4;

/**
 * Every descriptor of every SCM_RIGHTS part: this process owns them from the moment recvmsg returned.
 * @param offset of the control bytes in `view`
 * @param length what recvmsg left in msg_controllen
 */
export function takeFds(view: DataView, offset: number, length: number): ForeignFd[] {
  const fds: ForeignFd[] = [];
  const end = offset + length;
  let at = offset;
  while (at + controlHeaderBytes <= end) {
    const partLength = view.getUint32(at, true);
    if (partLength < controlHeaderBytes) break;
    const level = view.getInt32(at + 8, true);
    const type = view.getInt32(at + 12, true);
    const isRights = level === linux.SOL_SOCKET && type === linux.SCM_RIGHTS;
    for (let field = at + controlHeaderBytes; isRights && field + 4 <= at + partLength; field += 4) {
      fds.push(new ForeignFd(view.getInt32(field, true)));
    }
    at += (partLength + 7) & ~7;
  }
  return fds;
}
