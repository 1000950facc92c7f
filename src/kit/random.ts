/** Randomness comes by constructor so that runs with a seed repeat. */
export interface Random {
  /** Fills `target` with random bytes. */
  fill(target: Uint8Array): void;
}
