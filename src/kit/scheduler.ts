/** When deferred work runs. It comes by constructor so that a simulator can reorder it. */
export interface Scheduler {
  /** At the end of the current turn, before any new input: batches what one input caused. */
  soon(work: () => void): void;
  /** After others have had their turn: a long job yields. */
  later(work: () => void): void;
}

export const systemScheduler: Scheduler = {
  soon: (work) => queueMicrotask(work),
  later: (work) => {
    setImmediate(work);
  },
};
