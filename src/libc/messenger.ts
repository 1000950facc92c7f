import { assert } from '../kit/assert.ts';
import type { Closable } from '../kit/scope.ts';
import { linux } from './constants.ts';
import { errnos, SystemCallError } from './errno.ts';
import type { ForeignFd } from './fd.ts';
import { Mapping } from './mapping.ts';
import { controlHeaderBytes, controlMaxBytes, messageHeader, messageMaxFds, takeFds } from './message-header.ts';
import { lastErrno, recvmsg, sendmsg } from './native.ts';

/** 'full': nothing was taken, try again when writable; 'gone': the peer has closed. */
export type SendResult = 'sent' | 'full' | 'gone';

export interface Received {
  /** A private copy. */
  readonly bytes: Uint8Array;
  /** Owned by the caller; untrusted. */
  readonly fds: readonly ForeignFd[];
  /** The peer sent more bytes or descriptors than fit; what did not fit is gone. */
  readonly truncated: boolean;
}

// struct msghdr at 0, struct iovec, the control bytes and the data in one block.
const iovOffset = 64;
const iovLengthOffset = iovOffset + 8;
const controlOffset = 128;
const dataOffset = 1280;

/**
 * Sends and receives messages with descriptors over Unix sockets, without ever waiting. Holds only native scratch
 * memory, so that one serves any number of sockets of a thread.
 */
export class Messenger implements Closable {
  readonly #maxBytes: number;
  readonly #maxFds: number;
  readonly #memory: Mapping;
  readonly #view: DataView;
  readonly #data: Uint8Array;

  /** @param maxBytes of one message, at least 1. @param maxFds of one message, at most 253 */
  constructor(maxBytes: number, maxFds: number) {
    assert(maxBytes >= 1 && maxFds >= 0 && maxFds <= messageMaxFds, 'messenger bounds');
    this.#maxBytes = maxBytes;
    this.#maxFds = maxFds;
    this.#memory = Mapping.anonymous(dataOffset + maxBytes);
    this.#view = new DataView(this.#memory.bytes.buffer);
    this.#data = this.#memory.bytes.subarray(dataOffset);
    this.#setAddress(messageHeader.iov, iovOffset);
    this.#view.setUint32(messageHeader.iovCount, 1, true);
    this.#setAddress(iovOffset, dataOffset);
  }

  /**
   * Sends one message of a seqpacket socket, all or nothing. The descriptors stay the caller's.
   * @param bytes 1..maxBytes; an empty message would look like the end of the connection
   * @throws SystemCallError for an error of our own, such as EBADF or EMSGSIZE
   */
  send(fd: number, bytes: Uint8Array, fds: readonly number[] = []): SendResult {
    const result = this.sendSome(fd, bytes, fds);
    return typeof result === 'number' ? 'sent' : result;
  }

  /** The same for a stream socket. @returns the number of bytes taken, at least 1; then the descriptors went along */
  sendSome(fd: number, bytes: Uint8Array, fds: readonly number[] = []): number | 'full' | 'gone' {
    assert(bytes.length >= 1 && bytes.length <= this.#maxBytes, `message of ${bytes.length} bytes`);
    assert(fds.length <= this.#maxFds, `message of ${fds.length} descriptors`);
    this.#data.set(bytes);
    this.#prepare(bytes.length, fds.length === 0 ? 0 : controlHeaderBytes + fds.length * 4);
    if (fds.length > 0) {
      this.#view.setBigUint64(controlOffset, BigInt(controlHeaderBytes + fds.length * 4), true);
      this.#view.setInt32(controlOffset + 8, linux.SOL_SOCKET, true);
      this.#view.setInt32(controlOffset + 12, linux.SCM_RIGHTS, true);
      fds.forEach((each, index) => {
        this.#view.setInt32(controlOffset + controlHeaderBytes + index * 4, each, true);
      });
    }
    const result = sendmsg(fd, this.#memory.address, linux.MSG_DONTWAIT | linux.MSG_NOSIGNAL);
    return result >= 0 ? result : sendFailure(lastErrno());
  }

  /**
   * Takes one message of a seqpacket socket, or what a stream socket has.
   * @param maxBytes 1..maxBytes of the messenger; a stream keeps what is beyond for the next call
   * @returns 'empty': nothing there now; 'closed': the peer has closed, or has sent an empty message, which cannot
   *   be told apart
   * @throws SystemCallError for an error of our own, such as EBADF
   */
  receive(fd: number, maxBytes: number = this.#maxBytes): Received | 'empty' | 'closed' {
    assert(maxBytes >= 1 && maxBytes <= this.#maxBytes, `a read of ${maxBytes} bytes`);
    let length = this.#take(fd, maxBytes);
    // Told once, by a peer that closed without having read all; what it sent before is still there.
    if (length < 0 && lastErrno() === errnos.ECONNRESET) length = this.#take(fd, maxBytes);
    if (length < 0) return receiveFailure(lastErrno());
    const fds = takeFds(this.#view, controlOffset, this.#view.getUint32(messageHeader.controlLength, true));
    const surplus = fds.splice(length === 0 ? 0 : this.#maxFds);
    for (const each of surplus) each.close();
    if (length === 0) return 'closed';
    const flags = this.#view.getUint32(messageHeader.flags, true);
    return {
      bytes: this.#data.slice(0, length),
      fds,
      truncated: surplus.length > 0 || (flags & (linux.MSG_TRUNC | linux.MSG_CTRUNC)) !== 0,
    };
  }

  close(): void {
    this.#memory.close();
  }

  #take(fd: number, maxBytes: number): number {
    this.#prepare(maxBytes, controlMaxBytes);
    return recvmsg(fd, this.#memory.address, linux.MSG_DONTWAIT | linux.MSG_CMSG_CLOEXEC);
  }

  #setAddress(at: number, target: number): void {
    this.#view.setBigUint64(at, BigInt(this.#memory.address + target), true);
  }

  #prepare(dataLength: number, controlLength: number): void {
    this.#view.setUint32(iovLengthOffset, dataLength, true);
    if (controlLength === 0) this.#view.setBigUint64(messageHeader.control, 0n, true);
    else this.#setAddress(messageHeader.control, controlOffset);
    this.#view.setUint32(messageHeader.controlLength, controlLength, true);
    this.#view.setUint32(messageHeader.flags, 0, true);
  }
}

function sendFailure(errno: number): 'full' | 'gone' {
  switch (errno) {
    case errnos.EAGAIN:
    case errnos.EINTR:
    case errnos.ENOBUFS:
    case errnos.ENOMEM:
    // Descriptors that the peer has not taken yet count against our limit.
    case errnos.ETOOMANYREFS:
      return 'full';
    case errnos.EPIPE:
    case errnos.ECONNRESET:
    case errnos.ECONNREFUSED:
    case errnos.ENOTCONN:
      return 'gone';
    default:
      throw new SystemCallError('sendmsg', errno);
  }
}

function receiveFailure(errno: number): 'empty' | 'closed' {
  switch (errno) {
    case errnos.EAGAIN:
    case errnos.EINTR:
      return 'empty';
    case errnos.ECONNRESET:
    case errnos.ENOTCONN:
      return 'closed';
    default:
      throw new SystemCallError('recvmsg', errno);
  }
}
