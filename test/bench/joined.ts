import { fileURLToPath } from 'node:url';
import { Scope } from '../../src/kit/scope.ts';
import { createEventfd } from '../../src/libc/eventfd.ts';
import { type Means, operationsPerSecond, type Race, type Run } from './item.ts';
import { memoryDirectory } from './memory-directory.ts';
import type { Placement } from './placement.ts';
import { missingDaemon } from './prepared.ts';
import { startRunner } from './runner.ts';
import { temporaryDirectory } from './service.ts';
import { startStorageDaemon } from './storage-daemon.ts';
import { makeImage } from './world.ts';

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
const readBytes = 4096;

/** A driver and a device with `joiner` between them. @returns why not, where there is no device */
async function joined(
  { scope, processors, prepared: { storageDaemon } }: Means,
  joiner: readonly string[],
  placement: Placement,
  depth: number,
): Promise<Run | string> {
  if ('missing' in storageDaemon) return missingDaemon(storageDaemon);
  const placed = (command: readonly string[]): readonly string[] => processors.place(command, placement);
  const own = new Scope();
  try {
    const fds = Array.from({ length: 4 }, () => own.own(createEventfd()).number);
    const image = makeImage(temporaryDirectory(memoryDirectory(), scope), imageBytes);
    const socket = await startStorageDaemon(storageDaemon.command, image, placed, scope);
    await startRunner(placed(joiner), scope, { fds });
    const driver = await startRunner(placed([process.execPath, driverProgram, socket]), scope, { fds });
    return (ms) => driver.run(`${readBytes} ${depth}`, ms);
  } finally {
    own.close();
  }
}

const joinedRead = (depth: number): Race => ({
  kind: 'race',
  metric: operationsPerSecond,
  sides: { ours: 'our data plane', c: 'C between the same ends' },
  comparisons: [
    { name: `joined notifications blk 4K QD${depth} read`, ours: 'ours', baseline: 'c', bar: 0.9, stretch: 0.97 },
  ],
  async open(means) {
    const placement = depth === 1 ? 'together' : 'free';
    const join = means.baselines?.join;
    return {
      ours: await joined(means, [process.execPath, joinProgram, String(spinUs)], placement, depth),
      c: join === undefined ? 'no gcc' : await joined(means, [join], placement, depth),
    };
  },
});

export const joinedItems: readonly Race[] = [joinedRead(1), joinedRead(32)];
