import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Clock } from '../../../../kit/clock.ts';
import { VmsgError } from '../../../../kit/errors.ts';
import { limits } from '../../../../kit/limits.ts';
import {
  bootId,
  environmentOf,
  type Killed,
  membersOf,
  type ProcessRow,
  pidNamespace,
  processRow,
} from './processes.ts';
import { directoryVariable, type ProgramRecord, readRecord } from './record.ts';

export interface LeftoverParts {
  readonly clock: Clock;
  readonly log: { warn(data: object, message: string): void };
  /** Sends SIGKILL. */
  readonly kill: (pid: number) => Killed;
}

/**
 * Ends what programs of an earlier service left running, and removes their directories. Whoever serves guests first
 * calls this first: a process that maps a guest's memory must not write there when the guest goes on.
 * @param directory of the programs; no service uses it
 * @throws VmsgError unavailable: a process is still there, and which; system-call
 */
export async function endLeftovers(directory: string, parts: LeftoverParts): Promise<void> {
  for (const name of readdirSync(directory)) {
    const start = join(directory, name);
    const record = readRecord(start);
    if (record !== undefined) await endOne(start, record, parts);
    rmSync(start, { recursive: true, force: true });
  }
}

/** Which processes of a session are those of the record; a number that was given to others meanwhile is not. */
function ours(start: string, { pid, startTime }: ProgramRecord): ProcessRow[] {
  const leader = processRow(pid);
  if (leader !== undefined && leader.startTime !== startTime) return [];
  const members = membersOf(pid);
  // While its first process is there, even dead, the session is the one of the record.
  if (leader !== undefined) return members;
  return members.filter((member) => {
    const directory = environmentOf(member.pid, directoryVariable);
    const now = processRow(member.pid);
    if (now === undefined || now.isDead) return false;
    // One that is ending has no environment any more; to kill it changes nothing, and it is waited for.
    if (!now.hasMemory) return true;
    if (directory === null) {
      const what = `process ${member.pid} of session ${pid}`;
      throw new VmsgError(
        'unavailable',
        `${what} may be one that an earlier service left, and cannot be looked at: end it`,
      );
    }
    return directory === start;
  });
}

async function endOne(start: string, record: ProgramRecord, { clock, log, kill }: LeftoverParts): Promise<void> {
  // Processes do not outlive the machine, and those of another container end with it.
  if (record.bootId !== bootId() || record.pidNamespace !== pidNamespace()) return;
  const { backend, program } = record;
  const endMs = clock.nowMs() + limits.programKillTimeoutMs;
  let members = ours(start, record);
  if (members.length > 0) {
    const pids = members.map(({ pid }) => pid);
    log.warn({ backend, program, pids }, 'an earlier service left processes of a program; they are killed');
  }
  for (let pauseMs = 1; members.length > 0; pauseMs = Math.min(2 * pauseMs, limits.programLookMaxMs)) {
    const who = `process ${members[0]!.pid} of the program ${program}, which an earlier service left,`;
    for (const { pid } of members) {
      if (kill(pid) !== 'refused') continue;
      throw new VmsgError(
        'unavailable',
        `${who} must not be killed by this user: end it, or start the service as root`,
      );
    }
    if (clock.nowMs() > endMs) throw new VmsgError('unavailable', `${who} was killed and does not end`);
    await new Promise<void>((resolve) => {
      clock.after(pauseMs, resolve);
    });
    members = ours(start, record);
  }
}
