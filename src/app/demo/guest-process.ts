import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { CliError, exitCode } from '../cli/exit-codes.ts';
import { mainProgram } from '../main-program.ts';

/** One line of `vmsg guest tour`. */
export interface TourEvent {
  readonly event: string;
  readonly [field: string]: unknown;
}

/** A guest as a process of its own, which shares nothing with the service but its bus. */
export class GuestProcess {
  readonly #child: ChildProcess;
  #stderr = '';

  /** @param args what follows `vmsg guest` */
  constructor(args: readonly string[]) {
    this.#child = spawn(process.execPath, [mainProgram, 'guest', ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
    this.#child.stderr?.on('data', (text) => {
      this.#stderr += String(text);
    });
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** Resolves with the first line it prints. @throws CliError with what it said instead */
  async firstLine(): Promise<string> {
    for await (const line of createInterface({ input: this.#child.stdout! })) return line;
    throw new CliError(exitCode.failed, `the guest failed: ${this.#stderr.trim()}`);
  }

  /** Of a tour: passes every event on, in order; resolves when the guest has ended well. @throws CliError with what it said */
  async run(onEvent: (event: TourEvent) => Promise<void>): Promise<void> {
    const exited = new Promise<number>((resolve) => {
      this.#child.once('exit', (code) => resolve(code ?? exitCode.failed));
      this.#child.once('error', () => resolve(exitCode.failed));
    });
    for await (const line of createInterface({ input: this.#child.stdout! }))
      await onEvent(JSON.parse(line) as TourEvent);
    const code = await exited;
    if (code !== 0) throw new CliError(code, `the guest failed: ${this.#stderr.trim() || `exit code ${code}`}`);
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }
}
