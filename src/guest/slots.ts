import { BoundedQueue } from '../kit/bounded-queue.ts';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';

interface Waiter<T> {
  readonly resolve: (slot: T) => void;
  readonly reject: (error: Error) => void;
}

/** A fixed set of things that are taken and given back; who finds none waits in order. */
export class Slots<T> {
  readonly #free: T[];
  readonly #waiters = new BoundedQueue<Waiter<T>>(limits.guestQueueWaiters);
  #ended: Error | undefined;

  constructor(slots: readonly T[]) {
    this.#free = [...slots];
  }

  /** @throws VmsgError 'limit-reached' when too many wait; else what `end` was given */
  take(): Promise<T> {
    return new Promise((resolve, reject) => {
      const slot = this.#ended === undefined ? this.#free.pop() : undefined;
      if (this.#ended !== undefined) reject(this.#ended);
      else if (slot !== undefined) resolve(slot);
      else if (!this.#waiters.push({ resolve, reject })) {
        reject(new VmsgError('limit-reached', `${limits.guestQueueWaiters} requests wait already`));
      }
    });
  }

  give(slot: T): void {
    const waiter = this.#waiters.shift();
    if (waiter === undefined) this.#free.push(slot);
    else waiter.resolve(slot);
  }

  end(error: Error): void {
    this.#ended = error;
    for (let waiter = this.#waiters.shift(); waiter !== undefined; waiter = this.#waiters.shift()) waiter.reject(error);
  }
}

/**
 * Runs `work` for 0..count-1, at most `width` at a time. After a failure no more is started; the promise rejects
 * with it once everything that was started has settled.
 */
export async function inParallel(count: number, width: number, work: (index: number) => Promise<void>): Promise<void> {
  let next = 0;
  let failure: { readonly error: unknown } | undefined;
  const run = async (): Promise<void> => {
    while (next < count && failure === undefined) {
      const index = next++;
      try {
        await work(index);
      } catch (error) {
        failure ??= { error };
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(width, count) }, run));
  if (failure !== undefined) throw failure.error;
}
