import { limits } from './limits.ts';

/** How long to wait after so many failed tries before this one. @param minMs after none */
export const retryDelayMs = (tries: number, minMs: number = limits.reconcileRetryMinMs): number =>
  Math.min(minMs * 2 ** tries, limits.reconcileRetryMaxMs);
