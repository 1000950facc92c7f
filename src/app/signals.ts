/** Exit code of a process that was told twice to end. */
const impatient = 1;

/** Resolves with the first signal that asks to end; a second one ends at once. */
export function endSignal(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) {
      process.once(signal, () => {
        process.once(signal, () => process.exit(impatient));
        resolve(signal);
      });
    }
  });
}
