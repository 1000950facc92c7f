import { limits } from './limits.ts';

/** How long to wait after so many failed tries before this one. */
export const retryDelayMs = (tries: number): number =>
  Math.min(limits.reconcileRetryMinMs * 2 ** tries, limits.reconcileRetryMaxMs);
