import { assert } from '../kit/assert.ts';
import { type Closable, Scope } from '../kit/scope.ts';
import { linux } from './constants.ts';
import { errnos, SystemCallError } from './errno.ts';
import { Fd } from './fd.ts';
import { Mapping } from './mapping.ts';
import { addressOfBuffer, lastErrno, syscall } from './native.ts';

/** Byte offsets in struct io_uring_params (linux/io_uring.h), which has u32 fields only up to its tables of offsets. */
const params = {
  bytes: 120,
  sqEntries: 0,
  cqEntries: 4,
  flags: 8,
  features: 20,
  sqTail: 44,
  sqHead: 40,
  sqMask: 48,
  sqArray: 64,
  cqHead: 80,
  cqTail: 84,
  cqMask: 88,
  cqCqes: 100,
} as const;

/** u32 words of struct io_uring_sqe and struct io_uring_cqe. */
const sqeWords = 16;
const cqeWords = 4;

/** One part of an iovec. */
const iovecWords = 4;

const operations = {
  read: linux.IORING_OP_READ,
  write: linux.IORING_OP_WRITE,
  readv: linux.IORING_OP_READV,
  writev: linux.IORING_OP_WRITEV,
  fsync: linux.IORING_OP_FSYNC,
  fallocate: linux.IORING_OP_FALLOCATE,
} as const;

/**
 * All of them are there since Linux 5.12. SUBMIT_STABLE: iovecs need to live until a submission only. NATIVE_WORKERS:
 * threads of the kernel belong to the process, whose end waits for them.
 */
const neededFeatures =
  linux.IORING_FEAT_SINGLE_MMAP |
  linux.IORING_FEAT_NODROP |
  linux.IORING_FEAT_SUBMIT_STABLE |
  linux.IORING_FEAT_NATIVE_WORKERS;

/** @param result of the operation: bytes, 0, or a negative errno */
export type RingDone = (result: number) => void;

/** Parts of all scattered transfers between two submissions; the most that one transfer may have. */
const iovecsPerBatch = 1024;

/** io_uring_enter. @returns operations taken, or a negative errno */
export type EnterRing = (fd: number, operations: number) => number;

const enterKernel: EnterRing = (fd, operations) => {
  const taken = syscall(linux.SYS_io_uring_enter, fd, operations, 0, 0, 0, 0);
  return taken < 0 ? -lastErrno() : taken;
};

interface RingParts {
  readonly enter: EnterRing;
  /** Owns the others. */
  readonly scope: Scope;
  readonly fd: Fd;
  readonly rings: Mapping;
  readonly sqes: Mapping;
  readonly iovecs: Mapping;
  readonly setup: Uint32Array;
}

/**
 * An io_uring for operations on files. Operations are gathered with `read`, `write`, `sync` and `allocate`, and go to
 * the kernel with `submit`; what has ended is told by `reap`. `fd` is readable while there is something to reap.
 *
 * What an operation reads or fills must stay mapped until it has ended; the ring keeps the views, which does not keep
 * a mapping. A ring with operations under way cannot be closed.
 */
export class IoRing implements Closable {
  readonly #parts: RingParts;
  readonly #iovecs: Uint32Array;
  readonly #words: Uint32Array;
  readonly #results: Int32Array;
  readonly #sqes: Uint32Array;
  readonly #sqMask: number;
  readonly #cqMask: number;
  readonly #at: { sqHead: number; sqTail: number; cqHead: number; cqTail: number; cqes: number };
  readonly #done: (RingDone | undefined)[];
  readonly #keep: unknown[];
  readonly #free: number[];
  /** Asking koffi takes longer than all else, and guests' memory is a few buffers that live long. */
  readonly #addresses = new WeakMap<ArrayBufferLike, number>();
  #iovecsUsed = 0;
  /** Gathered and not yet submitted. */
  #gathered = 0;
  #tail: number;

