import { closeSync, openSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Scope } from '../../src/kit/scope.ts';
import { isTmpfs, memoryDirectory } from './memory-directory.ts';
import type { Placement, Processors } from './placement.ts';
import { missingDaemon, type Prepared } from './prepared.ts';
import { type Runner, startRunner } from './runner.ts';
import { type Service, startService, temporaryDirectory } from './service.ts';
import { startStorageDaemon, storageDaemonName } from './storage-daemon.ts';

const guestProgram = fileURLToPath(new URL('./guest-program.js', import.meta.url));
const busId = 'bench';
const imageBytes = 64 * 1024 * 1024;
const attachImageBytes = 1024 * 1024;
const chunkBytes = 1024 * 1024;
const attachTriesMax = 100;
const attachPauseMs = 20;

/** Where images lie: in memory, and where the machine keeps temporary files. */
const places = ['tmpfs', 'disk'] as const;
export type Place = (typeof places)[number];

/** Ways of a service to a vhost-user back-end, see docs/vhost-user.md. */
export const dataPaths = ['direct', 'shadow'] as const;
export type DataPath = (typeof dataPaths)[number];

/** Back-ends that the bench starts, and the image of each. */
const exported = { shadow: 'tmpfs', driver: 'tmpfs', libblkio: 'tmpfs', 'driver-disk': 'disk' } as const;
/** Their sockets, each for one front-end at a time. */
export type Exports = Readonly<Record<keyof typeof exported, string>>;

/** Backend of `Runner.ask('attach ...')`. */
export const attachBackend = 'attach';

/** A service, a guest process on its bus, the images of its disks and back-ends that serve them too. */
export interface World {
  readonly guest: Runner;
  /** The built-in disk of a place: its image, and its device number on the bus. */
  readonly disks: Readonly<Record<Place, { readonly image: string; readonly device: number }>>;
  /** An image like `tmpfs`, or that one, through a vhost-user back-end: device number, or why there is none. */
  readonly vhostUser: Readonly<Record<DataPath, number | string>>;
  /** Sockets of the back-ends, or why there is none. */
  readonly exports: Exports | string;
}

/** Real bytes in every page: holes would be read without touching memory. */
export function makeImage(directory: string, bytes: number): string {
  const image = path.join(directory, `disk-${bytes}.img`);
  const fd = openSync(image, 'w');
  const chunk = new Uint8Array(Math.min(chunkBytes, bytes)).map((_, i) => i * 31 + (i >>> 8));
  for (let at = 0; at < bytes; at += chunk.length) writeSync(fd, chunk);
  closeSync(fd);
  return image;
}

interface AttachmentBody {
  readonly status: Readonly<Record<'state' | 'dataPath', string> & Record<'reason' | 'dataPathReason', string | null>>;
}

/**
 * Attaches a back-end and looks whether it got the way that was wanted.
 * @param spec of the backend. @returns why it did not, or undefined
 */
async function attachVhostUser({ api }: Service, id: DataPath, spec: object, deviceNumber: number) {
  let why = '';
  try {
    await api.call('PUT', `/v1/backends/${id}`, spec);
    await api.call('PUT', `/v1/attachments/${id}`, { bus: busId, backend: id, deviceNumber });
    for (let tries = 0; tries < attachTriesMax; tries++) {
      const { status } = (await api.call('GET', `/v1/attachments/${id}`)).body as AttachmentBody;
      if (status.state === 'active' && status.dataPath === id) return undefined;
      why = status.reason ?? status.dataPathReason ?? `it is ${status.state}`;
      if (status.state === 'active') break;
      await sleep(attachPauseMs);
    }
  } catch (error) {
    why = (error as Error).message.trim();
  }
  return `no ${id} data path: ${why}`;
}

async function openVhostUser(service: Service, exports: Exports | string, image: string): Promise<World['vhostUser']> {
  if (typeof exports === 'string') return { direct: exports, shadow: exports };
  const specs: Readonly<Record<DataPath, object>> = {
    direct: { type: storageDaemonName, path: image },
    shadow: { type: 'vhost-user', device: 'blk', socket: exports.shadow, dataPath: 'shadow' },
  };
  const found: Record<DataPath, number | string> = { direct: '', shadow: '' };
  for (const [i, id] of dataPaths.entries()) {
    const number = places.length + i;
    found[id] = (await attachVhostUser(service, id, specs[id], number)) ?? number;
  }
  return found;
}

/** One process for each: none has more to wait for than the one that the service starts. */
async function startExports(
  command: readonly string[],
  images: Readonly<Record<Place, string>>,
  placed: (command: readonly string[]) => readonly string[],
  scope: Scope,
): Promise<Exports> {
  const sockets: Record<string, string> = {};
  for (const [name, place] of Object.entries(exported)) {
    sockets[name] = await startStorageDaemon(command, images[place], placed, scope);
  }
  return sockets as Exports;
}

/** Starts service, back-ends and guest; everything ends with the scope. */
export async function openWorld(
  placement: Placement,
  { processors, prepared }: { readonly processors: Processors; readonly prepared: Prepared },
  scope: Scope,
): Promise<World> {
  const placed = (command: readonly string[]) => processors.place(command, placement);
  const inMemory = temporaryDirectory(memoryDirectory(), scope);
  const images = {
    tmpfs: makeImage(inMemory, imageBytes),
    disk: makeImage(temporaryDirectory(tmpdir(), scope), imageBytes),
  };
  const blk = (image: string) => ({ type: 'blk', path: image });
  const daemon = prepared.storageDaemon;
  const content = {
    ...('missing' in daemon ? {} : { programs: { [storageDaemonName]: { command: daemon.command } } }),
    domains: { bench: {} },
    buses: { [busId]: { domain: 'bench', transport: 'loopback', role: 'driver' } },
    backends: {
      tmpfs: blk(images.tmpfs),
      disk: blk(images.disk),
      [attachBackend]: blk(makeImage(inMemory, attachImageBytes)),
    },
    attachments: {
      tmpfs: { bus: busId, backend: 'tmpfs', deviceNumber: 0 },
      disk: { bus: busId, backend: 'disk', deviceNumber: 1 },
    },
  };
  const exports =
    'missing' in daemon ? missingDaemon(daemon) : await startExports(daemon.command, images, placed, scope);
  const service = await startService(content, placed, scope);
  // The service gives a file to one disk at a time.
  const another = makeImage(temporaryDirectory(memoryDirectory(), scope), imageBytes);
  const vhostUser = await openVhostUser(service, exports, another);
  const command = [process.execPath, guestProgram, service.busSocket(busId), service.apiSocket, busId];
  const guest = await startRunner(placed(command), scope);
  const disks = { tmpfs: { image: images.tmpfs, device: 0 }, disk: { image: images.disk, device: 1 } };
  return { guest, disks, vhostUser, exports };
}

/** What kind of file system each place really is here. */
export const describePlaces = (): string =>
  [memoryDirectory(), tmpdir()].map((dir) => `${dir} (${isTmpfs(dir) ? 'tmpfs' : 'not tmpfs'})`).join(', ');
