/** Passes on what several runs say at the same time, one run after the other. */
export class Turns {
  #output;
  #current = 0;
  #runs;

  /** @param {import('./test-output.mjs').TestOutput} output */
  constructor(output, count) {
    this.#output = output;
    this.#runs = Array.from({ length: count }, () => ({ held: [], ended: false }));
  }

  /** @returns what a run writes to, with the methods of `TestOutput` that a run needs */
  output(turn) {
    const passing = (method) => (text) => this.#pass(turn, method, text);
    return {
      onTerminal: this.#output.onTerminal,
      show: passing('show'),
      tap: passing('tap'),
      failure: passing('failure'),
      endRun: passing('endRun'),
    };
  }

  #pass(turn, method, text) {
    if (turn === this.#current) this.#output[method](text);
    else this.#runs[turn].held.push([method, text]);
  }

  /** The run says nothing more. */
  end(turn) {
    this.#runs[turn].ended = true;
    while (this.#runs[this.#current]?.ended) {
      this.#current += 1;
      for (const [method, text] of this.#runs[this.#current]?.held.splice(0) ?? []) this.#output[method](text);
    }
  }
}
