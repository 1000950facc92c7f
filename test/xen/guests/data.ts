import { createHash } from 'node:crypto';
import { BlkDriver } from '../../../src/guest/index.ts';
import { seededContent } from '../support/content.ts';
import { type BusOrder, openBus, orderOf, say, untilStopped } from './bus.ts';

/**
 * Moves data in bulk, says how fast, and stays connected until SIGTERM. What is left out of the order is not done.
 */
export interface DataOrder extends BusOrder {
  readonly pings?: number;
  /** Device number of a disk to hash, and how much of it. */
  readonly read?: { readonly device: number; readonly bytes: number };
  readonly write?: { readonly device: number; readonly bytes: number; readonly seed: number };
}

export interface DataLine {
  readonly type: 'done';
  readonly roundTripsPerSecond?: number;
  readonly sha256?: string;
  readonly readMBPerSecond?: number;
  readonly writeMBPerSecond?: number;
}

const transferBytes = 512 * 1024;

async function seconds(work: () => Promise<unknown>): Promise<number> {
  const began = performance.now();
  await work();
  return (performance.now() - began) / 1000;
}

const order = orderOf<DataOrder>();
const bus = await openBus(order);
const { pings, read, write } = order;
const rate = async (amount: number, work: () => Promise<unknown>): Promise<number> =>
  Math.round((10 * amount) / (await seconds(work))) / 10;

let result: DataLine = { type: 'done' };
if (pings !== undefined) {
  const run = async (): Promise<void> => {
    for (let i = 0; i < pings; i++) await bus.ping();
  };
  result = { ...result, roundTripsPerSecond: await rate(pings, run) };
}
if (read !== undefined) {
  const disk = await BlkDriver.open(bus, read.device, { depth: 8, transferBytes });
  const hash = createHash('sha256');
  const readMBPerSecond = await rate(read.bytes / 1e6, async () => {
    for await (const part of disk.stream({ length: read.bytes })) hash.update(part.bytes);
  });
  result = { ...result, readMBPerSecond, sha256: hash.digest('hex') };
  await disk.close();
}
if (write !== undefined) {
  const disk = await BlkDriver.open(bus, write.device, { depth: 8, transferBytes });
  const content = seededContent(write.seed, write.bytes);
  const writeMBPerSecond = await rate(write.bytes / 1e6, async () => {
    await disk.write(0, content);
    await disk.flush();
  });
  result = { ...result, writeMBPerSecond };
  await disk.close();
}
say(result);
await untilStopped();
bus.close();
