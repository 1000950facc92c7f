import { close, constants, fdatasync, fstat, open, readv, writev } from 'node:fs';
import { promisify } from 'node:util';
import { VmsgError } from '../../kit/errors.ts';
import { tryLock } from '../../libc/flock.ts';
import { after } from './parts.ts';

export type IoDone = (error: Error | null) => void;

/** A disk image as the block backend uses it; tests inject one that fails. Offsets and sizes are bytes. */
export interface DiskFile {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** Fills all parts; the range lies inside the file. */
  read(parts: readonly Uint8Array[], offset: number, done: IoDone): void;
  write(parts: readonly Uint8Array[], offset: number, done: IoDone): void;
  /** Done when everything written so far is on stable storage. */
  datasync(done: IoDone): void;
  close(): Promise<void>;
}

type Transfer = (
  fd: number,
  parts: Uint8Array[],
  offset: number,
  done: (error: Error | null, bytes: number) => void,
) => void;

/** A regular file through the thread pool of Node. Data goes between the file and the guest's pages without a copy. */
class RegularDiskFile implements DiskFile {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly #fd: number;
  /** Operations in the thread pool. */
  #running = 0;
  #idle: (() => void) | undefined;

  constructor(fd: number, sizeBytes: number, readOnly: boolean) {
    this.#fd = fd;
    this.sizeBytes = sizeBytes;
    this.readOnly = readOnly;
  }

  read(parts: readonly Uint8Array[], offset: number, done: IoDone): void {
    this.#transfer(readv as Transfer, [...parts], offset, this.#begin(done));
  }

  write(parts: readonly Uint8Array[], offset: number, done: IoDone): void {
    this.#transfer(writev as Transfer, [...parts], offset, this.#begin(done));
  }

  /** The kernel may move less than asked: goes on until all is moved. */
  #transfer(transfer: Transfer, parts: Uint8Array[], offset: number, done: IoDone): void {
    transfer(this.#fd, parts, offset, (error, moved) => {
      const rest = error === null ? after(parts, moved) : parts;
      if (error !== null || rest.length === 0) done(error);
      else if (moved === 0) done(new Error('the image file became shorter'));
      else this.#transfer(transfer, rest, offset + moved, done);
    });
  }

  datasync(done: IoDone): void {
    fdatasync(this.#fd, this.#begin(done));
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
    await promisify(close)(this.#fd);
  }
}

/**
 * Opens an image file and locks it: writers exclude everyone, readers exclude writers.
 * @throws VmsgError backend-unusable
 */
export async function openDiskFile(path: string, readOnly: boolean): Promise<DiskFile> {
  const refuse = (why: string): never => {
    throw new VmsgError('backend-unusable', `${path}: ${why}`);
  };
  // O_NONBLOCK: opening a FIFO must not wait for its other end.
  const flags = (readOnly ? constants.O_RDONLY : constants.O_RDWR) | constants.O_NONBLOCK;
  const fd = await promisify(open)(path, flags, 0).catch((error: NodeJS.ErrnoException) =>
    refuse(`cannot be opened (${error.code})`),
  );
  try {
    const stat = await promisify(fstat)(fd);
    if (!stat.isFile()) refuse('not a regular file');
    if (stat.size === 0) refuse('the file is empty');
    if (!tryLock(fd, readOnly ? 'shared' : 'exclusive')) refuse('in use by another disk or process');
    return new RegularDiskFile(fd, stat.size, readOnly);
  } catch (error) {
    await promisify(close)(fd);
    throw error;
  }
}
