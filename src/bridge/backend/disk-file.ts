import { close, constants, fstat, open } from 'node:fs';
import { promisify } from 'node:util';
import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import { setStatusFlags } from '../../libc/fd.ts';
import { tryLock, unlock } from '../../libc/flock.ts';
import { type DiskIo, type FileIo, type IoDone, type TransferDone, threadIo } from './disk-io.ts';
import { after } from './parts.ts';

/** A disk image as the block backend uses it; tests inject one that fails. Offsets, lengths and sizes are bytes. */
export interface DiskFile {
  /** As `refresh` last found it; others may let the file grow or shrink. */
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** Unit in which the file system allocates, a power of two, at least 512. */
  readonly blockBytes: number;
  /** Whether `punch` works. */
  readonly canPunch: boolean;
  /** Fills all parts; the range lies inside the file. `done` may be called before this returns. */
  read(parts: readonly Uint8Array[], offset: number, done: IoDone): void;
  write(parts: readonly Uint8Array[], offset: number, done: IoDone): void;
  /** Releases the storage of a range inside the file, which then reads as zero. */
  punch(offset: number, length: number, done: IoDone): void;
  /** Makes a range inside the file read as zero and keeps storage for it. */
  zero(offset: number, length: number, done: IoDone): void;
  /** Done when everything written so far is on stable storage. */
  datasync(done: IoDone): void;
  /** Looks at the size again. */
  refresh(done: IoDone): void;
  close(): Promise<void>;
}

type Transfer = (parts: readonly Uint8Array[], offset: number, done: TransferDone) => void;

interface RegularFileFacts {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly blockBytes: number;
  readonly canPunch: boolean;
}

/** Zeroes are written from this; never changed. */
const zeroes = new Uint8Array(64 * 1024);

/** A regular file. Data goes between the file and the guest's pages without a copy. */
class RegularDiskFile implements DiskFile {
  readonly readOnly: boolean;
  readonly blockBytes: number;
  readonly canPunch: boolean;
  readonly #fd: number;
  readonly #io: FileIo;
  readonly #reads: Transfer = (parts, offset, done) => this.#io.read(parts, offset, done);
  readonly #writes: Transfer = (parts, offset, done) => this.#io.write(parts, offset, done);
  #sizeBytes: number;
  /** Operations under way. */
  #running = 0;
  #idle: (() => void) | undefined;

  constructor(fd: number, io: FileIo, facts: RegularFileFacts) {
    this.#fd = fd;
    this.#io = io;
    this.#sizeBytes = facts.sizeBytes;
    this.readOnly = facts.readOnly;
    this.blockBytes = facts.blockBytes;
    this.canPunch = facts.canPunch;
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  read(parts: readonly Uint8Array[], offset: number, done: IoDone): void {
    this.#transfer(this.#reads, parts, offset, this.#begin(done));
  }

  write(parts: readonly Uint8Array[], offset: number, done: IoDone): void {
    this.#transfer(this.#writes, parts, offset, this.#begin(done));
  }

  /** The kernel may move less than asked: goes on until all is moved. */
  #transfer(transfer: Transfer, parts: readonly Uint8Array[], offset: number, done: IoDone): void {
    transfer(parts, offset, (error, moved) => {
      const rest = error === null ? after(parts, moved) : parts;
      if (error !== null || rest.length === 0) done(error);
      else if (moved === 0) done(new Error('the image file became shorter'));
      else this.#transfer(transfer, rest, offset + moved, done);
    });
  }

  punch(offset: number, length: number, done: IoDone): void {
    this.#io.punch(offset, length, this.#begin(done));
  }

