import { readdirSync, readFileSync } from 'node:fs';
import { fdLink } from './fd.ts';

export interface Census {
  /** Open descriptors of this process by kind: 'memfd', 'socket', 'pipe', 'file', or the kernel's name, as 'eventfd'. */
  readonly fds: Readonly<Record<string, number>>;
  /** Mapped ranges of memfds; neighbours of one file with consecutive offsets count as one. */
  readonly mappings: number;
}

/** What this process, all threads of it, holds right now; for tests and diagnostics. Needs /proc. */
export function census(): Census {
  const fds: Record<string, number> = {};
  for (const name of readdirSync('/proc/self/fd')) {
    // The descriptor that listed the folder is closed by now and has no link.
    const link = fdLink(Number(name));
    if (link === undefined) continue;
    const kind = kindOf(link);
    fds[kind] = (fds[kind] ?? 0) + 1;
  }
  const maps = readFileSync('/proc/self/maps', 'latin1');
  return { fds, mappings: maps.split('\n').filter((line) => line.includes(' /memfd:')).length };
}

function kindOf(link: string): string {
  if (link.startsWith('/memfd:')) return 'memfd';
  if (link.startsWith('/')) return 'file';
  const anonymous = /^anon_inode:\[?(\w+)\]?$/.exec(link);
  return anonymous?.[1] ?? link.slice(0, Math.max(link.indexOf(':'), 0));
}
