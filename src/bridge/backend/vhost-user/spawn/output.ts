import type { Clock, Timer } from '../../../../kit/clock.ts';
import { limits } from '../../../../kit/limits.ts';
import { Pace } from '../../../../kit/pace.ts';

/** What is read; a stream of node:stream. */
interface Source {
  on(event: 'data', listener: (bytes: Uint8Array) => void): unknown;
  on(event: 'end' | 'error', listener: () => void): unknown;
  pause(): unknown;
  resume(): unknown;
}

/** What a program prints, in lines of bounded length, as many as may be, and the last ones. */
export class ProgramOutput {
  readonly #clock: Clock;
  readonly #log: (line: string) => void;
  readonly #pace: Pace;
  readonly #pauses = new Set<Timer>();
  #tail: string[] = [];
  #suppressed = 0;

  /** @param log gets lines without control characters */
  constructor(clock: Clock, log: (line: string) => void) {
    this.#clock = clock;
    this.#log = log;
    this.#pace = new Pace(clock, limits.programLineBurst, limits.programLineIntervalMs);
  }

  /** Its last lines in one; empty when it has printed nothing. */
  get tail(): string {
    return this.#tail.join(' | ');
  }

  /** Reads a stream to its end. */
  follow(source: Source): void {
    let line: Uint8Array[] = [];
    let length = 0;
    const take = (bytes: Uint8Array): void => {
      const room = limits.programLineMaxBytes - length;
      if (room > 0) line.push(bytes.subarray(0, room));
      length += bytes.length;
    };
    const end = (): void => {
      const text = Buffer.concat(line).toString('utf8');
      const isCut = length > limits.programLineMaxBytes;
      line = [];
      length = 0;
      this.#line(isCut ? `${text}...` : text);
    };
    source.on('data', (bytes) => {
      const before = this.#suppressed;
      let from = 0;
      for (let at = bytes.indexOf(0x0a); at >= 0; at = bytes.indexOf(0x0a, from)) {
        take(bytes.subarray(from, at));
        end();
        from = at + 1;
      }
      take(bytes.subarray(from));
      if (this.#suppressed > before) this.#rest(source);
    });
    source.on('end', end);
    // A pipe that breaks has ended.
    source.on('error', () => {});
  }

  /** One that floods the log must not keep this thread busy: it waits until it is read again. */
  #rest(source: Source): void {
    source.pause();
    const pause = this.#clock.after(limits.programFloodPauseMs, () => {
      this.#pauses.delete(pause);
      source.resume();
    });
    this.#pauses.add(pause);
  }

  #line(raw: string): void {
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what must not reach a terminal
    const text = raw.replace(/[\u0000-\u001f\u007f-\u009f]+/g, ' ').trim();
    if (text === '') return;
    this.#tail = [...this.#tail, text].slice(-limits.programTailLines);
    if (this.#pace.take() > 0) {
      this.#suppressed += 1;
      return;
    }
    this.#tellSuppressed();
    this.#log(text);
  }

  #tellSuppressed(): void {
    if (this.#suppressed > 0) this.#log(`(${this.#suppressed} lines are not shown: it prints too many)`);
    this.#suppressed = 0;
  }

  /** It has ended. */
  close(): void {
    for (const pause of this.#pauses) pause.cancel();
    this.#pauses.clear();
    this.#tellSuppressed();
  }
}
