import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Clock } from '../../../../kit/clock.ts';
import { VmsgError } from '../../../../kit/errors.ts';
import { limits } from '../../../../kit/limits.ts';
import type { LaneProgramSpec } from '../../../lane/protocol.ts';
import { commandLine, minimalEnvironment } from './command.ts';
import { isListening } from './listening.ts';
import { ProgramOutput } from './output.ts';
import { killNow, membersOf, type ProcessRow, processRow } from './processes.ts';
import { directoryVariable, writeRecord } from './record.ts';

export type ProgramLog = (level: 'info' | 'warn', text: string) => void;

/** What a program needs besides its description. */
export interface ProgramParts {
  readonly clock: Clock;
  readonly log: ProgramLog;
  /** PATH, to look for programs. */
  readonly searchPath: string;
}

/** One start of a program of others, from its first process to the end of its last one. */
export class Program {
  /** Path of the socket that it was told to listen on. */
  readonly socket: string;
  /** Settles when no process of its session can run any more; not before, however long that takes. */
  readonly gone: Promise<void>;
  readonly #spec: LaneProgramSpec;
  readonly #parts: ProgramParts;
  readonly #directory: string;
  readonly #output: ProgramOutput;
  readonly #child: ChildProcess;
  #finish: () => void = () => {};
  /** How it ended, in words. */
  #exit: string | undefined;
  #ending = false;
  /** Nothing that is left of it may go on. */
  #killing = false;
  /** Told already. */
  #isRefused = false;

