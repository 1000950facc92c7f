import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { isListening } from '../../src/bridge/backend/vhost-user/spawn/listening.ts';
import { Scope } from '../../src/kit/scope.ts';
import { createEventfd } from '../../src/libc/eventfd.ts';
import { backendProgram, storageDaemonArguments } from '../support/backend-programs.ts';
import type { Item, Means } from './items.ts';
import { type Runner, startRunner } from './runner.ts';
import { makeImage, memoryDirectory, temporaryDirectory } from './world.ts';

/**
 * The way of notifications on Xen, where a thread passes them on between event channels and the eventfds of the
 * program that serves the device. Here the guest's side is eventfds, too. Driver and device are the same on both sides;
 * what is compared is the data plane with a C program that does the same.
 */
const driverProgram = fileURLToPath(new URL('./joined-driver.js', import.meta.url));
const joinProgram = fileURLToPath(new URL('./join-program.js', import.meta.url));
/** The default of the config. */
const spinUs = 20;
const imageBytes = 32 * 1024 * 1024;
const startPauseMs = 10;
const startTriesMax = 500;

/** False where `npm run bench` could not make the program ready. */
const hasDevice = process.env.VMSG_BACKEND_PROGRAMS !== undefined;
export const joinedNotes: readonly string[] = hasDevice
  ? []
  : ['qemu-storage-daemon is not ready here: what needs it is left out'];

async function startDevice(
  directory: string,
  placed: (command: readonly string[]) => readonly string[],
  scope: Scope,
): Promise<string> {
  const socket = path.join(directory, 'disk.sock');
  const file = makeImage(directory, imageBytes);
  const args = storageDaemonArguments({ socket, file, queues: 1, writable: false });
  const [program = '', ...rest] = placed([...backendProgram('qemu-storage-daemon').command, ...args]);
  const child = spawn(program, rest, { stdio: ['ignore', 'ignore', 'inherit'] });
  scope.defer(() => child.kill('SIGKILL'));
  for (let tries = 0; tries < startTriesMax; tries++) {
    if (isListening(socket, readFileSync('/proc/net/unix', 'utf8'))) return socket;
    if (child.exitCode !== null) break;
    await sleep(startPauseMs);
  }
  throw new Error('qemu-storage-daemon does not get ready');
}

/** A driver and a device with `joiner` between them. */
async function joined(
  { scope, processors }: Means,
  joiner: readonly string[],
  placement: 'together' | 'free',
): Promise<Runner> {
  const placed = (command: readonly string[]): readonly string[] => processors.place(command, placement);
  const own = new Scope();
  try {
    const fds = Array.from({ length: 4 }, () => own.own(createEventfd()).number);
    const directory = temporaryDirectory(memoryDirectory(), scope);
    const socket = await startDevice(directory, placed, scope);
    await startRunner(placed(joiner), scope, { fds });
    return await startRunner(placed([process.execPath, driverProgram, socket]), scope, { fds });
  } finally {
    own.close();
  }
}

const joinedRead = (depth: number): Item => ({
  name: `joined notifications blk 4K QD${depth}`,
  metric: { kind: 'rate', unit: 'IOPS', scale: 1 },
  baselineName: 'C between the same ends',
  bar: 0.9,
  async open(means) {
    const placement = depth === 1 ? 'together' : 'free';
    const ours = await joined(means, [process.execPath, joinProgram, String(spinUs)], placement);
    const join = means.baselines?.join;
    const c = join === undefined ? undefined : await joined(means, [join], placement);
    const what = `4096 ${depth}`;
    return { ours: (ms) => ours.run(what, ms), baseline: c === undefined ? null : (ms) => c.run(what, ms) };
  },
});

export const joinedItems: readonly Item[] = hasDevice ? [joinedRead(1), joinedRead(32)] : [];
