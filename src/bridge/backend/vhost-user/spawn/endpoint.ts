import type { Clock } from '../../../../kit/clock.ts';
import { VmsgError } from '../../../../kit/errors.ts';
import { limits } from '../../../../kit/limits.ts';
import type { Scope } from '../../../../kit/scope.ts';
import type { Fd } from '../../../../libc/fd.ts';
import type { LaneProgramSpec } from '../../../lane/protocol.ts';
import { connectNow, type Endpoint } from '../endpoint.ts';
import { lockFile } from './file-lock.ts';
import { Program, type ProgramParts } from './program.ts';
import type { Programs } from './programs.ts';

/** A back-end that is started for each connection and ends with it. */
export class SpawnedEndpoint implements Endpoint {
  readonly name: string;
  readonly shadowReason = undefined;
  readonly #spec: LaneProgramSpec;
  readonly #parts: ProgramParts;
  readonly #programs: Programs;
  #hasRun = false;

  constructor(spec: LaneProgramSpec, parts: ProgramParts, programs: Programs) {
    this.name = `the program ${spec.program}`;
    this.#spec = spec;
    this.#parts = parts;
    this.#programs = programs;
  }

  async connect(scope: Scope): Promise<Fd> {
    const { backend, program: name, restart } = this.#spec;
    const { clock } = this.#parts;
    if (this.#hasRun && restart === 'never') {
      throw new VmsgError('backend-unusable', `${name} has ended and is not started again (restart: never)`);
    }
    const endMs = clock.nowMs() + limits.programStartTimeoutMs;
    if (!(await inTime(this.surelyGone(), limits.programStartTimeoutMs, clock))) {
      throw new VmsgError('unavailable', `${name} is not started again: what ran before has not ended yet`);
    }
    const program = await this.#start(scope);
    this.#programs.add(backend, program);
    scope.defer(() => program.end());
    await program.listening(endMs);
    this.#hasRun = true;
    return connectNow(program.socket, scope);
  }

  /** With the lock of its file, which it keeps as long as a process of it can run. */
  async #start(scope: Scope): Promise<Program> {
    const lock = this.#spec.lock === undefined ? undefined : await lockFile(this.#spec.lock);
    try {
      if (scope.closed) throw new VmsgError('unavailable', 'the back-end was given up');
      const program = Program.start(this.#spec, this.#parts);
      void program.gone.then(() => lock?.close());
      return program;
    } catch (error) {
      lock?.close();
      throw error;
    }
  }

  renewed(): void {
    this.#hasRun = false;
  }

  surelyGone(): Promise<void> {
    return this.#programs.gone(this.#spec.backend);
  }

  async close(): Promise<void> {
    const { backend } = this.#spec;
    this.#programs.end(backend);
    const mostMs = limits.programGraceMs + limits.programKillTimeoutMs;
    if (await inTime(this.surelyGone(), mostMs, this.#parts.clock)) return;
    this.#parts.log('warn', 'the device is closed, and not every process of its program has ended');
  }
}

/** @returns false when the time is over */
async function inTime(done: Promise<void>, mostMs: number, clock: Clock): Promise<boolean> {
  let late = (): void => {};
  const over = new Promise<boolean>((resolve) => {
    late = () => resolve(false);
  });
  const timer = clock.after(mostMs, late);
  try {
    return await Promise.race([done.then(() => true), over]);
  } finally {
    timer.cancel();
  }
}