  private constructor(spec: LaneProgramSpec, parts: ProgramParts, directory: string) {
    this.#spec = spec;
    this.#parts = parts;
    this.#directory = directory;
    this.socket = socketIn(directory);
    this.gone = new Promise((resolve) => {
      this.#finish = resolve;
    });
    const [file, ...args] = commandLine(spec, this.socket, parts.searchPath);
    this.#output = new ProgramOutput(parts.clock, (line) => parts.log('info', line));
    this.#child = spawned(file, args, {
      cwd: '/',
      env: minimalEnvironment({ [directoryVariable]: directory }),
      // A session of its own, so that its children are found. Descriptor 3 tells its guard that the service is there.
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
    });
  }

  /**
   * Starts a program in a directory of its own, and records it.
   * @throws VmsgError backend-unusable: it cannot be run; system-call
   */
  static start(spec: LaneProgramSpec, parts: ProgramParts): Program {
    const directory = makeDirectory(spec);
    try {
      const program = new Program(spec, parts, directory);
      program.#follow();
      return program;
    } catch (error) {
      rmSync(directory, { recursive: true, force: true });
      throw error;
    }
  }

  #follow(): void {
    const child = this.#child;
    const { pid } = child;
    let failure: Error | undefined;
    child.on('error', (error) => {
      failure = error;
      if (pid === undefined) this.#ended(`cannot be started: ${error.message}`);
    });
    if (pid === undefined) return;
    for (const stream of [child.stdout, child.stderr]) if (stream !== null) this.#output.follow(stream);
    // Until the guard has gone; nothing is written or read.
    child.stdio[3]?.on('error', () => {});
    child.on('exit', (code, signal) => {
      const how = signal === null ? `ended with status ${code}` : `was ended by ${signal}`;
      // Its children, and its guard.
      this.#kill();
      const done = (): void => this.#ended(failure === undefined ? how : `${how}: ${failure.message}`);
      // What it said last may still be in the pipe; a process that left the session may hold that open.
      const late = this.#parts.clock.after(limits.programLookMaxMs, done);
      child.stdout?.resume();
      child.stderr?.resume();
      child.once('close', () => {
        late.cancel();
        done();
      });
    });
    try {
      this.#record(pid);
    } catch (error) {
      this.#kill();
      throw new VmsgError('system-call', `${this.#directory}: ${(error as Error).message}`, { cause: error });
    }
  }

  #record(pid: number): void {
    const { backend, program } = this.#spec;
    // Nobody has waited for it yet: the row is there even if it has ended.
    const row = processRow(pid);
    if (row === undefined) throw new Error(`process ${pid} is not in /proc`);
    writeRecord(this.#directory, { backend, program, pid, startTime: row.startTime });
    this.#parts.log('info', `started as process ${pid}`);
  }

  #ended(how: string): void {
    if (this.#exit !== undefined) return;
    this.#exit = how;
    this.#output.close();
    this.#parts.log(this.#ending ? 'info' : 'warn', how);
    this.#awaitRest(this.#parts.clock.nowMs(), 1);
  }

  /** Looks until no process of the session is there any more. */
  #awaitRest(sinceMs: number, pauseMs: number): void {
    const { clock, log } = this.#parts;
    const members = this.#members();
    const [member] = members ?? [];
    if (members !== undefined && member === undefined) {
      this.#child.stdio[3]?.destroy();
      rmSync(this.#directory, { recursive: true, force: true });
      this.#finish();
      return;
    }
    this.#kill();
    const isLate = clock.nowMs() - sinceMs > limits.programKillTimeoutMs;
    if (isLate && pauseMs <= limits.programLookMaxMs) {
      log(
        'warn',
        member === undefined ? 'nobody tells whether it has gone' : `process ${member.pid} of it was killed and stays`,
      );
    }
    const next = isLate ? limits.programKillTimeoutMs : Math.min(2 * pauseMs, limits.programLookMaxMs);
    clock.after(pauseMs, () => this.#awaitRest(sinceMs, next));
  }

  #kill(): void {
    const { pid } = this.#child;
    this.#killing = true;
    if (pid === undefined) return;
    // While a member is there, the number of the group is nobody else's.
    this.#signal(-pid, 'SIGKILL');
    for (const member of this.#members() ?? []) this.#signal(member.pid, 'SIGKILL');
  }

  /** Undefined when the kernel does not tell: nothing is known then. */
  #members(): ProcessRow[] | undefined {
    const { pid } = this.#child;
    try {
      return pid === undefined ? [] : membersOf(pid);
    } catch {
      return undefined;
    }
  }

  #signal(pid: number, signal: 'SIGTERM' | 'SIGKILL'): void {
    if (killNow(pid, signal) !== 'refused' || this.#isRefused) return;
    this.#isRefused = true;
    this.#parts.log('warn', `the service may not end process ${Math.abs(pid)}: it lacks CAP_KILL`);
  }

  /**
   * Resolves when the program listens on its socket.
   * @param endMs on the clock, when that counts as failed
   * @throws VmsgError backend-unusable: it has ended; unavailable: it does not listen in time, or is to end
   */
  async listening(endMs: number): Promise<void> {
    const { clock } = this.#parts;
    const { program } = this.#spec;
    for (let pauseMs = 2; ; pauseMs = Math.min(2 * pauseMs, limits.programLookMaxMs)) {
      if (this.#ending) throw new VmsgError('unavailable', `${program} was given up`);
      if (this.#exit !== undefined)
        throw new VmsgError('backend-unusable', this.#lastWords(`${this.#exit} at its start`));
      if (this.#isListening()) return;
      if (clock.nowMs() > endMs) {
        throw new VmsgError('unavailable', this.#lastWords('does not listen on its socket in time'));
      }
      await new Promise<void>((resolve) => {
        clock.after(pauseMs, resolve);
      });
    }
  }

  /** @throws VmsgError system-call */
  #isListening(): boolean {
    try {
      return isListening(this.socket);
    } catch (error) {
      throw new VmsgError('system-call', `/proc/net/unix: ${(error as Error).message}`, { cause: error });
    }
  }

  #lastWords(what: string): string {
    const { tail } = this.#output;
    return `${this.#spec.program} ${what}${tail === '' ? ', without a word' : `: ${tail}`}`;
  }

  /** It gets some time to end by itself, then it is killed; `gone` tells when that is done. Idempotent. */
  end(): void {
    if (this.#ending) return;
    this.#ending = true;
    const { pid } = this.#child;
    if (pid === undefined || this.#exit !== undefined || this.#killing) return;
    this.#signal(-pid, 'SIGTERM');
    const late = this.#parts.clock.after(limits.programGraceMs, () => {
      this.#parts.log('warn', 'does not end by itself and is killed');
      this.#kill();
    });
    void this.gone.then(() => late.cancel());
  }
}

/** @throws VmsgError system-call: there is no room for another process or its pipes */
function spawned(...call: Parameters<typeof spawn>): ChildProcess {
  try {
    return spawn(...call);
  } catch (error) {
    throw new VmsgError('system-call', `${call[0]}: ${(error as Error).message}`, { cause: error });
  }
}

const socketIn = (directory: string): string => join(directory, 's');

/** @throws VmsgError backend-unusable, system-call */
function makeDirectory({ directory, backend, program }: LaneProgramSpec): string {
  const prefix = join(directory, `${backend}-`);
  const socket = socketIn(`${prefix}123456`);
  if (Buffer.byteLength(socket) > limits.unixSocketPathMaxBytes) {
    const most = `${limits.unixSocketPathMaxBytes} bytes, the most a Unix socket can have`;
    const why = `the path of its socket, like ${socket}, is longer than ${most}`;
    throw new VmsgError('backend-unusable', `${program}: ${why}: choose a shorter id, or a shorter runtimeDir`);
  }
  try {
    return mkdtempSync(prefix);
  } catch (error) {
    throw new VmsgError('system-call', `${prefix}: ${(error as Error).message}`, { cause: error });
  }
}