  zero(offset: number, length: number, done: IoDone): void {
    const ended = this.#begin(done);
    // A file system without ZERO_RANGE refuses at once; whatever it says, written zeroes are as good.
    this.#io.zero(offset, length, (error) => {
      if (error === null) ended(null);
      else this.#writeZeroes(offset, offset + length, ended);
    });
  }

  #writeZeroes(offset: number, end: number, done: IoDone): void {
    const count = Math.min(end - offset, limits.blkZeroWriteBytes);
    if (count === 0) {
      done(null);
      return;
    }
    const parts = Array.from({ length: Math.ceil(count / zeroes.length) }, (_, i) =>
      zeroes.subarray(0, Math.min(zeroes.length, count - i * zeroes.length)),
    );
    this.#transfer(this.#writes, parts, offset, (error) => {
      if (error !== null) done(error);
      else this.#writeZeroes(offset + count, end, done);
    });
  }

  datasync(done: IoDone): void {
    this.#io.datasync(this.#begin(done));
  }

  refresh(done: IoDone): void {
    const ended = this.#begin(done);
    fstat(this.#fd, (error, stat) => {
      if (error === null) this.#sizeBytes = stat.size;
      ended(error);
    });
  }

  #begin(done: IoDone): IoDone {
    this.#running += 1;
    return (error) => {
      this.#running -= 1;
      done(error);
      if (this.#running === 0) this.#idle?.();
    };
  }

  /** Waits for what runs: the number of a descriptor closed under it could belong to another file by then. */
  async close(): Promise<void> {
    if (this.#running > 0) {
      await new Promise<void>((resolve) => {
        this.#idle = resolve;
      });
    }
    this.#io.close();
    // The kernel tells that an operation has ended a moment before it lets go of the file.
    unlock(this.#fd);
    await promisify(close)(this.#fd);
  }
}

const blockMinBytes = 512;
const blockMaxBytes = 1024 * 1024;
const blockUsualBytes = 4096;

/** What the file system says, when it can be one. */
const allocationUnit = (bytes: number): number =>
  bytes >= blockMinBytes && bytes <= blockMaxBytes && Number.isInteger(Math.log2(bytes)) ? bytes : blockUsualBytes;

/** Far behind the end of an image, where a hole changes nothing, also when somebody lets the file grow right now. */
const probeDistanceBytes = 1024 ** 3;

/** Whether the file system can take storage away from a file. */
const probePunch = (io: FileIo, sizeBytes: number): Promise<boolean> =>
  new Promise((resolve) => {
    const offset = (Math.floor(sizeBytes / blockMaxBytes) + 1) * blockMaxBytes + probeDistanceBytes;
    io.punch(offset, blockMaxBytes, (error) => resolve(error === null));
  });

/**
 * Opens an image file and locks it: writers exclude everyone, readers exclude writers.
 * @throws VmsgError backend-unusable
 */
export async function openDiskFile(path: string, readOnly: boolean, io: DiskIo = threadIo): Promise<DiskFile> {
  const refuse = (why: string): never => {
    throw new VmsgError('backend-unusable', `${path}: ${why}`);
  };
  // O_NONBLOCK: opening a FIFO must not wait for its other end.
  const flags = (readOnly ? constants.O_RDONLY : constants.O_RDWR) | constants.O_NONBLOCK;
  const fd = await promisify(open)(path, flags, 0).catch((error: NodeJS.ErrnoException) =>
    refuse(`cannot be opened (${error.code})`),
  );
  let fileIo: FileIo | undefined;
  try {
    const stat = await promisify(fstat)(fd);
    if (!stat.isFile()) refuse('not a regular file');
    if (stat.size === 0) refuse('the file is empty');
    // io_uring would take it for a file that never waits.
    setStatusFlags(fd, 0);
    if (!tryLock(fd, readOnly ? 'shared' : 'exclusive')) {
      refuse(`in use by another disk or process that ${readOnly ? 'writes to it' : 'has it open'}`);
    }
    fileIo = io.open(fd);
    const canPunch = !readOnly && (await probePunch(fileIo, stat.size));
    return new RegularDiskFile(fd, fileIo, {
      sizeBytes: stat.size,
      readOnly,
      blockBytes: allocationUnit(stat.blksize),
      canPunch,
    });
  } catch (error) {
    fileIo?.close();
    unlock(fd);
    await promisify(close)(fd);
    throw error;
  }
}
