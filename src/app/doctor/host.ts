import type { Config } from '../config.ts';
import { type Finding, failureOf, fine, missing, note, type Role } from './finding.ts';
import type { Machine } from './machine.ts';

const oldestNode = [20, 19] as const;

/** What every role needs. */
export function hostFindings(machine: Machine): Finding[] {
  const [major = 0, minor = 0] = machine.nodeVersion.split('.').map(Number);
  const isNew = major > oldestNode[0] || (major === oldestNode[0] && minor >= oldestNode[1]);
  const wanted = oldestNode.join('.');
  const node = `Node.js is ${machine.nodeVersion}`;
  return [
    isNew
      ? fine('node', `${node}.`)
      : missing('node', `${node}, older than ${wanted}.`, `Install Node.js ${wanted} or newer.`),
    machine.platform === 'linux'
      ? fine('linux', 'The system is Linux.')
      : missing('linux', `The system is ${machine.platform}, not Linux.`, 'Run this on Linux.'),
    ...(['memfd', 'eventfd'] as const).map((part) => {
      const failure = failureOf(machine.probe[part]);
      return failure === null
        ? fine(part, `koffi is loaded, and ${part} works.`)
        : missing(part, `${part}: ${failure}`, 'Allow memfd_create and eventfd2 where system calls are filtered.');
    }),
  ];
}

/** How disks reach their images. A guest has none. */
export function diskFindings(machine: Machine, config: Config, role: Role): Finding[] {
  if (role === 'xen-guest') return [];
  const wanted = config.disks.io;
  if (wanted === 'threads') return [fine('disks', 'Disks use the thread pool, as the config says.')];
  const failure = failureOf(machine.probe.io_uring);
  if (failure === null) return [fine('disks', 'Disks use io_uring.')];
  const fix = 'sysctl kernel.io_uring_disabled=0, and allow io_uring where system calls are filtered.';
  return [
    wanted === 'io_uring'
      ? missing('disks', `disks.io is io_uring, and there is none: ${failure}`, fix)
      : note('disks', `Disks use the thread pool, which is slower than io_uring: ${failure}`, fix),
  ];
}

/** Where a service keeps its things. A guest has none. */
export function directoryFindings(machine: Machine, config: Config, role: Role): Finding[] {
  if (role === 'xen-guest') return [];
  return (['stateDir', 'runtimeDir'] as const).map((name) => {
    const path = config[name];
    const found = machine.directory(path);
    if (found === undefined) return creatable(machine, name, path);
    const fix = `chown ${machine.uid} ${path}; chmod go-w ${path}; or name another ${name} in the config file.`;
    if (found.uid !== machine.uid) return missing(name, `${path} belongs to the user ${found.uid}.`, fix);
    if ((found.mode & 0o022) !== 0) return missing(name, `${path} can be written by other users.`, fix);
    return fine(name, `${path} is there.`);
  });
}

function creatable(machine: Machine, name: string, path: string): Finding {
  const parts = path.split('/');
  while (parts.length > 1 && machine.directory(parts.join('/') || '/') === undefined) parts.pop();
  const above = parts.join('/') || '/';
  const errno = machine.reach(above);
  if (errno === null) return note(name, `${path} is made when the service first starts.`);
  return missing(name, `${path} is not there, and ${above} cannot be written (${errno}).`, `mkdir -p ${path} as root.`);
}
