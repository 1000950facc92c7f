import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import type { Scope } from '../../src/kit/scope.ts';
import type { Sample } from './stats.ts';

/** A program that hangs shall not hang the bench: the longest run is a fraction of this. */
const answerTimeoutMs = 30_000;

export interface ProgramOptions {
  /** Descriptors it inherits, as 3 and up. */
  readonly fds?: readonly number[];
  readonly env?: Readonly<Record<string, string>>;
}

/**
 * A program that takes commands as lines on standard input and answers each with one line. It ends with its input,
 * so that none is left behind when the bench is killed.
 */
export class Runner {
  readonly #name: string;
  readonly #child: ChildProcess;
  readonly #lines: string[] = [];
  #waiting: { resolve: (line: string) => void; reject: (error: Error) => void } | undefined;
  #ended: Error | undefined;

  constructor(command: readonly string[], options: ProgramOptions = {}) {
    const [program = '', ...args] = command;
    this.#name = [program.split('/').at(-1), ...args.map((arg) => arg.split('/').at(-1))].join(' ');
    this.#child = spawn(program, args, {
      stdio: ['pipe', 'pipe', 'inherit', ...(options.fds ?? [])],
      env: { ...process.env, ...options.env },
    });
    createInterface({ input: this.#child.stdout! }).on('line', (line) => this.#onLine(line));
    this.#child.stdin?.on('error', () => {
      // It has ended, which 'exit' tells.
    });
    this.#child.once('error', (error) => this.#end(error));
    this.#child.once('exit', (code, signal) => this.#end(new Error(`${this.#name} ended with ${signal ?? code}`)));
  }

  #onLine(line: string): void {
    const waiting = this.#waiting;
    this.#waiting = undefined;
    if (waiting === undefined) this.#lines.push(line);
    else waiting.resolve(line);
  }

  #end(error: Error): void {
    this.#ended ??= error;
    this.#waiting?.reject(this.#ended);
    this.#waiting = undefined;
  }

  /** The next line it prints. @throws Error when it ends instead, or says nothing */
  async line(): Promise<string> {
    const waiting = this.#lines.shift();
    if (waiting !== undefined) return waiting;
    if (this.#ended !== undefined) throw this.#ended;
    const timer = setTimeout(() => this.#end(new Error(`${this.#name} does not answer`)), answerTimeoutMs);
    try {
      return await new Promise<string>((resolve, reject) => {
        this.#waiting = { resolve, reject };
      });
    } finally {
      clearTimeout(timer);
    }
  }

  async ask(command: string): Promise<string> {
    this.#child.stdin?.write(`${command}\n`);
    return await this.line();
  }

  /** Runs for about `milliseconds`. @param what arguments before the time */
  async run(what: string, milliseconds: number): Promise<Sample> {
    const answer = await this.ask(['run', what, String(milliseconds)].filter((word) => word !== '').join(' '));
    const [count = 0, seconds = 0] = answer.split(' ').map(Number);
    if (!(count > 0 && seconds > 0)) throw new Error(`${this.#name} answered ${JSON.stringify(answer)}`);
    return { count, seconds };
  }

  close(): void {
    this.#child.kill('SIGKILL');
  }
}

/** Starts programs and waits until each has said that it is ready. All end with the scope. */
export async function startRunner(command: readonly string[], scope: Scope, options?: ProgramOptions): Promise<Runner> {
  const runner = scope.own(new Runner(command, options));
  const line = await runner.line();
  if (line !== 'ready') throw new Error(`${command.join(' ')} said ${JSON.stringify(line)}`);
  return runner;
}
