import { fdatasync, readv, writev } from 'node:fs';
import { limits } from '../../kit/limits.ts';
import { punchHole, zeroRange } from '../../libc/fallocate.ts';
import { readNow } from '../../libc/read-now.ts';

export type IoDone = (error: Error | null) => void;
/** @param moved bytes, perhaps fewer than asked */
export type TransferDone = (error: Error | null, moved: number) => void;

/** How operations on one open file are carried out; bytes. What was begun ends, maybe before the call returns. */
export interface FileIo {
  /** There is at least one part. */
  read(parts: readonly Uint8Array[], offset: number, done: TransferDone): void;
  write(parts: readonly Uint8Array[], offset: number, done: TransferDone): void;
  datasync(done: IoDone): void;
  punch(offset: number, length: number, done: IoDone): void;
  zero(offset: number, length: number, done: IoDone): void;
  /** Nothing is under way any more. The descriptor stays open. */
  close(): void;
}

export type DiskIoKind = 'io_uring' | 'threads';

/** A way to carry out operations on files. */
export interface DiskIo {
  readonly kind: DiskIoKind;
  /** Requests of one disk at a time. */
  readonly requestsMax: number;
  /** @param fd stays the caller's, and open until `close` */
  open(fd: number): FileIo;
}

type Transfer = (fd: number, parts: readonly Uint8Array[], offset: number, done: TransferDone) => void;

/** In the thread pool of Node, which the whole process shares. */
class ThreadFileIo implements FileIo {
  readonly #fd: number;
  #readsNow = true;

  constructor(fd: number) {
    this.#fd = fd;
  }

  read(parts: readonly Uint8Array[], offset: number, done: TransferDone): void {
    const length = this.#tryRead(parts, offset);
    if (length === undefined) (readv as Transfer)(this.#fd, parts, offset, done);
    else done(null, length);
  }

  /** Small reads of what is in the page cache: copying takes less time than a thread needs to wake up. */
  #tryRead(parts: readonly Uint8Array[], offset: number): number | undefined {
    const [part] = parts;
    if (!this.#readsNow || parts.length !== 1 || part!.length > limits.blkReadNowBytes) return undefined;
    const result = readNow(this.#fd, part!, offset);
    this.#readsNow = result !== 'never';
    return result === part!.length ? result : undefined;
  }

  write(parts: readonly Uint8Array[], offset: number, done: TransferDone): void {
    (writev as Transfer)(this.#fd, parts, offset, done);
  }

  datasync(done: IoDone): void {
    fdatasync(this.#fd, done);
  }

  punch(offset: number, length: number, done: IoDone): void {
    punchHole(this.#fd, offset, length, done);
  }

  zero(offset: number, length: number, done: IoDone): void {
    zeroRange(this.#fd, offset, length, done);
  }

  close(): void {}
}

export const threadIo: DiskIo = {
  kind: 'threads',
  requestsMax: limits.blkInFlightRequests,
  open: (fd) => new ThreadFileIo(fd),
};
