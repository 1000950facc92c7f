import { prepare } from './build.mjs';
import { run } from './process.mjs';

/** The verb: measures in a process of its own, so that what ends the measuring cannot end this one half-way. */
export async function bench(args) {
  await prepare();
  return await run([process.execPath, 'dist/test/bench/main.js', ...args]);
}
