/** First in, first out, with a fixed capacity; a ring buffer, so no shifting. */
export class BoundedQueue<T> {
  readonly capacity: number;
  readonly #slots: Array<T | undefined>;
  #first = 0;
  #length = 0;

  constructor(capacity: number) {
    this.capacity = capacity;
    this.#slots = new Array<T | undefined>(capacity);
  }

  get length(): number {
    return this.#length;
  }

  /** @returns false when full; the item is then not taken */
  push(item: T): boolean {
    if (this.#length === this.capacity) return false;
    this.#slots[(this.#first + this.#length) % this.capacity] = item;
    this.#length += 1;
    return true;
  }

  /** The item that `shift` would return. */
  peek(): T | undefined {
    return this.#slots[this.#first];
  }

  shift(): T | undefined {
    if (this.#length === 0) return undefined;
    const item = this.#slots[this.#first];
    this.#slots[this.#first] = undefined;
    this.#first = (this.#first + 1) % this.capacity;
    this.#length -= 1;
    return item;
  }

  clear(): void {
    while (this.#length > 0) this.shift();
  }
}
