import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { isListening } from '../../src/bridge/backend/vhost-user/spawn/listening.ts';
import type { BackendProgram } from './backend-programs.ts';

const pollMs = 5;
/** A backend of another project that runs until it is killed. */
export class BackendProcess {
  readonly #child: ChildProcess;
  /** Settles when the program has ended. */
  readonly ended: Promise<{ readonly code: number | null; readonly signal: NodeJS.Signals | null }>;
  #output = '';

  private constructor(child: ChildProcess) {
    this.#child = child;
    const take = (text: unknown): void => {
      this.#output += String(text);
    };
    child.stdout?.on('data', take);
    child.stderr?.on('data', take);
    this.ended = once(child, 'close').then(([code, signal]) => ({ code, signal }));
  }

  /**
   * Starts a program and waits until it listens.
   * @param socket that the arguments name
   * @throws when it ends before that; the message has what it printed
   */
  static async start(program: BackendProgram, args: readonly string[], socket: string): Promise<BackendProcess> {
    const [file = '', ...first] = program.command;
    const backend = new BackendProcess(spawn(file, [...first, ...args], { stdio: ['ignore', 'pipe', 'pipe'] }));
    while (!isListening(socket)) {
      if (backend.hasEnded) throw new Error(`${file} ended at its start: ${backend.#output}`);
      await sleep(pollMs);
    }
    return backend;
  }

  /** What it has printed. */
  get output(): string {
    return this.#output;
  }

  get hasEnded(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    this.#child.kill(signal);
    await this.ended;
  }
}
