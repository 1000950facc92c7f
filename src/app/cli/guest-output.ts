import { Writable } from 'node:stream';
import type { Clock } from '../../kit/clock.ts';
import { systemClock } from '../../kit/clock.ts';
import { CliError, exitCode } from './exit-codes.ts';
import type { CliIo } from './io.ts';

/** Writes and waits until the stream has taken it. @throws CliError when the reader is gone or the device full */
export async function writeOut(stream: CliIo['stdout'], data: string | Uint8Array): Promise<void> {
  if (!(stream instanceof Writable)) {
    stream.write(data);
    return;
  }
  await new Promise<void>((resolve, reject) => {
    const fail = (error: Error): void => reject(new CliError(exitCode.ioError, `stdout: ${error.message}`));
    // A failed write is told twice; an event without a listener would end the process.
    stream.once('error', fail);
    stream.write(data, (error) => {
      if (error) {
        fail(error);
        return;
      }
      stream.off('error', fail);
      resolve();
    });
  });
}

const reportEveryMs = 2_000;

export const megabytesPerSecond = (bytes: number, ms: number): number =>
  Number((bytes / 1000 / Math.max(ms, 0.001)).toFixed(1));

/** Tells how far long work is, every two seconds at most. */
export class Progress {
  readonly #total: number;
  readonly #report: (done: number, total: number, mbPerSecond: number) => void;
  readonly #clock: Clock;
  readonly #startMs: number;
  #reportedMs: number;
  #done = 0;

  constructor(
    total: number,
    report: (done: number, total: number, mbPerSecond: number) => void,
    clock: Clock = systemClock,
  ) {
    this.#total = total;
    this.#report = report;
    this.#clock = clock;
    this.#startMs = clock.nowMs();
    this.#reportedMs = this.#startMs;
  }

  /** Milliseconds since the start. */
  get elapsedMs(): number {
    return this.#clock.nowMs() - this.#startMs;
  }

  get mbPerSecond(): number {
    return megabytesPerSecond(this.#done, this.elapsedMs);
  }

  add(bytes: number): void {
    this.#done += bytes;
    const now = this.#clock.nowMs();
    if (now - this.#reportedMs < reportEveryMs) return;
    this.#reportedMs = now;
    this.#report(this.#done, this.#total, this.mbPerSecond);
  }
}

/** Progress as lines on stderr. */
export function stderrProgress(io: CliIo, verb: string, total: number): Progress {
  return new Progress(total, (done, all, speed) => {
    const percent = all === 0 ? 100 : Math.floor((100 * done) / all);
    io.stderr.write(`${verb}: ${percent} %, ${done} of ${all} bytes, ${speed} MB/s\n`);
  });
}
