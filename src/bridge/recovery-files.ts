import { closeSync, constants, fstatSync, ftruncateSync, mkdirSync, openSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { Mapping } from '../libc/mapping.ts';
import type { RecoveryMemory, RecoveryStore } from '../ports/recovery.ts';

/** Recovery memory as shared mappings of files: what was stored survives a killed process, though not the machine. */
export class RecoveryFiles implements RecoveryStore {
  readonly #directory: string;

  /** @param directory of one bus; made here, for this user only */
  constructor(directory: string) {
    this.#directory = directory;
    mkdirSync(directory, { recursive: true, mode: 0o700 });
  }

  open(name: string, length: number): RecoveryMemory {
    const fd = openSync(
      join(this.#directory, name),
      constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW,
      0o600,
    );
    try {
      if (fstatSync(fd).size !== length) {
        ftruncateSync(fd, 0);
        ftruncateSync(fd, length);
      }
      return Mapping.map(fd, 0, length, { writable: true });
    } finally {
      closeSync(fd);
    }
  }

  names(): string[] {
    return readdirSync(this.#directory);
  }

  remove(name: string): void {
    rmSync(join(this.#directory, name), { force: true });
  }
}
