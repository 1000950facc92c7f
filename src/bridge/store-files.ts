import fs from 'node:fs';
import { limits } from '../kit/limits.ts';

/**
 * The file operations of the store. They are synchronous: the thread pool may be full of guest I/O, and control
 * must not wait for it. Each throws what the operating system reports.
 */
export interface StoreFiles {
  /** Makes the directory and what is missing above it, for the owner only. */
  makeDirectory(path: string): void;
  /** @returns undefined when there is no such file */
  read(path: string): Uint8Array | undefined;
  /** Creates or replaces a file that only the owner can read. */
  write(path: string, text: string): void;
  /** Makes the content of a file, or the names in a directory, durable. */
  sync(path: string): void;
  rename(from: string, to: string): void;
}

const isMissing = (error: unknown): boolean => (error as NodeJS.ErrnoException).code === 'ENOENT';

export const nodeStoreFiles: StoreFiles = {
  makeDirectory(path) {
    fs.mkdirSync(path, { recursive: true, mode: 0o700 });
  },
  read(path) {
    try {
      const { size } = fs.statSync(path);
      if (size > limits.storeFileMaxBytes) throw new Error(`larger than ${limits.storeFileMaxBytes} bytes`);
      return fs.readFileSync(path);
    } catch (error) {
      if (isMissing(error)) return undefined;
      throw error;
    }
  },
  write(path, text) {
    fs.rmSync(path, { force: true });
    fs.writeFileSync(path, text, { mode: 0o600, flag: 'wx' });
  },
  sync(path) {
    const fd = fs.openSync(path, 'r');
    try {
      fs.fsyncSync(fd);
    } finally {
      fs.closeSync(fd);
    }
  },
  rename(from, to) {
    fs.renameSync(from, to);
  },
};
