import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { Command, type CommandPlace } from './domains.ts';

const signals: Readonly<Record<string, number>> = { SIGKILL: 137, SIGTERM: 143 };

/** dom0, which runs the programs of guests as well. */
export const here: CommandPlace = {
  name: 'dom0',
  start: async (command) => {
    const child = spawn('/bin/sh', ['-c', command], { detached: true, stdio: ['ignore', 'pipe', 'inherit'] });
    await once(child, 'spawn');
    const started = new Command(async (signal) => {
      // One that has ended by itself cannot be killed; its status tells.
      if (child.exitCode === null && child.signalCode === null) process.kill(-child.pid!, `SIG${signal}`);
    });
    createInterface({ input: child.stdout }).on('line', (line) => started.line(line));
    child.on('close', (code, signal) => started.end(code ?? signals[signal ?? ''] ?? 128));
    return started;
  },
};
