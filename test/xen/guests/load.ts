import { BlkDriver, RngDriver } from '../../../src/guest/index.ts';
import { VersionedLoad } from '../../support/versioned-load.ts';
import { type BusOrder, openBus, orderOf, say, untilStopped } from './bus.ts';

/** Keeps a disk busy until SIGTERM, with writes whose loss or repetition shows, and an rng device if there is one. */
export interface LoadOrder extends BusOrder {
  /** Blocks of 4 KiB that are used. */
  readonly blocks: number;
  /** Requests at a time, a divisor of the blocks. */
  readonly lanes: number;
  readonly disk: number;
  readonly rng?: number;
}

/** Lines of this program: `progress` several times a second while requests complete, `reconnected` each time, `end` once. */
export type LoadLine =
  | { readonly type: 'progress'; readonly acknowledged: number; readonly random: number }
  | { readonly type: 'reconnected'; readonly resumed: boolean }
  | { readonly type: 'end'; readonly submitted: number; readonly acknowledged: number; readonly versions: number[] };

const progressMs = 200;

const order = orderOf<LoadOrder>();
const bus = await openBus(order);
const line = (value: LoadLine): void => say(value);
bus.on('reconnected', ({ resumed }) => line({ type: 'reconnected', resumed }));
const load = new VersionedLoad(await BlkDriver.open(bus, order.disk, { depth: order.lanes }), order.blocks);
let random = 0;
let going = true;

async function entropy(device: number): Promise<void> {
  const rng = await RngDriver.open(bus, device);
  while (going) {
    random += (await rng.read(64)).length;
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
}

const running = Promise.all([load.run(order.lanes), order.rng === undefined ? undefined : entropy(order.rng)]);
let told = -1;
const timer = setInterval(() => {
  if (load.acknowledged === told) return;
  told = load.acknowledged;
  line({ type: 'progress', acknowledged: told, random });
}, progressMs);
await Promise.race([untilStopped(), running]);
going = false;
load.stop();
await running;
clearInterval(timer);
line({ type: 'end', submitted: load.submitted, acknowledged: load.acknowledged, versions: load.versions });
bus.close();
