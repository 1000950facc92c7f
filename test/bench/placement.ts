import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

/**
 * Where the programs of an item run, on both sides alike. `together`: all on one processor, for what goes back and
 * forth one at a time. `apart`: the two ends on two. `free`: wherever the scheduler puts them.
 */
export type Placement = 'together' | 'apart' | 'free';

/**
 * Left alone, the scheduler puts two processes that wake each other now on one processor and now on two, which
 * changes a round trip by more than ten times and says nothing about the programs.
 */
export class Processors {
  readonly #allowed: readonly number[];
  readonly #canPlace: boolean;

  private constructor(allowed: readonly number[], canPlace: boolean) {
    this.#allowed = allowed;
    this.#canPlace = canPlace;
  }

  static find(): Processors {
    const list = /^Cpus_allowed_list:\s*(\S+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '';
    return new Processors(parseCpuList(list), spawnSync('taskset', ['--version']).error === undefined);
  }

  /** Why ratios say less here than they should; empty when nothing is wrong. */
  notes(): string[] {
    if (!this.#canPlace) return ['there is no taskset here: the scheduler places the programs, expect a wide spread'];
    if (this.#allowed.length < 2) return ['one processor: both ends of the ring throughput share it'];
    return [];
  }

  /** The command that runs `command` at its place. @param end 0 or 1: which of the two ends, where they are apart */
  place(command: readonly string[], placement: Placement, end: 0 | 1 = 0): readonly string[] {
    // First and last are hardly ever two threads of one core.
    const cpu = placement === 'apart' && end === 1 ? this.#allowed[0] : this.#allowed.at(-1);
    if (placement === 'free' || !this.#canPlace || cpu === undefined) return command;
    return ['taskset', '-c', String(cpu), ...command];
  }
}

/** Reads `0-2,5`. */
export function parseCpuList(list: string): number[] {
  return list
    .split(',')
    .filter((part) => part !== '')
    .flatMap((part) => {
      const [first = 0, last = first] = part.split('-').map(Number);
      return Array.from({ length: last - first + 1 }, (_, i) => first + i);
    });
}
