import { closeSync, constants, openSync, readFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { bootId, pidNamespace } from './processes.ts';

/** Who leads the session of a program, so that a later service finds what is left of it. */
export interface ProgramRecord {
  /** Id of the backend. */
  readonly backend: string;
  readonly program: string;
  readonly pid: number;
  readonly startTime: string;
  readonly bootId: string;
  readonly pidNamespace: string;
}

const recordName = 'leader.json';

/** Variable in the environment of a program and its children: the directory of this start, which no other has. */
export const directoryVariable = 'VMSG_PROGRAM_DIRECTORY';

/** Writes the record of a program that was just started, before it is given anything. @throws Error of node:fs */
export function writeRecord(directory: string, of: Omit<ProgramRecord, 'bootId' | 'pidNamespace'>): void {
  const record: ProgramRecord = { ...of, bootId: bootId(), pidNamespace: pidNamespace() };
  const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW;
  const fd = openSync(join(directory, recordName), flags, 0o600);
  try {
    writeSync(fd, JSON.stringify(record));
  } finally {
    closeSync(fd);
  }
}

/**
 * @returns undefined where there is none, or a part of one: then the service ended before its program got anything,
 *   and the program with it
 */
export function readRecord(directory: string): ProgramRecord | undefined {
  try {
    const record = JSON.parse(readFileSync(join(directory, recordName), 'utf8')) as ProgramRecord;
    return Number.isSafeInteger(record.pid) && record.pid > 1 ? record : undefined;
  } catch {
    return undefined;
  }
}
