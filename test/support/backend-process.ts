import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import type { BackendProgram } from './backend-programs.ts';

const pollMs = 5;
/** Of a socket in /proc/net/unix that listens. */
const listening = '00010000';

/**
 * Whether somebody listens on a Unix socket. A file is there before that, and a connection on trial would end virtiofsd.
 * @param table text of /proc/net/unix
 */
export function isListening(path: string, table: string): boolean {
  return table.split('\n').some((line) => {
    const [, , , flags, , , , ...name] = line.trim().split(/\s+/);
    return flags === listening && name.join(' ') === path;
  });
}

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
    while (!isListening(socket, readFileSync('/proc/net/unix', 'utf8'))) {
      if (backend.#hasEnded) throw new Error(`${file} ended at its start: ${backend.#output}`);
      await sleep(pollMs);
    }
    return backend;
  }

  /** What it has printed. */
  get output(): string {
    return this.#output;
  }

  get #hasEnded(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    this.#child.kill(signal);
    await this.ended;
  }
}
