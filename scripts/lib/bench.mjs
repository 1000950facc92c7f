import { XenUnavailable } from '../../deploy/qemu/errors.mjs';
import { backendEnvironment } from './backends.mjs';
import { prepare } from './build.mjs';
import { run } from './process.mjs';

/** The verb: measures in a process of its own, so that what ends the measuring cannot end this one half-way. */
export async function bench(args) {
  await prepare();
  return await run([process.execPath, 'dist/test/bench/main.js', ...args], { env: await environment() });
}

/** The bench leaves out what it cannot compare with, and says so. */
async function environment() {
  try {
    return await backendEnvironment(['qemu-storage-daemon']);
  } catch (error) {
    if (!(error instanceof XenUnavailable)) throw error;
    process.stderr.write(`${error.message}\n`);
    return {};
  }
}
