import type { Clock } from '../kit/clock.ts';
import type { Closable } from '../kit/scope.ts';

/** Tells whoever listens that something may have changed, until it ends. */
export class Changes {
  readonly #listeners = new Set<{ readonly changed: () => void; readonly ended: (error: Error) => void }>();
  #ended: Error | undefined;

  tell(): void {
    for (const listener of [...this.#listeners]) listener.changed();
  }

  listen(changed: () => void): Closable {
    const listener = { changed, ended: () => {} };
    this.#listeners.add(listener);
    return { close: () => void this.#listeners.delete(listener) };
  }

  /** Ends every wait with an error. */
  end(error: Error): void {
    this.#ended = error;
    for (const listener of [...this.#listeners]) listener.ended(error);
    this.#listeners.clear();
  }

  /**
   * Looks now and after every change.
   * @returns the first answer, undefined when there is none in time. @throws what `look` throws, and what `end` was given
   */
  until<T>(clock: Clock, timeoutMs: number, look: () => T | undefined): Promise<T | undefined> {
    return new Promise((resolve, reject) => {
      const finish = (end: () => void): void => {
        this.#listeners.delete(listener);
        timer.cancel();
        end();
      };
      const changed = (): void => {
        try {
          const found = look();
          if (found !== undefined) finish(() => resolve(found));
        } catch (error) {
          finish(() => reject(error));
        }
      };
      const listener = { changed, ended: (error: Error) => finish(() => reject(error)) };
      const timer = clock.after(timeoutMs, () => finish(() => resolve(undefined)));
      this.#listeners.add(listener);
      if (this.#ended === undefined) changed();
      else listener.ended(this.#ended);
    });
  }
}
