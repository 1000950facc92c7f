import { closeSync, openSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Scope } from '../../src/kit/scope.ts';
import { isTmpfs, memoryDirectory } from './memory-directory.ts';
import type { Placement, Processors } from './placement.ts';
import type { Prepared } from './prepared.ts';
import { type Runner, startRunner } from './runner.ts';
import { type Service, startService, temporaryDirectory } from './service.ts';
import { type Exports, startStorageDaemon } from './storage-daemon.ts';

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
export const dataPaths = ['shadow', 'direct'] as const;
export type DataPath = (typeof dataPaths)[number];

/** What a backend says to get a way; the first that leads there is used. */
const asking: Readonly<Record<DataPath, readonly Readonly<Record<string, unknown>>[]>> = {
  shadow: [{}, { direct: 'never' }],
  direct: [{ direct: 'force' }],
};

/** Backend of `Runner.ask('attach ...')`. */
export const attachBackend = 'attach';

/** A service, a guest process on its bus, the images of its disks and a back-end that serves one of them too. */
export interface World {
  readonly guest: Runner;
  /** The built-in disk of a place: its image, and its device number on the bus. */
  readonly disks: Readonly<Record<Place, { readonly image: string; readonly device: number }>>;
  /** The same image as `tmpfs` through a vhost-user back-end: device number, or why there is none. */
  readonly vhostUser: Readonly<Record<DataPath, number | string>>;
  /** Sockets of the back-end for others, or why there is none. */
  readonly exports: Exports | string;
}

/** Real bytes in every page: holes would be read without touching memory. */
function makeImage(directory: string, bytes: number): string {
  const image = path.join(directory, `disk-${bytes}.img`);
  const fd = openSync(image, 'w');
  const chunk = new Uint8Array(Math.min(chunkBytes, bytes)).map((_, i) => i * 31 + (i >>> 8));
  for (let at = 0; at < bytes; at += chunk.length) writeSync(fd, chunk);
  closeSync(fd);
  return image;
}

interface AttachmentBody {
  readonly status: { readonly state: string; readonly reason?: string; readonly dataPath?: string };
}

/** Attaches a back-end and looks whether it got the way that was wanted. @returns why it did not, or undefined */
async function attachVhostUser({ api }: Service, id: DataPath, socket: string, deviceNumber: number) {
  const [backend, attachment] = [`/v1/backends/${id}`, `/v1/attachments/${id}`];
  let why = '';
  for (const extra of asking[id]) {
    try {
      await api.call('PUT', backend, { type: 'vhost-user', device: 'blk', socket, ...extra });
      await api.call('PUT', attachment, { bus: busId, backend: id, deviceNumber });
      for (let tries = 0; tries < attachTriesMax; tries++) {
        const { status } = (await api.call('GET', attachment)).body as AttachmentBody;
        why = status.reason ?? `the data path is ${status.dataPath}`;
        if (status.state === 'active' && status.dataPath === id) return undefined;
        if (status.state === 'active') break;
        await sleep(attachPauseMs);
      }
    } catch (error) {
      why = (error as Error).message.trim();
    }
    // Whatever of them was made.
    for (const path of [attachment, backend]) await api.call('DELETE', path).catch(() => undefined);
  }
  return `no ${id} data path: ${why}`;
}

async function openVhostUser(service: Service, exports: Exports | string): Promise<World['vhostUser']> {
  if (typeof exports === 'string') return { shadow: exports, direct: exports };
  const found: Record<DataPath, number | string> = { shadow: '', direct: '' };
  for (const [i, id] of dataPaths.entries()) {
    const number = places.length + i;
    found[id] = (await attachVhostUser(service, id, exports[id], number)) ?? number;
  }
  return found;
}

/** Starts service, back-end and guest; everything ends with the scope. */
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
  const content = {
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
  const exports = await startStorageDaemon(prepared.storageDaemon, images, placed, scope);
  const service = await startService(content, placed, scope);
  const vhostUser = await openVhostUser(service, exports);
  const command = [process.execPath, guestProgram, service.busSocket(busId), service.apiSocket, busId];
  const guest = await startRunner(placed(command), scope);
  const disks = { tmpfs: { image: images.tmpfs, device: 0 }, disk: { image: images.disk, device: 1 } };
  return { guest, disks, vhostUser, exports };
}

/** What kind of file system each place really is here. */
export const describePlaces = (): string =>
  [memoryDirectory(), tmpdir()].map((dir) => `${dir} (${isTmpfs(dir) ? 'tmpfs' : 'not tmpfs'})`).join(', ');
