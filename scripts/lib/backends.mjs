import { backendPrograms } from '../../deploy/backends/programs.mjs';
import { backendTable } from '../../deploy/backends/table.mjs';

const testDirectory = 'dist/test/backends/';

/** Whether a compiled test file needs programs that `backendEnvironment` prepares. */
export const isBackendTest = (file) => file.startsWith(testDirectory);

/**
 * Makes all backends ready and says which they are.
 * @returns {Promise<Record<string, string>>} environment variables that tell a test how to start them
 * @throws {import('../../deploy/qemu/errors.mjs').XenUnavailable} when something outside the tree is missing
 */
export async function backendEnvironment() {
  process.stderr.write('vhost-user backends:\n');
  const log = (sentence) => process.stderr.write(`${sentence}\n`);
  return { VMSG_BACKEND_PROGRAMS: JSON.stringify(await backendPrograms(Object.keys(backendTable), log)) };
}
