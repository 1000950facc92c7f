import { readdirSync, readFileSync, readlinkSync } from 'node:fs';

/** One process of the machine, from /proc/<pid>/stat (proc(5)). */
export interface ProcessRow {
  readonly pid: number;
  /** Leader of its process group, and of its session. */
  readonly group: number;
  readonly session: number;
  /** Ticks from the start of the machine; with the pid it names one process for good. */
  readonly startTime: string;
  /** It has no memory and runs no code any more: only its parent's wait is missing. */
  readonly isDead: boolean;
  /** False while it is ending: the kernel takes its memory apart. */
  readonly hasMemory: boolean;
}

/** @param text of /proc/<pid>/stat. @returns undefined for what is none */
export function parseStat(text: string): ProcessRow | undefined {
  // The name is in brackets and may have any character, brackets too.
  const end = text.lastIndexOf(')');
  const fields = text.slice(end + 2).split(' ');
  const [state, , group, session] = fields;
  // Fields 20, 22 and 23 of stat; the third one is the first here.
  const [threads, startTime, memoryBytes] = [fields[17], fields[19], fields[20]];
  if (end < 0 || session === undefined || startTime === undefined) return undefined;
  // The first thread of a process may be a zombie while others run.
  const isDead = state === 'X' || (state === 'Z' && Number(threads) <= 1);
  const hasMemory = memoryBytes !== '0';
  return {
    pid: Number.parseInt(text, 10),
    group: Number(group),
    session: Number(session),
    startTime,
    isDead,
    hasMemory,
  };
}

/** @returns undefined when there is no such process. @throws Error when the kernel does not tell, as for lack of descriptors */
export function processRow(pid: number): ProcessRow | undefined {
  try {
    return parseStat(readFileSync(`/proc/${pid}/stat`, 'latin1'));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ESRCH') return undefined;
    throw error;
  }
}

/**
 * The processes of a session or process group that can still run.
 * @param leader its pid, which may be gone
 * @throws Error when the kernel does not tell
 */
export function membersOf(leader: number): ProcessRow[] {
  const members: ProcessRow[] = [];
  for (const name of readdirSync('/proc')) {
    if (!/^[1-9]\d*$/.test(name)) continue;
    const row = processRow(Number(name));
    if (row === undefined || row.isDead) continue;
    if (row.session === leader || row.group === leader) members.push(row);
  }
  return members;
}

/**
 * A variable of the environment that a process was started with.
 * @returns undefined: it has none of this name; null: that cannot be read, for rights or because it has gone
 */
export function environmentOf(pid: number, name: string): string | undefined | null {
  try {
    const lines = readFileSync(`/proc/${pid}/environ`, 'utf8').split('\0');
    return lines.find((line) => line.startsWith(`${name}=`))?.slice(name.length + 1);
  } catch {
    return null;
  }
}

/** Which start of the machine this is. */
export const bootId = (): string => readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();

/** Pids count inside of it only. */
export const pidNamespace = (): string => readlinkSync('/proc/self/ns/pid');

export type Killed = 'killed' | 'gone' | 'refused';

/** @param pid negative for a process group */
export function killNow(pid: number, signal: 'SIGTERM' | 'SIGKILL'): Killed {
  try {
    process.kill(pid, signal);
    return 'killed';
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ESRCH') return 'gone';
    if (code === 'EPERM') return 'refused';
    throw error;
  }
}
