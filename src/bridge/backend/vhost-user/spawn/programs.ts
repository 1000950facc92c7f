import type { Program } from './program.ts';

/** The programs of a lane that may still run, by backend: a device that left and came back has a new endpoint. */
export class Programs {
  readonly #running = new Map<string, Set<Program>>();

  add(backend: string, program: Program): void {
    const programs = this.#running.get(backend) ?? new Set();
    this.#running.set(backend, programs.add(program));
    void program.gone.then(() => {
      programs.delete(program);
      if (programs.size === 0 && this.#running.get(backend) === programs) this.#running.delete(backend);
    });
  }

  /** Ends those of a backend. */
  end(backend: string): void {
    for (const program of this.#running.get(backend) ?? []) program.end();
  }

  /** Resolves when no process of an earlier program of the backend can run any more. */
  async gone(backend: string): Promise<void> {
    await Promise.all([...(this.#running.get(backend) ?? [])].map((program) => program.gone));
  }
}
