import type { BackendBase } from '../ports/backend.ts';

/**
 * The configuration of a backend, with what a driver had written to it where the backend takes that again.
 * @param config as the backend has it now
 * @param saved as the driver knew it, as long
 * @param refused called later when the backend took its time and then did not take it: the driver counts on it
 */
export function restoredConfig(
  backend: BackendBase,
  config: Uint8Array,
  saved: Uint8Array,
  refused: (reason: string) => void,
): Uint8Array {
  const restored = config.slice();
  for (const { offset, length } of backend.description.driverConfig ?? []) {
    const written = saved.slice(offset, offset + length);
    if (Buffer.compare(written, restored.subarray(offset, offset + length)) === 0) continue;
    const accepted = backend.writeConfig(offset, written);
    if (accepted !== false) restored.set(written, offset);
    if (typeof accepted === 'boolean') continue;
    void accepted.then((taken) => {
      if (!taken) refused(`the device does not take its configuration at ${offset} again`);
    });
  }
  return restored;
}
