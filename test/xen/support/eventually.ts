import { eventually as look } from '../../support/service-process.ts';

/** On the one processor that everything shares, looking is work that others wait for. */
export const lookPauseMs = 100;
const tries = 400;

/** Looks again until `probe` accepts. */
export const eventually = <T>(probe: () => Promise<T | undefined>, what: string): Promise<T> =>
  look(probe, what, tries, lookPauseMs);
