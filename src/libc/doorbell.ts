import { linux } from './constants.ts';
import { errnos, SystemCallError } from './errno.ts';
import { Mapping } from './mapping.ts';
import { controlMaxBytes, messageHeader, takeFds } from './message-header.ts';
import { lastErrno, oneAddress, recvmsg, sendNative } from './native.ts';

/**
 * Doorbells are seqpacket sockets: unlike a write to an eventfd, a send with MSG_DONTWAIT cannot be made to wait
 * by a peer that clears O_NONBLOCK. Make the pair here and give the peer the other end: with an end that the peer
 * made, and kept a duplicate of, it could hold the lock of the queue and make us wait in receive.
 */

/**
 * Wakes the peer; never waits. A full queue counts as rung, for it wakes the peer as well. No allocation.
 * @returns false when the peer is gone. @throws SystemCallError for an error of our own, such as EBADF
 */
export function ringDoorbell(fd: number): boolean {
  if (sendNative(fd, oneAddress, 1, linux.MSG_DONTWAIT | linux.MSG_NOSIGNAL) >= 0) return true;
  const errno = lastErrno();
  if (errno === errnos.EAGAIN || errno === errnos.ENOBUFS || errno === errnos.ENOMEM) return true;
  if (isGone(errno)) return false;
  throw new SystemCallError('send', errno);
}

// One page of scratch per thread, never unmapped; nothing in it outlives a call.
const controlOffset = 64;
const scratch = Mapping.anonymous(controlOffset + controlMaxBytes);
const scratchView = new DataView(scratch.bytes.buffer);
const controlLength = new Uint32Array(scratch.bytes.buffer, messageHeader.controlLength, 1);
// No iovec: no bytes of a ring are wanted.
scratchView.setBigUint64(messageHeader.control, BigInt(scratch.address + controlOffset), true);

const receiveFlags = linux.MSG_DONTWAIT | linux.MSG_TRUNC | linux.MSG_CMSG_CLOEXEC;

/**
 * Takes the rings that wait, at most `maxMessages`; never waits. Descriptors that a peer attaches are closed: left to
 * the kernel, which discards them within the call, a TCP socket with SO_LINGER would make this wait for as long as
 * the peer likes. No allocation without such descriptors.
 * @returns 'more' when the bound was reached; 'closed' also for an empty message, which looks the same
 * @throws SystemCallError for an error of our own, such as EBADF
 */
export function drainDoorbell(fd: number, maxMessages: number): 'empty' | 'more' | 'closed' {
  for (let taken = 0; taken < maxMessages; taken += 1) {
    controlLength[0] = controlMaxBytes;
    // With MSG_TRUNC the result is the true length of the message.
    const length = recvmsg(fd, scratch.address, receiveFlags);
    if (length < 0) return drainFailure(lastErrno());
    const attached = controlLength[0];
    if (attached !== 0) for (const each of takeFds(scratchView, controlOffset, attached)) each.close();
    if (length === 0) return 'closed';
  }
  return 'more';
}

function drainFailure(errno: number): 'empty' | 'closed' {
  if (errno === errnos.EAGAIN || errno === errnos.EINTR) return 'empty';
  if (isGone(errno)) return 'closed';
  throw new SystemCallError('recvmsg', errno);
}

const isGone = (errno: number): boolean =>
  errno === errnos.EPIPE || errno === errnos.ECONNRESET || errno === errnos.ENOTCONN || errno === errnos.ECONNREFUSED;
