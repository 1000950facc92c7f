import koffi from 'koffi';
import { VmsgError } from '../kit/errors.ts';

/**
 * The foreign functions of libc and what koffi adds to them. Nothing here throws on failure: a result of -1
 * means `lastErrno()`. Addresses are Numbers (user space ends below 2^47); a failed mmap is the one result
 * above 2^53, see `isMapFailed`.
 */

if (process.platform !== 'linux' || (process.arch !== 'x64' && process.arch !== 'arm64')) {
  throw new VmsgError('system-call', `needs Linux on x86-64 or arm64, not ${process.platform} on ${process.arch}`);
}

const library = koffi.load('libc.so.6');

/** Pointers are declared `uintptr_t` where the call is hot or the memory is native, `void *` where it is a typed array. */
const declare = <T>(prototype: string): T => library.func(prototype) as unknown as T;

type Address = number;

export const closeNative = declare<
  ((fd: number) => number) & { async(fd: number, done: (error: unknown, result: number) => void): void }
>('int close(int)');
export const fcntl =
  declare<(fd: number, command: number, type: 'int', argument: number) => number>('int fcntl(int, int, ...)');
export const flockNative = declare<(fd: number, operation: number) => number>('int flock(int, int)');
export const fallocateNative = declare<{
  async(
    fd: number,
    mode: number,
    offset: number,
    length: number,
    done: (failure: unknown, result: number) => void,
  ): void;
}>('int fallocate(int, int, int64_t, int64_t)');
export const fstatfs = declare<(fd: number, out: Uint8Array) => number>('int fstatfs(int, void *)');

export const memfdCreate = declare<(name: string, flags: number) => number>('int memfd_create(str, unsigned int)');
export const mmap = declare<
  (address: Address, length: number, protection: number, flags: number, fd: number, offset: number) => Address | bigint
>('uintptr_t mmap(uintptr_t, size_t, int, int, int, int64_t)');
export const munmap = declare<(address: Address, length: number) => number>('int munmap(uintptr_t, size_t)');
export const sysconf = declare<(name: number) => number>('long sysconf(int)');

export const eventfdNative = declare<(initial: number, flags: number) => number>('int eventfd(unsigned int, int)');
export const preadv2 = declare<(fd: number, iov: Address, count: number, offset: number, flags: number) => number>(
  'int64_t preadv2(int, uintptr_t, int, int64_t, int)',
);

koffi.struct('vmsg_iovec', { base: 'void *', length: 'size_t' });
/** The same into one typed array. */
export const preadv2Into = declare<
  (
    fd: number,
    iov: readonly [{ readonly base: Uint8Array; readonly length: number }],
    count: 1,
    offset: number,
    flags: number,
  ) => number
>('int64_t preadv2(int, vmsg_iovec *, int, int64_t, int)');
export const readNative = declare<(fd: number, out: Address, length: number) => number>(
  'int64_t read(int, uintptr_t, size_t)',
);
export const writeNative = declare<(fd: number, from: Address, length: number) => number>(
  'int64_t write(int, uintptr_t, size_t)',
);
/** Straight from and to a typed array, for calls that end at once. */
export const readInto = declare<(fd: number, out: Uint8Array, length: number) => number>(
  'int64_t read(int, void *, size_t)',
);
export const writeFrom = declare<(fd: number, from: Uint8Array, length: number) => number>(
  'int64_t write(int, void *, size_t)',
);
export const pollNative = declare<(pollfds: Uint32Array, count: number, timeoutMs: number) => number>(
  'int poll(void *, unsigned long, int)',
);
export const epollCreate = declare<(flags: number) => number>('int epoll_create1(int)');
export const epollCtl = declare<(epoll: number, operation: number, fd: number, event: Uint8Array) => number>(
  'int epoll_ctl(int, int, int, void *)',
);
export const epollWait = declare<(epoll: number, events: Address, count: number, timeoutMs: number) => number>(
  'int epoll_wait(int, uintptr_t, int, int)',
);
/** For calls that libc has no function for: arguments are addresses, or numbers below 2^53. */
export const systemCall3 = declare<(number: number, a: number, b: number, c: number) => number>(
  'long syscall(long, uintptr_t, uintptr_t, uintptr_t)',
);
export const systemCall5 = declare<(number: number, a: number, b: number, c: number, d: number, e: number) => number>(
  'long syscall(long, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t)',
);

export const socketNative =
  declare<(domain: number, type: number, protocol: number) => number>('int socket(int, int, int)');
