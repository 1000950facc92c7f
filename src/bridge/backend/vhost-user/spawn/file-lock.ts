import { close, constants, open } from 'node:fs';
import { promisify } from 'node:util';
import { VmsgError } from '../../../../kit/errors.ts';
import type { Closable } from '../../../../kit/scope.ts';
import { tryLock, unlock } from '../../../../libc/flock.ts';

/**
 * Locks a file that a program will use as `blk` locks its image: programs may share what they must not, such as raw disks.
 * @throws VmsgError backend-unusable
 */
export async function lockFile({ path, exclusive }: { path: string; exclusive: boolean }): Promise<Closable> {
  const refuse = (why: string): never => {
    throw new VmsgError('backend-unusable', `${path}: ${why}`);
  };
  // O_NONBLOCK: opening a FIFO must not wait for its other end.
  const flags = (exclusive ? constants.O_RDWR : constants.O_RDONLY) | constants.O_NONBLOCK;
  const fd = await promisify(open)(path, flags, 0).catch((error: NodeJS.ErrnoException) =>
    refuse(`cannot be opened (${error.code})`),
  );
  const release = (): void => close(fd, () => {});
  try {
    if (!tryLock(fd, exclusive ? 'exclusive' : 'shared')) {
      refuse(`in use by another disk or process that ${exclusive ? 'has it open' : 'writes to it'}`);
    }
  } catch (error) {
    release();
    throw error;
  }
  let held = true;
  return {
    close: () => {
      if (!held) return;
      held = false;
      // Closing is on a pool thread and may take its time: the next one gets the lock at once.
      unlock(fd);
      release();
    },
  };
}
