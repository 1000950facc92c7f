/** A resource with an explicit end. `close` is idempotent. */
export interface Closable {
  close(): void;
}

/** Owns resources and releases them in reverse order of acquisition. */
export class Scope implements Closable {
  #releases: Array<() => void> = [];
  #closed = false;

  get closed(): boolean {
    return this.#closed;
  }

  /** Takes ownership. A scope that is already closed closes the resource at once. */
  own<T extends Closable>(resource: T): T {
    this.defer(() => resource.close());
    return resource;
  }

  defer(release: () => void): void {
    if (this.#closed) release();
    else this.#releases.push(release);
  }

  /** Releases everything even when some release throws. @throws AggregateError of what was thrown */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    const errors: unknown[] = [];
    for (const release of this.#releases.reverse()) {
      try {
        release();
      } catch (error) {
        errors.push(error);
      }
    }
    this.#releases = [];
    if (errors.length > 0) throw new AggregateError(errors, 'some resources did not close');
  }
}
