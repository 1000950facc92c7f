import type { CliIo } from '../cli/io.ts';
import { table } from '../cli/table.ts';

/** Tells what happens, as it happens: numbered chapters, indented facts, one progress line in a terminal. */
export class Story {
  readonly #io: CliIo;
  readonly #live: boolean;
  #chapter = 0;

  constructor(io: CliIo, live: boolean) {
    this.#io = io;
    this.#live = live;
  }

  chapter(title: string): void {
    this.#chapter += 1;
    this.#io.stdout.write(`\n${this.#chapter}. ${title}\n`);
  }

  fact(text: string): void {
    this.#io.stdout.write(`${this.#clear()}   ${text}\n`);
  }

  /** On a terminal the line is overwritten by the next one. */
  progress(text: string): void {
    if (this.#live) this.#io.stdout.write(`${this.#clear()}   ${text}`);
    else this.#io.stdout.write(`   ${text}\n`);
  }

  table(header: readonly string[], rows: readonly (readonly string[])[]): void {
    for (const line of table(header, rows).trimEnd().split('\n')) this.fact(line);
  }

  text(text: string): void {
    this.#io.stdout.write(text);
  }

  #clear(): string {
    return this.#live ? '\r\u001b[K' : '';
  }
}

const units = ['B', 'KiB', 'MiB', 'GiB'] as const;

export function humanBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${units[unit]}`;
}
