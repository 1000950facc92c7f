import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SpawnedEndpoint } from '../../src/bridge/backend/vhost-user/spawn/endpoint.ts';
import { Programs } from '../../src/bridge/backend/vhost-user/spawn/programs.ts';
import type { LaneProgramSpec } from '../../src/bridge/lane/protocol.ts';
import { type Clock, systemClock, type Timer } from '../../src/kit/clock.ts';
import { Scope } from '../../src/kit/scope.ts';
import { leadersIn } from './programs.ts';

/** Time that passes faster from some moment on. */
class HurriedClock implements Clock {
  #times = 1;
  #sinceMs = 0;
  #baseMs = 0;

  hurry(times: number): void {
    this.#baseMs = this.nowMs();
    this.#sinceMs = systemClock.nowMs();
    this.#times = times;
  }

  nowMs(): number {
    return this.#baseMs + (systemClock.nowMs() - this.#sinceMs) * this.#times;
  }

  after(delayMs: number, callback: () => void): Timer {
    return systemClock.after(delayMs / this.#times, callback);
  }
}

/** A program that listens, and runs a piece of JavaScript before; `server` is a net.Server, `connection` its event. */
export const listener = (before = '', onConnection = 'c => c.on("error", () => {})'): string[] => [
  process.execPath,
  '-e',
  `${before};require('net').createServer(${onConnection}).listen(process.argv[1])`,
  '{socket}',
];

/** Programs that are small scripts, with a directory and a log of their own. */
class ProgramBench {
  readonly directory = mkdtempSync(join(tmpdir(), 'vmsg-prog-'));
  readonly lines: string[] = [];
  readonly #clock = new HurriedClock();
  readonly #programs = new Programs();
  readonly #endpoints: SpawnedEndpoint[] = [];

  /** Waits are so many times shorter from now on. */
  hurry(times: number): void {
    this.#clock.hurry(times);
  }

  /** @param command `{socket}` alone in an argument stands for the socket */
  endpoint(command: readonly string[], more: Partial<LaneProgramSpec> = {}): SpawnedEndpoint {
    const spec: LaneProgramSpec = {
      type: 'program',
      device: 'blk',
      backend: 'b',
      program: 'fake',
      package: null,
      command: command.map((argument) => [argument === '{socket}' ? { put: 'socket' } : argument]),
      directory: this.directory,
      restart: 'always',
      ...more,
    };
    const log = (level: string, text: string) => this.lines.push(`${level} ${text}`);
    const parts = { clock: this.#clock, log, searchPath: process.env.PATH ?? '' };
    const endpoint = new SpawnedEndpoint(spec, parts, this.#programs);
    this.#endpoints.push(endpoint);
    return endpoint;
  }

  /** Pids of the first processes. */
  get leaders(): number[] {
    return leadersIn(this.directory).map(({ pid }) => pid);
  }

  async close(): Promise<void> {
    for (const endpoint of this.#endpoints) await endpoint.close();
    rmSync(this.directory, { recursive: true });
  }
}

/** Runs a test with programs; in the end none may be left. */
export async function withPrograms(run: (bench: ProgramBench, scope: Scope) => Promise<void>): Promise<void> {
  const bench = new ProgramBench();
  const scope = new Scope();
  try {
    await run(bench, scope);
  } finally {
    scope.close();
    await bench.close();
  }
}
