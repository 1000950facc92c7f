import { chmodSync, lstatSync, unlinkSync } from 'node:fs';
import { VmsgError } from '../kit/errors.ts';
import type { Closable } from '../kit/scope.ts';
import { linux } from './constants.ts';
import { checked, checkedFs, errnos, SystemCallError } from './errno.ts';
import { Fd, ForeignFd } from './fd.ts';
import {
  accept4,
  bindNative,
  connectNative,
  getsockopt,
  lastErrno,
  listenNative,
  setsockopt,
  socketNative,
  socketpairNative,
} from './native.ts';

export type SocketType = 'seqpacket' | 'stream' | 'datagram';

const typeNumbers = { seqpacket: linux.SOCK_SEQPACKET, stream: linux.SOCK_STREAM, datagram: linux.SOCK_DGRAM } as const;
const newSocketFlags = linux.SOCK_CLOEXEC | linux.SOCK_NONBLOCK;

/** Bytes of sun_path without its closing NUL (unix(7)). */
export const socketPathMaxBytes = 107;

/** struct sockaddr_un */
function socketAddress(path: string): Uint8Array {
  const bytes = Buffer.from(path);
  if (bytes.length === 0 || bytes.length > socketPathMaxBytes || bytes.includes(0)) {
    throw new VmsgError(
      'invalid-request',
      `socket path '${path}': ${bytes.length} bytes, 1 to ${socketPathMaxBytes} without NUL are possible`,
    );
  }
  const address = new Uint8Array(2 + bytes.length + 1);
  address[0] = linux.AF_UNIX;
  address.set(bytes, 2);
  return address;
}

function openSocket(type: SocketType): Fd {
  return new Fd(checked(socketNative(linux.AF_UNIX, typeNumbers[type] | newSocketFlags, 0), 'socket'));
}

/** @returns two connected ends, non-blocking and close-on-exec. @throws SystemCallError */
export function socketPair(type: SocketType = 'seqpacket'): [Fd, Fd] {
  const out = new Int32Array(2);
  checked(socketpairNative(linux.AF_UNIX, typeNumbers[type] | newSocketFlags, 0, out), 'socketpair');
  return [new Fd(out[0] ?? -1), new Fd(out[1] ?? -1)];
}

/**
 * Connects without waiting.
 * @returns the connected socket; 'absent': no such file; 'refused': nobody listens; 'busy': the backlog is full,
 *   try again later
 * @throws VmsgError invalid-request for an impossible path
 * @throws SystemCallError for everything else, such as EACCES, or EPROTOTYPE when the other end has another type
 */
export function connectUnix(path: string, type: SocketType = 'seqpacket'): Fd | 'absent' | 'refused' | 'busy' {
  const address = socketAddress(path);
  const fd = openSocket(type);
  if (connectNative(fd.number, address, address.length) === 0) return fd;
  const errno = lastErrno();
  fd.close();
  if (errno === errnos.ENOENT) return 'absent';
  if (errno === errnos.ECONNREFUSED) return 'refused';
  if (errno === errnos.EAGAIN) return 'busy';
  throw new SystemCallError('connect', errno, path);
}

export interface ListenOptions {
  /** Permission bits of the socket file; who may write may connect. */
  readonly mode: number;
  /** Connections waiting for `accept`; the kernel takes at most net.core.somaxconn. */
  readonly backlog: number;
  readonly type?: SocketType;
}

/** A listening socket and its file. */
export class UnixListener implements Closable {
  readonly path: string;
  readonly fd: Fd;
  readonly #file: { readonly dev: bigint; readonly ino: bigint };

  private constructor(path: string, fd: Fd, file: { dev: bigint; ino: bigint }) {
    this.path = path;
    this.fd = fd;
    this.#file = file;
  }

