import { statfsSync } from 'node:fs';
import { tmpdir } from 'node:os';

/** A machine without /dev/shm measures its temporary files twice, and the header says so. */
export function memoryDirectory(): string {
  return isTmpfs('/dev/shm') ? '/dev/shm' : tmpdir();
}

const tmpfsMagic = 0x01021994;

export function isTmpfs(directory: string): boolean {
  try {
    return statfsSync(directory).type === tmpfsMagic;
  } catch {
    return false;
  }
}
