import { createInterface } from 'node:readline';
import type { Work } from './disk-load.ts';

/** Says that the program is ready, then answers commands, one a line, until there are no more. */
export async function serveCommands(answer: (words: readonly string[]) => Promise<string>): Promise<never> {
  console.log('ready');
  for await (const line of createInterface({ input: process.stdin })) console.log(await answer(line.split(' ')));
  process.exit(0);
}

/** The answer to `run`: how often, in how many seconds. */
export const workText = ({ count, ms }: Work): string => `${count} ${ms / 1000}`;
