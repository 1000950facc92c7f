import assert from 'node:assert/strict';
import { fileURLToPath } from 'node:url';
import type { CommandPlace, DomainCommand } from './domains.ts';

/** Programs for guests. The compiled tree is at the same place in dom0 and in every domU. */
const programs = {
  data: '../guests/data.js',
  devices: '../guests/devices.js',
  follower: '../guests/follower.js',
  hostile: '../guests/hostile.js',
  latency: '../guests/latency.js',
  load: '../guests/load.js',
  visitor: '../guests/visitor.js',
} as const;

const waitMs = 60_000;
const shownLines = 30;

interface Typed {
  readonly type: string;
}
type LineOf<L extends Typed, T extends L['type']> = Extract<L, { readonly type: T }>;

/** A program of ours in a guest, which prints one JSON object a line. */
export class GuestProgram<L extends Typed> {
  readonly #name: string;
  readonly #command: DomainCommand;
  readonly #lines: L[] = [];
  /** Looks at the lines again; called when one has come, and at the end. */
  readonly #waiting = new Set<() => void>();
  #ended: string | undefined;

  private constructor(name: string, command: DomainCommand) {
    this.#name = name;
    this.#command = command;
    command.onLine((line) => {
      if (line.startsWith('{')) this.#lines.push(JSON.parse(line) as L);
      this.#wake();
    });
    const ended = (how: string): void => {
      this.#ended = how;
      this.#wake();
    };
    command.ended.then(
      (code) => ended(`it ended with ${code}`),
      (error: Error) => ended(error.message),
    );
  }

  /** @param order what it has to do, its one argument */
  static async start<L extends Typed>(
    place: CommandPlace,
    name: keyof typeof programs,
    order: object,
  ): Promise<GuestProgram<L>> {
    const file = fileURLToPath(new URL(programs[name], import.meta.url));
    const command = await place.start(`exec node ${file} '${JSON.stringify(order)}'`);
    return new GuestProgram<L>(`${name} in ${place.name}`, command);
  }

  #wake(): void {
    for (const look of this.#waiting) look();
  }

  /** Lines of one type, from the beginning. */
  all<T extends L['type']>(type: T): LineOf<L, T>[] {
    return this.#lines.filter((line): line is LineOf<L, T> => line.type === type);
  }

  /** The first line of a type that comes from now on, and fits. */
  next<T extends L['type']>(type: T, fits: (line: LineOf<L, T>) => boolean = () => true): Promise<LineOf<L, T>> {
    const seen = this.all(type).length;
    return this.#until(type, () => this.all(type).slice(seen).find(fits));
  }

  /** Until it has printed so many lines of a type since it began. */
  count<T extends L['type']>(type: T, lines: number): Promise<LineOf<L, T>> {
    return this.#until(type, () => this.all(type)[lines - 1]);
  }

  /** SIGTERM, until it has ended in order. */
  async stop(): Promise<void> {
    await this.#command.kill('TERM');
    const code = await this.#command.ended;
    assert.equal(code, 0, this.#describe(`ended with ${code}`));
  }

  /** SIGTERM. @returns what it printed at its end */
  async end<T extends L['type']>(type: T): Promise<LineOf<L, T>> {
    await this.stop();
    const last = this.all(type).at(-1);
    assert.ok(last !== undefined, this.#describe(`no line ${type}`));
    return last;
  }

  #until<T>(type: string, look: () => T | undefined): Promise<T> {
    return new Promise((resolve, reject) => {
      const settle = (end: () => void): void => {
        clearTimeout(timer);
        this.#waiting.delete(check);
        end();
      };
      const fail = (why: string): void => settle(() => reject(new Error(this.#describe(`no line ${type}: ${why}`))));
      const timer = setTimeout(() => fail(`nothing for ${waitMs / 1000} s`), waitMs);
      const check = (): void => {
        const found = look();
        if (found !== undefined) settle(() => resolve(found));
        else if (this.#ended !== undefined) fail(this.#ended);
      };
      this.#waiting.add(check);
      check();
    });
  }

  #describe(problem: string): string {
    return [`${this.#name}: ${problem}; it printed:`, ...this.#command.lines.slice(-shownLines)].join('\n');
  }
}
