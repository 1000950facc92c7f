import fs from 'node:fs';
import path from 'node:path';
import { VmsgError } from '../kit/errors.ts';
import type { Config } from './config.ts';

export interface ServiceDirs {
  readonly state: string;
  /** Sockets of the buses. */
  readonly buses: string;
  /** Recovery files, one directory for each bus. */
  readonly recovery: string;
  /** One directory for each program that was started; only the service's user reaches them. */
  readonly programs: string;
}

/**
 * Makes the directories of the service. Those that exist must belong to its user, because in a directory of somebody
 * else sockets and recovery files could be replaced.
 * @throws VmsgError `invalid-config` with the pointer of the field, `system-call`
 */
export function prepareDirs(
  { stateDir, runtimeDir }: Pick<Config, 'stateDir' | 'runtimeDir'>,
  uid: number,
): ServiceDirs {
  // Guests of other users that a bus admits must be able to reach its socket when root runs the service.
  const runtimeMode = uid === 0 ? 0o755 : 0o700;
  own(stateDir, 0o700, uid, '/stateDir');
  own(runtimeDir, runtimeMode, uid, '/runtimeDir');
  const buses = path.join(runtimeDir, 'bus');
  const recovery = path.join(runtimeDir, 'recovery');
  own(buses, runtimeMode, uid, '/runtimeDir');
  const programs = path.join(runtimeDir, 'programs');
  own(recovery, 0o700, uid, '/runtimeDir');
  own(programs, 0o700, uid, '/runtimeDir');
  return { state: stateDir, buses, recovery, programs };
}

function own(directory: string, mode: number, uid: number, pointer: string): void {
  try {
    fs.mkdirSync(directory, { recursive: true, mode });
  } catch (error) {
    throw new VmsgError('system-call', `mkdir ${directory}: ${(error as Error).message}`, { pointer, cause: error });
  }
  const found = fs.lstatSync(directory);
  const refuse = (why: string): never => {
    throw new VmsgError('invalid-config', `${directory} ${why}`, { pointer });
  };
  if (found.isSymbolicLink()) refuse('is a symbolic link; name the directory itself');
  if (!found.isDirectory()) refuse('is not a directory');
  if (found.uid !== uid) refuse(`belongs to the user ${found.uid}, not to ${uid}`);
  if ((found.mode & 0o022) !== 0) refuse('can be written by other users');
}