  /**
   * A socket file that nobody listens on any more is replaced; any other file stays and fails the call.
   * @throws VmsgError invalid-request for an impossible path
   * @throws SystemCallError EADDRINUSE when the path is taken
   */
  static listen(path: string, options: ListenOptions): UnixListener {
    const address = socketAddress(path);
    const type = options.type ?? 'seqpacket';
    const fd = openSocket(type);
    let file: { dev: bigint; ino: bigint } | undefined;
    try {
      if (bindNative(fd.number, address, address.length) < 0) {
        const errno = lastErrno();
        if (errno !== errnos.EADDRINUSE || !removeStale(path, type)) throw new SystemCallError('bind', errno, path);
        checked(bindNative(fd.number, address, address.length), 'bind', path);
      }
      file = checkedFs('lstat', path, () => lstatSync(path, { bigint: true }));
      // Before listen: until then nobody can connect, whatever the umask made of the mode.
      checkedFs('chmod', path, () => chmodSync(path, options.mode));
      checked(listenNative(fd.number, options.backlog), 'listen', path);
      return new UnixListener(path, fd, file);
    } catch (error) {
      fd.close();
      if (file !== undefined) removeIfSame(path, file);
      throw error;
    }
  }

  /**
   * @returns the next connection, non-blocking; undefined when none waits. Closing it does not wait for what the peer
   *   may have queued in it, so the peer may learn of the end a little later
   * @throws SystemCallError for local exhaustion (EMFILE, ENFILE, ENOMEM); the connection keeps waiting
   */
  accept(): ForeignFd | undefined {
    const number = accept4(this.fd.number, null, null, newSocketFlags);
    if (number >= 0) return new ForeignFd(number);
    const errno = lastErrno();
    if (errno === errnos.EAGAIN || errno === errnos.ECONNABORTED || errno === errnos.EINTR) return undefined;
    throw new SystemCallError('accept4', errno, this.path);
  }

  /** Removes the file too, unless somebody has put another one in its place. */
  close(): void {
    if (this.fd.closed) return;
    removeIfSame(this.path, this.#file);
    this.fd.close();
  }
}

/** @returns whether the path is free now */
function removeStale(path: string, type: SocketType): boolean {
  const stat = lstatSync(path, { throwIfNoEntry: false });
  if (stat === undefined) return true;
  if (!stat.isSocket() || !isDeserted(path, type)) return false;
  checkedFs('unlink', path, () => unlinkSync(path));
  return true;
}

function isDeserted(path: string, type: SocketType): boolean {
  try {
    const probe = connectUnix(path, type);
    if (probe instanceof Fd) probe.close();
    return probe === 'refused';
  } catch (error) {
    // EPROTOTYPE (somebody listens with another type), EACCES: not ours to remove.
    if (error instanceof SystemCallError) return false;
    throw error;
  }
}

function removeIfSame(path: string, file: { readonly dev: bigint; readonly ino: bigint }): void {
  try {
    const stat = lstatSync(path, { bigint: true, throwIfNoEntry: false });
    if (stat !== undefined && stat.dev === file.dev && stat.ino === file.ino) unlinkSync(path);
  } catch {
    // A directory that is gone or no longer ours: the file is out of reach, and closing goes on.
  }
}

export interface PeerCredentials {
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

/**
 * Who connected, listened, or made the pair, at that time (SO_PEERCRED). An id that this namespace does not know
 * is 65534, such a pid 0. @throws SystemCallError
 */
export function peerCredentials(fd: number): PeerCredentials {
  const out = new Int32Array(3);
  checked(getsockopt(fd, linux.SOL_SOCKET, linux.SO_PEERCRED, out, new Uint32Array([12])), 'getsockopt(SO_PEERCRED)');
  return { pid: out[0] ?? 0, uid: (out[1] ?? 0) >>> 0, gid: (out[2] ?? 0) >>> 0 };
}

/**
 * Lets nobody send descriptors to this socket any more: the sender gets EPERM. For sockets that take none, such as
 * doorbells: queued descriptors of a peer are closed by whoever closes the socket, and that may wait.
 * @returns false where the kernel does not know how (before Linux 6.16)
 */
export function refuseDescriptors(fd: number): boolean {
  return setsockopt(fd, linux.SOL_SOCKET, linux.SO_PASSRIGHTS, new Int32Array([0]), 4) === 0;
}

/** Whether a descriptor, a peer's too, is a Unix socket of this type. Never throws, does no I/O on the file. */
export function isUnixSocket(fd: number, type: SocketType): boolean {
  return socketOption(fd, linux.SO_DOMAIN) === linux.AF_UNIX && socketOption(fd, linux.SO_TYPE) === typeNumbers[type];
}

/** @returns undefined for what is not a socket */
function socketOption(fd: number, option: number): number | undefined {
  const out = new Int32Array(1);
  return getsockopt(fd, linux.SOL_SOCKET, option, out, new Uint32Array([4])) < 0 ? undefined : out[0];
}
