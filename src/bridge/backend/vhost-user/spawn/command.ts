import { accessSync, constants, readFileSync, statSync } from 'node:fs';
import { delimiter, isAbsolute, join } from 'node:path';
import { VmsgError } from '../../../../kit/errors.ts';
import { limits } from '../../../../kit/limits.ts';
import type { LaneProgramSpec, ProgramArgument } from '../../../lane/protocol.ts';

/** What a program finds in PATH. */
const systemPath = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';
/** Debian keeps programs there that others start. */
const helperDirectories = ['/usr/libexec', '/usr/lib/qemu'];

/**
 * The shell that becomes the program. Before that it leaves a guard in the process group, which kills the group when
 * the other end of descriptor 3 is closed: with the service, however that ends. The guard is nobody's child.
 */
const guarded = '( ( trap "" TERM; read -r _ <&3; kill -KILL 0 ) & ) </dev/null >/dev/null 2>&1; exec "$@" 3<&-';

/** @throws VmsgError backend-unusable: where it was looked for, and which package has it */
function findProgram(file: string, { program, package: debian }: LaneProgramSpec, searchPath: string): string {
  if (isAbsolute(file)) {
    if (isExecutable(file)) return file;
    throw new VmsgError('backend-unusable', `${program}: ${file} is no program that can be run`);
  }
  const directories = [...searchPath.split(delimiter).filter(isAbsolute), ...helperDirectories];
  const found = directories.map((directory) => join(directory, file)).find(isExecutable);
  if (found !== undefined) return found;
  const hint = debian === null ? '' : `; Debian has it in the package ${debian}`;
  const where = `PATH, ${helperDirectories.join(' or ')}`;
  throw new VmsgError('backend-unusable', `${program}: there is no ${file} in ${where}${hint}`);
}

/**
 * A tool of util-linux, by its path: a shell may have another one of this name built in, as busybox does.
 * @throws VmsgError backend-unusable
 */
function findTool(name: string, searchPath: string): string {
  const directories = `${systemPath}${delimiter}${searchPath}`.split(delimiter).filter(isAbsolute);
  const found = directories.map((directory) => join(directory, name)).find(isExecutable);
  if (found !== undefined) return found;
  throw new VmsgError('backend-unusable', `there is no ${name} in PATH; Debian has it in the package util-linux`);
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

function argumentText(argument: ProgramArgument, socket: string): string {
  const pieces = argument.map((piece) => {
    if (typeof piece === 'string') return piece;
    return piece.put === 'socket' ? socket : socket.replaceAll(',', ',,');
  });
  return pieces.join('');
}

/** What this process may raise its own number of open files to. */
function ownOpenFiles(): number {
  const line = /^Max open files\s+\S+\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'latin1'));
  return line === null ? limits.programOpenFilesDefault : Number(line[1]);
}

/**
 * The whole command line of a program. With the thread that starts it the kernel kills it (--pdeathsig), as long as it
 * keeps its user; that no file can give it another one (--no-new-privs) also keeps it within reach of our signals. The
 * limits are for itself: RLIMIT_NPROC counts all processes of a user, RLIMIT_AS memory of guests.
 * @throws VmsgError backend-unusable
 */
export function commandLine(spec: LaneProgramSpec, socket: string, searchPath: string): [string, ...string[]] {
  const [name = '', ...args] = spec.command.map((argument) => argumentText(argument, socket));
  const file = findProgram(name, spec, searchPath);
  const openFiles = spec.openFiles ?? Math.min(limits.programOpenFilesDefault, ownOpenFiles());
  const memory = spec.memoryBytes ?? limits.programMemoryDefaultBytes;
  const bounds = ['--core=0', `--nofile=${openFiles}`, `--data=${memory}`];
  const [setpriv, prlimit] = [findTool('setpriv', searchPath), findTool('prlimit', searchPath)];
  const privileges = [setpriv, '--pdeathsig', 'KILL', '--no-new-privs', '--'];
  return ['/bin/sh', '-c', guarded, 'vmsg-program', ...privileges, prlimit, ...bounds, '--', file, ...args];
}

/** All that a program finds in its environment, with a variable of ours. */
export const minimalEnvironment = (own: Readonly<Record<string, string>>): Record<string, string> => ({
  PATH: systemPath,
  LANG: 'C.UTF-8',
  ...own,
});
