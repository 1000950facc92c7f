import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { membersOf } from '../../../src/bridge/backend/vhost-user/spawn/processes.ts';
import { leadersIn } from '../../support/programs.ts';

/** The first process of the program of a backend. @param directory of the records */
export function leaderOf(directory: string, backend: string): number {
  const found = leadersIn(directory).filter((record) => record.backend === backend);
  assert.equal(found.length, 1, `one program of ${backend} runs`);
  return found[0]!.pid;
}

/** SHA-256 of a program's file, after it was seen that the processes of a session run that very file. */
export function fileHash(leader: number, file: string): string {
  const { dev, ino } = statSync(file);
  const hex = (value: number): string => value.toString(16).padStart(2, '0');
  const device = `${hex(dev >>> 8)}:${hex(dev & 0xff)}`;
  const isCode = (line: string): boolean => {
    const [, rights, , where, inode] = line.split(/\s+/);
    return rights?.[2] === 'x' && where === device && Number(inode) === ino;
  };
  const mapped = membersOf(leader).flatMap(({ pid }) => readFileSync(`/proc/${pid}/maps`, 'latin1').split('\n'));
  assert.ok(mapped.some(isCode), `process ${leader} runs ${file}: ${mapped.join('\n')}`);
  return createHash('sha256').update(readFileSync(file)).digest('hex');
}
