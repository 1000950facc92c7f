import { spawn } from 'node:child_process';
import { accessSync, constants, statSync } from 'node:fs';
import path from 'node:path';
import { UserError } from '../../scripts/lib/process.mjs';
import { XenUnavailable } from './errors.mjs';

/** Ordinary users often do not have these in PATH, and programs such as mke2fs lie there. */
const extraDirectories = ['/usr/local/sbin', '/usr/sbin', '/sbin'];

function isProgram(file) {
  try {
    accessSync(file, constants.X_OK);
    return statSync(file).isFile();
  } catch {
    return false;
  }
}

/** @returns {string | undefined} the absolute path of a program of the host */
export function findTool(name, searchPath = process.env.PATH ?? '') {
  const directories = [...searchPath.split(':').filter((directory) => path.isAbsolute(directory)), ...extraDirectories];
  return directories.map((directory) => path.join(directory, name)).find(isProgram);
}

/** Like `findTool`; without the program an error names the Debian package that has it. */
export function needTool(name, debianPackage) {
  const found = findTool(name);
  if (found === undefined) throw new XenUnavailable(`the program ${name} is missing (Debian package ${debianPackage})`);
  return found;
}

/**
 * Runs a program of the host to its end.
 * @param {string[]} command
 * @param {{cwd?: string, input?: Uint8Array, env?: Record<string, string>}} [options] `input` goes to its stdin
 * @returns {Promise<{status: number, stdout: Buffer, stderr: string}>} status 128 after a signal
 */
export function runTool([program, ...args], { cwd, input, env } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      cwd,
      env: env ?? process.env,
      stdio: [input ? 'pipe' : 'ignore', 'pipe', 'pipe'],
    });
    const out = [];
    const err = [];
    child.stdout.on('data', (bytes) => out.push(bytes));
    child.stderr.on('data', (bytes) => err.push(bytes));
    child.once('error', (error) => reject(new UserError(`${program} cannot be run: ${error.message}`)));
    child.once('close', (code) =>
      resolve({ status: code ?? 128, stdout: Buffer.concat(out), stderr: Buffer.concat(err).toString() }),
    );
    // A program that ends early breaks the pipe; its status tells why.
    child.stdin?.on('error', () => {});
    child.stdin?.end(input);
  });
}

/** Like `runTool`, returns stdout; a status other than 0 is an error with what the program said. */
export async function needSuccess(command, options) {
  const { status, stdout, stderr } = await runTool(command, options);
  if (status === 0) return stdout;
  const said = stderr.trim().split('\n').slice(-8).join('\n');
  throw new UserError(`${path.basename(command[0])} ended with status ${status}: ${said}`);
}