  private constructor(parts: RingParts) {
    this.#parts = parts;
    const { rings, sqes, iovecs, setup } = parts;
    this.#words = new Uint32Array(rings.bytes.buffer);
    this.#results = new Int32Array(rings.bytes.buffer);
    this.#sqes = new Uint32Array(sqes.bytes.buffer);
    this.#iovecs = new Uint32Array(iovecs.bytes.buffer);
    const word = (offset: number): number => setup[offset / 4]! / 4;
    this.#sqMask = this.#words[word(params.sqMask)]!;
    this.#cqMask = this.#words[word(params.cqMask)]!;
    this.#at = {
      sqHead: word(params.sqHead),
      sqTail: word(params.sqTail),
      cqHead: word(params.cqHead),
      cqTail: word(params.cqTail),
      cqes: word(params.cqCqes),
    };
    const entries = setup[params.sqEntries / 4]!;
    const array = word(params.sqArray);
    for (let i = 0; i < entries; i++) this.#words[array + i] = i;
    this.#done = new Array<RingDone | undefined>(entries).fill(undefined);
    this.#keep = new Array<unknown>(entries).fill(undefined);
    this.#free = Array.from({ length: entries }, (_, i) => entries - 1 - i);
    this.#tail = Atomics.load(this.#words, this.#at.sqTail);
  }

  /**
   * @param entries operations at a time, a power of two
   * @param threadsMax threads of the kernel for all rings that this thread opens; before Linux 5.15 it decides itself
   * @param wrap tests change what the kernel takes
   * @returns why there can be none: switched off, filtered, an old kernel, no descriptors or memory left
   */
  static open(entries: number, threadsMax: number, wrap = (enter: EnterRing): EnterRing => enter): IoRing | string {
    const setup = setUp(entries);
    if (typeof setup === 'string') return setup;
    const { fd, words } = setup;
    const scope = new Scope();
    scope.own(fd);
    try {
      const why = whyUnfit(fd.number, words);
      if (why === undefined) {
        boundThreads(fd.number, threadsMax);
        return new IoRing({ ...mapParts(scope, fd, words), enter: wrap(enterKernel) });
      }
      scope.close();
      return why;
    } catch (error) {
      scope.close();
      if (error instanceof SystemCallError) return error.message;
      throw error;
    }
  }

  /** For a poller. */
  get fd(): number {
    return this.#parts.fd.number;
  }

  /** Operations gathered or under way. */
  get inFlight(): number {
    return this.#done.length - this.#free.length;
  }

  /** More operations, of this many parts each, that can be gathered before the next `submit`. */
  hasRoom(parts: number): boolean {
    return this.#free.length > 0 && (parts <= 1 || this.#iovecsUsed + parts <= iovecsPerBatch);
  }

  /**
   * Fills the parts from `offset` on, as far as the file goes. There must be room.
   * @param apart on a thread of the kernel, also when it could be done within `submit`
   */
  read(fd: number, parts: readonly Uint8Array[], offset: number, apart: boolean, done: RingDone): void {
    this.#transfer(parts.length === 1 ? operations.read : operations.readv, fd, parts, offset, apart, done);
  }

  write(fd: number, parts: readonly Uint8Array[], offset: number, apart: boolean, done: RingDone): void {
    this.#transfer(parts.length === 1 ? operations.write : operations.writev, fd, parts, offset, apart, done);
  }

  #transfer(
    operation: number,
    fd: number,
    parts: readonly Uint8Array[],
    offset: number,
    apart: boolean,
    done: RingDone,
  ): void {
    assert(parts.length > 0 && this.hasRoom(parts.length), 'a transfer has parts, and room');
    const one = parts.length === 1;
    const address = one ? this.#addressOf(parts[0]!) : this.#fillIovecs(parts);
    const flags = apart ? linux.IOSQE_ASYNC : 0;
    this.#gather(operation | (flags << 8), fd, offset, address, one ? parts[0]!.length : parts.length, 0, done, parts);
  }

  #fillIovecs(parts: readonly Uint8Array[]): number {
    const first = this.#iovecsUsed * iovecWords;
    let at = first;
    for (const part of parts) {
      const address = this.#addressOf(part);
      this.#iovecs[at] = address;
      this.#iovecs[at + 1] = address / 0x1_0000_0000;
      this.#iovecs[at + 2] = part.length;
      this.#iovecs[at + 3] = part.length / 0x1_0000_0000;
      at += iovecWords;
    }
    this.#iovecsUsed += parts.length;
    return this.#parts.iovecs.address + first * 4;
  }

  #addressOf(part: Uint8Array): number {
    const { buffer } = part;
    let address = this.#addresses.get(buffer);
    if (address === undefined) {
      address = addressOfBuffer(buffer);
      this.#addresses.set(buffer, address);
    }
    return address + part.byteOffset;
  }

  /** fdatasync. There must be room. */
  sync(fd: number, done: RingDone): void {
    this.#gather(operations.fsync, fd, 0, 0, 0, linux.IORING_FSYNC_DATASYNC, done, undefined);
  }

  /** fallocate; bytes. @param mode FALLOC_FL_*. There must be room. */
  allocate(fd: number, mode: number, offset: number, length: number, done: RingDone): void {
    // The length is where others have their address, the mode where they have their length.
    this.#gather(operations.fallocate, fd, offset, length, mode, 0, done, undefined);
  }

  #gather(
    operation: number,
    fd: number,
    offset: number,
    address: number,
    length: number,
    flags: number,
    done: RingDone,
    keep: unknown,
  ): void {
    const slot = this.#free.pop();
    assert(slot !== undefined, 'a ring has room for what is gathered');
    this.#done[slot] = done;
    this.#keep[slot] = keep;
    const sqes = this.#sqes;
    const at = (this.#tail & this.#sqMask) * sqeWords;
    sqes[at] = operation;
    sqes[at + 1] = fd;
    sqes[at + 2] = offset;
    sqes[at + 3] = offset / 0x1_0000_0000;
    sqes[at + 4] = address;
    sqes[at + 5] = address / 0x1_0000_0000;
    sqes[at + 6] = length;
    sqes[at + 7] = flags;
    sqes[at + 8] = slot;
    sqes.fill(0, at + 9, at + sqeWords);
    this.#tail = (this.#tail + 1) | 0;
    this.#gathered += 1;
  }

  /**
   * Gives the kernel what was gathered. What it does not take, for want of memory, ends with -EAGAIN: it has not begun.
   * Small operations on what the page cache has end within the call: `reap` tells.
   */
  submit(): void {
    if (this.#gathered === 0) return;
    Atomics.store(this.#words, this.#at.sqTail, this.#tail);
    while (this.#gathered > 0) {
      const taken = this.#parts.enter(this.fd, this.#gathered);
      if (taken > 0) this.#gathered -= taken;
      else if (taken !== -errnos.EINTR) break;
    }
    this.#iovecsUsed = 0;
    if (this.#gathered > 0) this.#takeBack();
  }

  #takeBack(): void {
    const head = Atomics.load(this.#words, this.#at.sqHead);
    const slots: number[] = [];
    for (let at = head; at !== this.#tail >>> 0; at = (at + 1) >>> 0) {
      slots.push(this.#sqes[(at & this.#sqMask) * sqeWords + 8]!);
    }
    this.#tail = head | 0;
    this.#gathered = 0;
    Atomics.store(this.#words, this.#at.sqTail, this.#tail);
    for (const slot of slots) this.#end(slot, -errnos.EAGAIN);
  }

  /** Tells what has ended. @returns operations */
  reap(): number {
    const { cqHead, cqTail, cqes } = this.#at;
    const words = this.#words;
    let ended = 0;
    for (let head = words[cqHead]!; ; ended += 1) {
      if (head === Atomics.load(words, cqTail)) return ended;
      const at = cqes + (head & this.#cqMask) * cqeWords;
      const slot = words[at]!;
      const result = this.#results[at + 2]!;
      // Before the callback, which may reap as well.
      head = (head + 1) >>> 0;
      Atomics.store(words, cqHead, head);
      this.#end(slot, result);
      head = words[cqHead]!;
    }
  }

  #end(slot: number, result: number): void {
    const done = this.#done[slot];
    assert(done !== undefined, 'an operation ends once');
    this.#done[slot] = undefined;
    this.#keep[slot] = undefined;
    this.#free.push(slot);
    done(result);
  }

  close(): void {
    assert(this.inFlight === 0, 'a ring with operations under way is not closed');
    this.#parts.scope.close();
  }
}

function setUp(entries: number): { readonly fd: Fd; readonly words: Uint32Array } | string {
  // Ends of operations need not interrupt this thread (Linux 5.19); older kernels do not know that one can ask for it.
  for (const flags of [linux.IORING_SETUP_COOP_TASKRUN, 0]) {
    const words = new Uint32Array(params.bytes / 4);
    words[params.flags / 4] = flags;
    const number = syscall(linux.SYS_io_uring_setup, entries, addressOfBuffer(words.buffer), 0, 0, 0, 0);
    if (number >= 0) return { fd: new Fd(number), words };
    const errno = lastErrno();
    if (errno !== errnos.EINVAL) return new SystemCallError('io_uring_setup', errno).message;
  }
  return new SystemCallError('io_uring_setup', errnos.EINVAL).message;
}

function mapParts(scope: Scope, fd: Fd, setup: Uint32Array): Omit<RingParts, 'enter'> {
  const map = (offset: number, bytes: number) => scope.own(Mapping.map(fd.number, offset, bytes, { writable: true }));
  const field = (at: number): number => setup[at / 4]!;
  const ringBytes = Math.max(
    field(params.sqArray) + field(params.sqEntries) * 4,
    field(params.cqCqes) + field(params.cqEntries) * cqeWords * 4,
  );
  const rings = map(linux.IORING_OFF_SQ_RING, ringBytes);
  const sqes = map(linux.IORING_OFF_SQES, field(params.sqEntries) * sqeWords * 4);
  const iovecs = scope.own(Mapping.anonymous(iovecsPerBatch * iovecWords * 4));
  return { scope, fd, rings, sqes, iovecs, setup };
}

/** A kernel that cannot keeps its own bound. */
function boundThreads(fd: number, threadsMax: number): void {
  // Those for files; 0 leaves the bound of the others as it is.
  const counts = Uint32Array.of(threadsMax, 0);
  const { SYS_io_uring_register, IORING_REGISTER_IOWQ_MAX_WORKERS } = linux;
  syscall(SYS_io_uring_register, fd, IORING_REGISTER_IOWQ_MAX_WORKERS, addressOfBuffer(counts.buffer), 2, 0, 0);
  // The kernel has written into it: until here it must not be collected.
  counts.fill(0);
}

function whyUnfit(fd: number, setup: Uint32Array): string | undefined {
  if ((setup[params.features / 4]! & neededFeatures) !== neededFeatures) return 'the kernel is older than Linux 5.12';
  // struct io_uring_probe: last operation at byte 0; 8 bytes an operation from byte 16 on, flags at 2.
  const probed = 64;
  const probe = new Uint8Array(16 + probed * 8);
  const address = addressOfBuffer(probe.buffer);
  if (syscall(linux.SYS_io_uring_register, fd, linux.IORING_REGISTER_PROBE, address, probed, 0, 0) < 0) {
    return new SystemCallError('io_uring_register', lastErrno()).message;
  }
  const missing = Object.entries(operations).filter(([, operation]) => (probe[16 + operation * 8 + 2]! & 1) === 0);
  return missing.length === 0 ? undefined : `the kernel lacks ${missing.map(([name]) => name).join(', ')}`;
}
