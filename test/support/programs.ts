import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { type ProgramRecord, readRecord } from '../../src/bridge/backend/vhost-user/spawn/record.ts';

/** The records of the programs that a service has started. @param directory of them */
export const leadersIn = (directory: string): ProgramRecord[] =>
  readdirSync(directory).flatMap((name) => readRecord(join(directory, name)) ?? []);
