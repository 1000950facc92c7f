import { TapReader } from './tap.mjs';
import { TapMerger } from './tap-merge.mjs';

/** Where the results of all test runs of one command come together. */
export class TestOutput {
  /** Has read everything that decides about the command. */
  reader = new TapReader();
  #merger = new TapMerger();
  #stream;

  constructor(stream) {
    this.#stream = stream;
    this.onTerminal = stream.isTTY === true;
  }

  /** For a person. */
  show(text) {
    this.#stream.write(text);
  }

  /** A piece of the TAP of the current run; a terminal does not show it. */
  tap(text) {
    this.#pass(this.#merger.push(text));
  }

  /** A failure that is not a test's. */
  failure(name) {
    this.#pass(this.#merger.failure(name));
    if (this.onTerminal) this.show(`✖ ${name}\n`);
  }

  endRun() {
    this.#pass(this.#merger.endRun());
  }

  /** @param {boolean} ofSeveral whether a terminal has seen several summaries */
  end(ofSeveral) {
    this.#pass(this.#merger.end());
    const { tests = 0, pass = 0, fail = 0, cancelled = 0, skipped = 0 } = this.reader.counts;
    if (!this.onTerminal || !ofSeveral) return;
    this.show(`all together: ${tests} tests, ${pass} passed, ${fail + cancelled} failed, ${skipped} skipped\n`);
  }

  #pass(text) {
    this.reader.push(text);
    if (!this.onTerminal) this.show(text);
  }
}
