import { readFileSync } from 'node:fs';

/** Flags of a socket that listens (__SO_ACCEPTCON), in the table of the kernel. */
const listening = '00010000';
/** Num, RefCount, Protocol, Flags, Type, St, Inode, Path. */
const row = /^\S+ \S+ \S+ (\S+) \S+ \S+ +\d+ (.*)$/;

/**
 * Whether somebody listens on a Unix socket. A file is there before that, and a connection on trial would end virtiofsd.
 * @param table text of /proc/net/unix
 */
export function isListening(path: string, table = readFileSync('/proc/net/unix', 'utf8')): boolean {
  return table.split('\n').some((line) => {
    if (!line.endsWith(path)) return false;
    const [, flags, name] = row.exec(line) ?? [];
    return flags === listening && name === path;
  });
}
