import { setTimeout as sleep } from 'node:timers/promises';
import { census } from '../../src/libc/census.ts';

const stableReadings = 4;

/** What this process holds, as text, once it does not change any more: what earlier tests closed takes its time. */
export async function settledCensus(): Promise<string> {
  let last = JSON.stringify(census());
  for (let same = 0; same < stableReadings; ) {
    await sleep(25);
    const now = JSON.stringify(census());
    same = now === last ? same + 1 : 0;
    last = now;
  }
  return last;
}