export const socketpairNative = declare<(domain: number, type: number, protocol: number, out: Int32Array) => number>(
  'int socketpair(int, int, int, void *)',
);
export const bindNative = declare<(fd: number, name: Uint8Array, length: number) => number>(
  'int bind(int, void *, uint32_t)',
);
export const listenNative = declare<(fd: number, backlog: number) => number>('int listen(int, int)');
export const accept4 = declare<(fd: number, name: null, length: null, flags: number) => number>(
  'int accept4(int, void *, void *, int)',
);
export const connectNative = declare<(fd: number, name: Uint8Array, length: number) => number>(
  'int connect(int, void *, uint32_t)',
);
export const getsockopt = declare<
  (fd: number, level: number, option: number, out: Int32Array, length: Uint32Array) => number
>('int getsockopt(int, int, int, void *, void *)');
export const setsockopt = declare<
  (fd: number, level: number, option: number, value: Int32Array, lengthBytes: number) => number
>('int setsockopt(int, int, int, void *, uint32_t)');
export const sendNative = declare<(fd: number, from: Address, length: number, flags: number) => number>(
  'int64_t send(int, uintptr_t, size_t, int)',
);
export const sendmsg = declare<(fd: number, msghdr: Address, flags: number) => number>(
  'int64_t sendmsg(int, uintptr_t, int)',
);
export const recvmsg = declare<(fd: number, msghdr: Address, flags: number) => number>(
  'int64_t recvmsg(int, uintptr_t, int)',
);

/** For what libc has no function for; addresses and unused arguments are Numbers, 0 for none. */
export const syscall = declare<
  (number: number, a: number, b: number, c: number, d: number, e: number, f: number) => number
>('int64_t syscall(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t)');

export const posixOpenpt = declare<(flags: number) => number>('int posix_openpt(int)');
export const grantpt = declare<(fd: number) => number>('int grantpt(int)');
export const unlockpt = declare<(fd: number) => number>('int unlockpt(int)');
/** @returns 0 or an errno */
export const ptsname = declare<(fd: number, out: Uint8Array, length: number) => number>(
  'int ptsname_r(int, void *, size_t)',
);
export const tcgetattr = declare<(fd: number, termios: Uint8Array) => number>('int tcgetattr(int, void *)');
export const tcsetattr = declare<(fd: number, actions: number, termios: Uint8Array) => number>(
  'int tcsetattr(int, int, void *)',
);
export const cfmakeraw = declare<(termios: Uint8Array) => void>('void cfmakeraw(void *)');
export const ioctlPointer = declare<
  (fd: number, request: number, type: 'void *', argument: Uint16Array | Uint32Array) => number
>('int ioctl(int, unsigned long, ...)');

export const strerror = declare<(errno: number) => string>('str strerror(int)');

/** errno of the last call of this thread; valid only right after it. */
export const lastErrno = (): number => koffi.errno();

/** Numbers by name, as this machine's headers define them. */
export const errnoNumbers: Readonly<Record<string, number>> = koffi.os.errno;

/** @param result of `mmap`; MAP_FAILED is (void *) -1 */
export const isMapFailed = (result: Address | bigint): result is bigint => typeof result === 'bigint';

/** Zero-copy; the buffer never owns the memory. More than `limits.viewMaxBytes` aborts Node 20. */
export const viewMemory = (address: Address, length: number): ArrayBuffer => koffi.view(BigInt(address), length);

/** Where the first byte of a buffer lies; it does not move. */
export const addressOfBuffer = (buffer: ArrayBufferLike): Address => Number(koffi.address(buffer));

/**
 * Native constants for calls that must not allocate: a u64 of 1, and an iovec that leads to eight bytes that
 * are written and never read. Never freed: one such block per thread.
 */
const block = Number(koffi.address(koffi.alloc('uint8_t', 32)));
const words = new BigUint64Array(viewMemory(block, 32));
words[0] = 1n;
words[2] = BigInt(block + 8);
words[3] = 8n;
export const oneAddress = block;
export const sinkAddress = block + 8;
export const sinkIovecAddress = block + 16;

/** What koffi really calls back with; its typing names another shape. */
export type PollCallback = (
  status: number,
  events: { readonly readable: boolean; readonly writable: boolean; readonly disconnect: boolean },
) => void;

export interface PollHandle {
  start(options: PollInterest, callback: PollCallback): void;
  stop(): void;
  close(): void;
}

export interface PollInterest {
  readonly readable: boolean;
  readonly writable: boolean;
  readonly disconnect: boolean;
}

/**
 * A uv_poll handle on the loop of this thread. `fd` must be one that epoll takes and that no other handle of
 * this loop watches: when libuv refuses it, koffi leaves a handle behind that crashes the collector.
 */
export const startPoll = (fd: number, interest: PollInterest, callback: PollCallback): PollHandle =>
  koffi.node.poll(fd, interest, callback as never) as unknown as PollHandle;
