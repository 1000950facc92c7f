import { spawn } from 'node:child_process';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { isListening } from '../../src/bridge/backend/vhost-user/spawn/listening.ts';
import { laneProgramSpec } from '../../src/bridge/service/program-specs.ts';
import type { Scope } from '../../src/kit/scope.ts';
import { temporaryDirectory } from './service.ts';

/** Its name as a type of backends and among the programs of the config file. */
export const storageDaemonName = 'qemu-storage-daemon';
const startTriesMax = 500;
const startPauseMs = 10;

/**
 * Starts one with the arguments that the service gives it, for one front-end at a time; it ends with the scope.
 * @param command what its arguments are appended to. @returns its socket
 */
export async function startStorageDaemon(
  command: readonly string[],
  image: string,
  placed: (command: readonly string[]) => readonly string[],
  scope: Scope,
): Promise<string> {
  const directory = temporaryDirectory(tmpdir(), scope);
  const socket = path.join(directory, 's');
  const sources = { definitions: { [storageDaemonName]: { command: [...command] } }, directory };
  const spec = laneProgramSpec('bench', { type: storageDaemonName, path: image }, sources);
  const words = spec.command.map((pieces) =>
    pieces.map((piece) => (typeof piece === 'string' ? piece : socket)).join(''),
  );
  const [program = '', ...args] = placed(words);
  // A session of its own, as the service gives it: Linux shares processors out between sessions (sched_autogroup).
  const child = spawn(program, args, { stdio: ['ignore', 'inherit', 'inherit'], detached: true });
  scope.defer(() => child.kill('SIGKILL'));
  for (let tries = 0; tries < startTriesMax; tries++) {
    if (isListening(socket)) return socket;
    if (child.exitCode !== null) throw new Error(`${storageDaemonName} ended with ${child.exitCode}`);
    await sleep(startPauseMs);
  }
  throw new Error(`${storageDaemonName} does not listen`);
}
