import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { isListening } from '../../src/bridge/backend/vhost-user/spawn/listening.ts';
import type { Scope } from '../../src/kit/scope.ts';
import type { Prepared } from './prepared.ts';
import { temporaryDirectory } from './service.ts';

/** Exports and the image of each. */
const exported = {
  shadow: 'tmpfs',
  direct: 'tmpfs',
  driver: 'tmpfs',
  libblkio: 'tmpfs',
  'driver-disk': 'disk',
} as const;
const names = Object.keys(exported) as (keyof typeof exported)[];
const startTriesMax = 500;
const startPauseMs = 10;

/** Sockets of one back-end, each for one front-end at a time. */
export type Exports = Readonly<Record<keyof typeof exported, string>>;

/** @param images file by node. @returns why there is none, where there is none */
export async function startStorageDaemon(
  daemon: Prepared['storageDaemon'],
  images: Readonly<Record<'tmpfs' | 'disk', string>>,
  placed: (command: readonly string[]) => readonly string[],
  scope: Scope,
): Promise<Exports | string> {
  if ('missing' in daemon) return `no qemu-storage-daemon: ${daemon.missing}`;
  const directory = temporaryDirectory(tmpdir(), scope);
  const sockets = Object.fromEntries(names.map((name) => [name, path.join(directory, name)])) as Exports;
  const nodes = Object.entries(images).flatMap(([node, image]) => [
    '--blockdev',
    `driver=file,node-name=${node},filename=${image}`,
  ]);
  const exports = names.flatMap((name) => [
    '--export',
    `type=vhost-user-blk,id=${name},node-name=${exported[name]},writable=on,addr.type=unix,addr.path=${sockets[name]}`,
  ]);
  const [program = '', ...args] = placed([...daemon.command, ...nodes, ...exports]);
  const child = spawn(program, args, { stdio: ['ignore', 'inherit', 'inherit'] });
  scope.defer(() => child.kill('SIGKILL'));
  const allListen = (): boolean => {
    const table = readFileSync('/proc/net/unix', 'utf8');
    return names.every((name) => isListening(sockets[name], table));
  };
  for (let tries = 0; tries < startTriesMax; tries++) {
    if (allListen()) return sockets;
    if (child.exitCode !== null) throw new Error(`qemu-storage-daemon ended with ${child.exitCode}`);
    await sleep(startPauseMs);
  }
  throw new Error('qemu-storage-daemon does not listen');
}
