import { setTimeout as sleep } from 'node:timers/promises';
import { BlkDriver, type GuestBus, RngDriver, VmsgError } from '../../../src/guest/index.ts';
import { VersionedLoad } from '../../support/versioned-load.ts';
import { type BusOrder, openBus, orderOf, pauseMs, say, untilStopped } from './bus.ts';

/** Uses a first disk and an rng device all the time, and every other disk from when it arrives until it leaves. */
export interface VisitorOrder extends BusOrder {
  readonly disk: number;
  readonly rng: number;
}

export type VisitorLine =
  /** The first disk and the rng device are in use. */
  | { readonly type: 'begun' }
  /** A disk that came has completed some requests. */
  | { readonly type: 'used'; readonly device: number }
  /** It is gone; the code of what its requests in flight failed with, and the devices that the bus has now. */
  | { readonly type: 'gone'; readonly device: number; readonly code: string; readonly devices: number[] }
  | { readonly type: 'progress'; readonly requests: number; readonly random: number }
  | { readonly type: 'end'; readonly submitted: number; readonly acknowledged: number; readonly versions: number[] };

const blocks = 64;
const lanes = 4;
const usedAfter = 20;
const progressMs = 200;

const line = (value: VisitorLine): void => say(value);
const order = orderOf<VisitorOrder>();
const bus = await openBus(order);
let random = 0;
let going = true;

async function entropy(): Promise<void> {
  const rng = await RngDriver.open(bus, order.rng);
  while (going) {
    random += (await rng.read(64)).length;
    await sleep(5 * pauseMs);
  }
}

/** Uses a disk until it is taken away. */
async function visit(on: GuestBus, device: number): Promise<void> {
  try {
    const disk = await BlkDriver.open(on, device, { depth: lanes });
    const load = new VersionedLoad(disk, blocks, pauseMs);
    const running = load.run(lanes);
    const isUsed = setInterval(() => {
      if (load.acknowledged < usedAfter) return;
      clearInterval(isUsed);
      line({ type: 'used', device });
    }, 10);
    await running;
  } catch (error) {
    const code = error instanceof VmsgError ? error.code : String(error);
    line({ type: 'gone', device, code, devices: await on.devices() });
  }
}

const load = new VersionedLoad(await BlkDriver.open(bus, order.disk, { depth: lanes }), blocks, pauseMs);
bus.on('added', ({ device }) => void visit(bus, device));
const running = Promise.all([load.run(lanes), entropy()]);
line({ type: 'begun' });
const timer = setInterval(() => line({ type: 'progress', requests: load.acknowledged, random }), progressMs);
await Promise.race([untilStopped(), running]);
going = false;
load.stop();
await running;
clearInterval(timer);
line({ type: 'end', submitted: load.submitted, acknowledged: load.acknowledged, versions: load.versions });
bus.close();
