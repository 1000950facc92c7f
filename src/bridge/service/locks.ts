import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';

export interface LockRequest {
  readonly key: string;
  readonly mode: 'shared' | 'exclusive';
}

interface Waiter {
  readonly mode: LockRequest['mode'];
  readonly wake: () => void;
}

interface LockState {
  /** -1: one exclusive holder, else the number of shared ones. */
  holders: number;
  readonly waiting: Waiter[];
}

/**
 * Orders operations on objects: one that changes an object excludes all others on it, those that only refer to
 * it run together. First come, first served. Locks of one operation are taken in the order of their keys, so
 * that operations cannot wait for each other in a circle.
 */
export class ObjectLocks {
  readonly #locks = new Map<string, LockState>();

  /** @throws VmsgError `unavailable` when too many operations wait already */
  async run<T>(requests: readonly LockRequest[], operation: () => Promise<T>): Promise<T> {
    const held: LockRequest[] = [];
    try {
      for (const request of [...requests].sort((a, b) => (a.key < b.key ? -1 : 1))) {
        await this.#acquire(request);
        held.push(request);
      }
      return await operation();
    } finally {
      for (const request of held.reverse()) this.#release(request);
    }
  }

  async #acquire({ key, mode }: LockRequest): Promise<void> {
    const lock = this.#locks.get(key) ?? { holders: 0, waiting: [] };
    this.#locks.set(key, lock);
    if (lock.waiting.length === 0 && isFree(lock, mode)) {
      take(lock, mode);
      return;
    }
    if (lock.waiting.length >= limits.operationsWaitingPerObject) {
      throw new VmsgError('unavailable', `${limits.operationsWaitingPerObject} operations on ${key} wait already`);
    }
    await new Promise<void>((wake) => lock.waiting.push({ mode, wake }));
  }

  #release({ key, mode }: LockRequest): void {
    const lock = this.#locks.get(key);
    if (lock === undefined) return;
    lock.holders = mode === 'exclusive' ? 0 : lock.holders - 1;
    for (let next = lock.waiting[0]; next !== undefined && isFree(lock, next.mode); next = lock.waiting[0]) {
      lock.waiting.shift();
      take(lock, next.mode);
      next.wake();
    }
    if (lock.holders === 0) this.#locks.delete(key);
  }
}

const isFree = (lock: LockState, mode: LockRequest['mode']): boolean =>
  mode === 'exclusive' ? lock.holders === 0 : lock.holders >= 0;

function take(lock: LockState, mode: LockRequest['mode']): void {
  lock.holders = mode === 'exclusive' ? -1 : lock.holders + 1;
}
