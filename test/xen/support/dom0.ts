import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { promisify } from 'node:util';

const execute = promisify(execFile);
const outputMaxBytes = 64 * 1024 * 1024;

/** Runs a tool of dom0. @returns what it prints. @throws when it fails, with what it says */
export async function tool(name: string, ...args: string[]): Promise<string> {
  return (await execute(name, args, { maxBuffer: outputMaxBytes })).stdout;
}

export const xl = (...args: string[]): Promise<string> => tool('xl', ...args);

/** Numbers of the domains that `xl list` shows; a domain whose pages are still mapped somewhere is among them. */
export async function listedDomains(): Promise<number[]> {
  const lines = (await xl('list')).trim().split('\n').slice(1);
  return lines.map((line) => Number(/\s(\d+)(\s+\S+){4}$/.exec(line)?.[1]));
}

/** A grant of some domain that another one has mapped. */
export interface ActiveGrant {
  readonly reference: number;
  /** Domain to which it is granted. */
  readonly mapper: number;
}

const reportBegin = 'gnttab_usage_print_all [';
const reportEnd = 'gnttab_usage_print_all ]';

/** Grants in use, by the domain that granted them, as Xen itself prints them. */
export async function activeGrants(): Promise<Map<number, ActiveGrant[]>> {
  await xl('debug-keys', 'g');
  const log = await xl('dmesg');
  const begin = log.lastIndexOf(reportBegin);
  const end = log.indexOf(reportEnd, begin);
  if (begin < 0 || end < 0) throw new Error('Xen prints no report about grants, or one that its buffer does not hold');
  const found = new Map<number, ActiveGrant[]>();
  let current: ActiveGrant[] = [];
  for (const line of log.slice(begin, end).split('\n')) {
    const table = /grant-table for remote d(\d+)/.exec(line);
    if (table !== null) {
      current = [];
      found.set(Number(table[1]), current);
    }
    const entry = /\[(0x[0-9a-f]+)\]\s+(\d+) 0x/.exec(line);
    if (entry !== null) current.push({ reference: Number(entry[1]), mapper: Number(entry[2]) });
  }
  return found;
}

/** Nodes of one domain in xenstore: its own ones, and those of buses that dom0 serves to it. */
export async function storeNodes(domid: number): Promise<string[]> {
  const lines = (await tool('xenstore-ls', '-f', '/local/domain')).split('\n');
  const own = new RegExp(`^/local/domain/(${domid}|0/backend/vmsg/${domid})[/ ]`);
  return lines.filter((line) => own.test(line));
}

/** Mappings of granted pages in a process. */
export function grantMappings(pid: number): string[] {
  return readFileSync(`/proc/${pid}/maps`, 'latin1')
    .split('\n')
    .filter((line) => line.includes('/dev/xen/gntdev'));
}
