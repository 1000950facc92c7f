import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { ApiClient } from '../../src/app/cli/api-client.ts';
import type { Scope } from '../../src/kit/scope.ts';
import { memoryDirectory } from './memory-directory.ts';

const vmsgProgram = fileURLToPath(new URL('../../src/app/vmsg.cjs', import.meta.url));
const startTriesMax = 1000;
const startPauseMs = 20;

/** A running service in a temporary directory. */
export interface Service {
  readonly pid: number;
  readonly api: ApiClient;
  readonly apiSocket: string;
  busSocket(bus: string): string;
}

export function temporaryDirectory(parent: string, scope: Scope): string {
  const directory = mkdtempSync(path.join(parent, 'vmsg-bench-'));
  scope.defer(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/**
 * Starts a service and waits until it is ready; it ends with the scope.
 * @param content of its configuration file, without directories
 * @param placed where it runs, see `Processors.place`
 */
export async function startService(
  content: Readonly<Record<string, unknown>>,
  placed: (command: readonly string[]) => readonly string[],
  scope: Scope,
): Promise<Service> {
  const directory = temporaryDirectory(tmpdir(), scope);
  const config = path.join(directory, 'vmsg.json');
  // As /run is: what restarts need lies there in mapped files.
  const runtimeDir = temporaryDirectory(memoryDirectory(), scope);
  writeFileSync(config, JSON.stringify({ stateDir: 'state', runtimeDir, log: { level: 'warn' }, ...content }));
  const [program = '', ...args] = placed([process.execPath, vmsgProgram, 'serve', '--config', config]);
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'inherit'] });
  scope.defer(() => child.kill('SIGKILL'));
  const apiSocket = path.join(runtimeDir, 'api.sock');
  const api = new ApiClient(apiSocket);
  for (let tries = 0; tries < startTriesMax; tries++) {
    if (child.exitCode !== null) throw new Error(`the service ended with ${child.exitCode}`);
    const ready = await api.call('GET', '/readyz').then(
      () => true,
      () => false,
    );
    if (ready)
      return { pid: child.pid!, api, apiSocket, busSocket: (bus) => path.join(runtimeDir, 'bus', `${bus}.sock`) };
    await sleep(startPauseMs);
  }
  throw new Error('the service does not get ready');
}
