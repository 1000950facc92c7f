import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { ApiClient } from '../../src/app/cli/api-client.ts';
import type { Resource } from '../../src/bridge/commands.ts';

export const mainProgram = fileURLToPath(new URL('../../src/app/main.js', import.meta.url));

/** Objects of a config file, as `vmsg serve` reads it. */
export type ServiceObjects = Readonly<Record<'domains' | 'buses' | 'backends' | 'attachments', Record<string, object>>>;

/** A directory with a config file, in which services are started and killed. */
export class ServiceHome {
  readonly directory = mkdtempSync(join(tmpdir(), 'vmsg-test-'));
  readonly apiSocket = join(this.directory, 'run', 'api.sock');
  readonly #config = join(this.directory, 'vmsg.json');

  readonly #objects: ServiceObjects;

  constructor(objects: ServiceObjects, extra: object = {}) {
    this.#objects = objects;
    this.configure(extra);
  }

  /** For the next start. @param extra beside the objects */
  configure(extra: object): void {
    const content = { stateDir: 'state', runtimeDir: 'run', log: { level: 'warn' }, ...this.#objects, ...extra };
    writeFileSync(this.#config, JSON.stringify(content));
  }

  get programsPath(): string {
    return join(this.directory, 'run', 'programs');
  }

  busPath(bus: string): string {
    return join(this.directory, 'run', 'bus', `${bus}.sock`);
  }

  /** @param pollMs how often to look whether it is ready */
  async start(pollMs = 10): Promise<ServiceProcess> {
    const child = spawn(process.execPath, [mainProgram, 'serve', '--config', this.#config], {
      stdio: ['ignore', 'inherit', 'inherit'],
    });
    const service = new ServiceProcess(child, new ApiClient(this.apiSocket));
    await service.ready(pollMs);
    return service;
  }

  remove(): void {
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** What a process holds, as the kernel sees it. */
export interface Holdings {
  readonly fds: number;
  readonly memfdMappings: number;
}

export class ServiceProcess {
  readonly api: ApiClient;
  readonly #child: ChildProcess;

  constructor(child: ChildProcess, api: ApiClient) {
    this.#child = child;
    this.api = api;
  }

  /** Until the API says that everything in the config file was tried. */
  async ready(pollMs = 10): Promise<void> {
    for (;;) {
      assert.equal(this.#child.exitCode, null, 'the service runs');
      try {
        await this.api.call('GET', '/readyz');
        return;
      } catch {
        await sleep(pollMs);
      }
    }
  }

  async kill(): Promise<void> {
    const exited = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await exited;
  }

  /** Ends in order. @returns exit code */
  async stop(): Promise<number | null> {
    const exited = once(this.#child, 'exit');
    this.#child.kill('SIGTERM');
    const [code] = await exited;
    return code as number | null;
  }

  get pid(): number {
    return this.#child.pid!;
  }

  get alive(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  async bus(id: string): Promise<Resource<'buses'>> {
    return (await this.api.call('GET', `/v1/buses/${id}`)).body as Resource<'buses'>;
  }

  async attachment(id: string): Promise<Resource<'attachments'>> {
    return (await this.api.call('GET', `/v1/attachments/${id}`)).body as Resource<'attachments'>;
  }

  holdings(): Holdings {
    const proc = `/proc/${this.pid}`;
    const fds = readdirSync(`${proc}/fd`).filter((fd) => isStable(`${proc}/fd/${fd}`));
    const maps = readFileSync(`${proc}/maps`, 'utf8').split('\n');
    return { fds: fds.length, memfdMappings: maps.filter((line) => line.includes('/memfd:')).length };
  }
}

/** A descriptor that is still there when looked at. */
function isStable(path: string): boolean {
  try {
    readlinkSync(path);
    return true;
  } catch {
    return false;
  }
}

/** Looks again until `probe` accepts, so that a test does not depend on how fast a machine is. */
export async function eventually<T>(
  probe: () => Promise<T | undefined>,
  what: string,
  tries = 3000,
  pauseMs = 10,
): Promise<T> {
  for (let i = 0; i < tries; i++) {
    const result = await probe();
    if (result !== undefined) return result;
    await sleep(pauseMs);
  }
  throw new Error(`did not happen: ${what}`);
}
