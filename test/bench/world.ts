import { spawn } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, rmSync, statfsSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { ApiClient } from '../../src/app/cli/api-client.ts';
import type { Scope } from '../../src/kit/scope.ts';
import type { Placement, Processors } from './placement.ts';
import { type Runner, startRunner } from './runner.ts';

const vmsgProgram = fileURLToPath(new URL('../../src/app/vmsg.cjs', import.meta.url));
const guestProgram = fileURLToPath(new URL('./guest-program.js', import.meta.url));
const busId = 'bench';
const imageBytes = 64 * 1024 * 1024;
const chunkBytes = 1024 * 1024;
const startTriesMax = 500;
const startPauseMs = 20;

/** Where images lie: in memory, and where the machine keeps temporary files. */
export const places = ['tmpfs', 'disk'] as const;
export type Place = (typeof places)[number];

/** A service, a guest process on its bus, and the images of its disks, all in temporary directories. */
export interface World {
  readonly guest: Runner;
  /** The disk of a place: its image, and its device number on the bus. */
  readonly disks: Readonly<Record<Place, { readonly image: string; readonly device: number }>>;
}

export function temporaryDirectory(parent: string, scope: Scope): string {
  const directory = mkdtempSync(path.join(parent, 'vmsg-bench-'));
  scope.defer(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** Real bytes in every page: holes would be read without touching memory. */
export function makeImage(directory: string, bytes: number): string {
  const image = path.join(directory, 'disk.img');
  const fd = openSync(image, 'w');
  const chunk = new Uint8Array(Math.min(chunkBytes, bytes)).map((_, i) => i * 31 + (i >>> 8));
  for (let at = 0; at < bytes; at += chunk.length) writeSync(fd, chunk);
  closeSync(fd);
  return image;
}

async function startService(
  directory: string,
  images: Readonly<Record<Place, string>>,
  placed: (command: readonly string[]) => readonly string[],
  scope: Scope,
): Promise<void> {
  const config = path.join(directory, 'vmsg.json');
  const blk = (image: string) => ({ type: 'blk', path: image });
  const content = {
    stateDir: 'state',
    runtimeDir: 'run',
    log: { level: 'warn' },
    domains: { bench: {} },
    buses: { [busId]: { domain: 'bench', transport: 'loopback', role: 'driver' } },
    backends: {
      tmpfs: blk(images.tmpfs),
      disk: blk(images.disk),
      'bench-attach': { type: 'rng' },
    },
    attachments: {
      tmpfs: { bus: busId, backend: 'tmpfs', deviceNumber: 0 },
      disk: { bus: busId, backend: 'disk', deviceNumber: 1 },
    },
  };
  writeFileSync(config, JSON.stringify(content));
  const [program = '', ...args] = placed([process.execPath, vmsgProgram, 'serve', '--config', config]);
  const child = spawn(program, args, {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  scope.defer(() => child.kill('SIGKILL'));
  const api = new ApiClient(apiSocket(directory));
  for (let tries = 0; tries < startTriesMax; tries++) {
    if (child.exitCode !== null) throw new Error(`the service ended with ${child.exitCode}`);
    const ready = await api.call('GET', '/readyz').then(
      () => true,
      () => false,
    );
    if (ready) return;
    await sleep(startPauseMs);
  }
  throw new Error('the service does not get ready');
}

const apiSocket = (directory: string): string => path.join(directory, 'run', 'api.sock');

/** Starts service and guest; everything ends with the scope. */
export async function openWorld(placement: Placement, processors: Processors, scope: Scope): Promise<World> {
  const placed = (command: readonly string[]) => processors.place(command, placement);
  const directory = temporaryDirectory(tmpdir(), scope);
  const images = {
    tmpfs: makeImage(temporaryDirectory(memoryDirectory(), scope), imageBytes),
    disk: makeImage(directory, imageBytes),
  };
  await startService(directory, images, placed, scope);
  const busSocket = path.join(directory, 'run', 'bus', `${busId}.sock`);
  const command = [process.execPath, guestProgram, busSocket, apiSocket(directory), busId];
  const guest = await startRunner(placed(command), scope);
  return {
    guest,
    disks: { tmpfs: { image: images.tmpfs, device: 0 }, disk: { image: images.disk, device: 1 } },
  };
}

/** A machine without /dev/shm measures its temporary files twice, and the header says so. */
export function memoryDirectory(): string {
  return isTmpfs('/dev/shm') ? '/dev/shm' : tmpdir();
}

const tmpfsMagic = 0x01021994;

function isTmpfs(directory: string): boolean {
  try {
    return statfsSync(directory).type === tmpfsMagic;
  } catch {
    return false;
  }
}

/** What kind of file system each place really is here. */
export const describePlaces = (): string =>
  [memoryDirectory(), tmpdir()].map((dir) => `${dir} (${isTmpfs(dir) ? 'tmpfs' : 'not tmpfs'})`).join(', ');
