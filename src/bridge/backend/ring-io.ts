import { limits } from '../../kit/limits.ts';
import type { Scheduler } from '../../kit/scheduler.ts';
import { linux } from '../../libc/constants.ts';
import { errnos, SystemCallError } from '../../libc/errno.ts';
import { IoRing, type RingDone } from '../../libc/io-uring.ts';
import type { Poller, Watch } from '../../libc/poll.ts';
import { type DiskIo, type FileIo, type IoDone, type TransferDone, threadIo } from './disk-io.ts';
import { bytesIn } from './parts.ts';

export interface RingMeans {
  readonly poller: Poller;
  readonly scheduler: Scheduler;
}

/**
 * Operations on one file through a ring of its own. What is begun within one turn of the event loop goes to the kernel
 * together. What finds no room, or no memory in the kernel, takes the other way.
 */
class RingFileIo implements FileIo {
  readonly #fd: number;
  readonly #ring: IoRing;
  readonly #otherwise: FileIo;
  readonly #scheduler: Scheduler;
  readonly #watch: Watch;
  #planned = false;

  constructor(fd: number, ring: IoRing, { poller, scheduler }: RingMeans) {
    this.#fd = fd;
    this.#ring = ring;
    this.#otherwise = threadIo.open(fd);
    this.#scheduler = scheduler;
    this.#watch = poller.watch(ring.fd, () => ring.reap());
  }

  read(parts: readonly Uint8Array[], offset: number, done: TransferDone): void {
    const otherwise = (): void => this.#otherwise.read(parts, offset, done);
    // What is large is copied by a thread of the kernel, so that nobody waits for it here.
    const apart = bytesIn(parts) > limits.blkReadNowBytes;
    this.#begin(parts.length, told('read', otherwise, done), (ended) => {
      this.#ring.read(this.#fd, parts, offset, apart, ended);
    });
  }

  write(parts: readonly Uint8Array[], offset: number, done: TransferDone): void {
    const otherwise = (): void => this.#otherwise.write(parts, offset, done);
    const apart = bytesIn(parts) > limits.blkWriteNowBytes;
    this.#begin(parts.length, told('write', otherwise, done), (ended) => {
      this.#ring.write(this.#fd, parts, offset, apart, ended);
    });
  }

  datasync(done: IoDone): void {
    const otherwise = (): void => this.#otherwise.datasync(done);
    this.#begin(1, told('fdatasync', otherwise, done), (ended) => this.#ring.sync(this.#fd, ended));
  }

  punch(offset: number, length: number, done: IoDone): void {
    const otherwise = (): void => this.#otherwise.punch(offset, length, done);
    this.#allocate(linux.FALLOC_FL_PUNCH_HOLE, offset, length, otherwise, done);
  }

  zero(offset: number, length: number, done: IoDone): void {
    const otherwise = (): void => this.#otherwise.zero(offset, length, done);
    this.#allocate(linux.FALLOC_FL_ZERO_RANGE, offset, length, otherwise, done);
  }

  #allocate(kind: number, offset: number, length: number, otherwise: () => void, done: IoDone): void {
    const ended = told('fallocate', otherwise, done, `${length} bytes at ${offset}`);
    this.#begin(1, ended, () => {
      this.#ring.allocate(this.#fd, kind | linux.FALLOC_FL_KEEP_SIZE, offset, length, ended);
    });
  }

  #begin(parts: number, ended: RingDone, gather: (ended: RingDone) => void): void {
    if (this.#ring.hasRoom(parts)) {
      gather(ended);
      this.#plan();
    } else ended(-errnos.EAGAIN);
  }

  /** The end of this turn comes before any other input. */
  #plan(): void {
    if (this.#planned) return;
    this.#planned = true;
    this.#scheduler.soon(() => {
      this.#planned = false;
      this.#ring.submit();
      this.#ring.reap();
    });
  }

  close(): void {
    this.#watch.close();
    this.#ring.close();
  }
}

/** @param otherwise carries it out in the other way: the kernel has not begun it */
const told =
  (call: string, otherwise: () => void, done: TransferDone, subject?: string): RingDone =>
  (result) => {
    if (result >= 0) done(null, result);
    else if (result === -errnos.EAGAIN || result === -errnos.EINTR) otherwise();
    else done(new SystemCallError(call, -result, subject), 0);
  };

const openRing = (): IoRing | string => IoRing.open(limits.blkRingEntries, limits.blkRingThreads);

/** A file that gets no ring of its own, for want of descriptors or memory, uses the thread pool. */
export const ringIo = (means: RingMeans): DiskIo => ({
  kind: 'io_uring',
  requestsMax: limits.blkRingRequests,
  open: (fd) => {
    const ring = openRing();
    if (typeof ring === 'string') return threadIo.open(fd);
    try {
      return new RingFileIo(fd, ring, means);
    } catch (error) {
      ring.close();
      throw error;
    }
  },
});

/** @returns why this machine has no io_uring that disks can use, or null */
export function whyNoRing(): string | null {
  const ring = openRing();
  if (typeof ring === 'string') return ring;
  ring.close();
  return null;
}
