import type { LaneEvent } from '../lane/protocol.ts';

/** What of the things that a guest shares could not be used last, in this epoch. */
export class Diagnosis {
  readonly #bus: string;
  readonly #emit: (event: LaneEvent) => void;
  #text: string | null = null;

  constructor(bus: string, emit: (event: LaneEvent) => void) {
    this.#bus = bus;
    this.#emit = emit;
  }

  get text(): string | null {
    return this.#text;
  }

  note(text: string): void {
    // A guest can repeat a mistake as fast as it sends: the first time is news.
    if (this.#text === text) return;
    this.#text = text;
    this.#emit({ type: 'bus-diagnosis', bus: this.#bus, text });
  }

  /** A new epoch. */
  clear(): void {
    this.#text = null;
  }
}
