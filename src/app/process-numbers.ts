import { readdirSync } from 'node:fs';

/** What /metrics tells of this process. */
export const processNumbers = () => ({
  uptimeSeconds: Math.floor(process.uptime()),
  residentBytes: process.memoryUsage.rss(),
  // Without the one that reads the directory.
  openFds: readdirSync('/proc/self/fd').length - 1,
});
