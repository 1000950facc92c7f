import { BlkDriver } from '../../../src/guest/index.ts';
import { VersionedLoad } from '../../support/versioned-load.ts';
import { type BusOrder, openBus, orderOf, say, untilStopped } from './bus.ts';

/** Keeps a disk busy until SIGTERM, with writes whose loss or repetition shows. */
export interface LoadOrder extends BusOrder {
  /** Blocks of 4 KiB that are used. */
  readonly blocks: number;
  /** Requests at a time, a divisor of the blocks. */
  readonly lanes: number;
  /** Of a lane, between two requests; 0 by default. */
  readonly pauseMs?: number;
  readonly disk: number;
}

/** Lines of this program: `progress` several times a second while requests complete, `reconnected` each time, `end` once. */
export type LoadLine =
  | { readonly type: 'progress'; readonly acknowledged: number }
  | { readonly type: 'reconnected'; readonly resumed: boolean }
  | { readonly type: 'end'; readonly submitted: number; readonly acknowledged: number; readonly versions: number[] };

const progressMs = 200;

const order = orderOf<LoadOrder>();
const bus = await openBus(order);
const line = (value: LoadLine): void => say(value);
bus.on('reconnected', ({ resumed }) => line({ type: 'reconnected', resumed }));
const load = new VersionedLoad(
  await BlkDriver.open(bus, order.disk, { depth: order.lanes }),
  order.blocks,
  order.pauseMs,
);
const running = load.run(order.lanes);
let told = -1;
const timer = setInterval(() => {
  if (load.acknowledged === told) return;
  told = load.acknowledged;
  line({ type: 'progress', acknowledged: told });
}, progressMs);
await Promise.race([untilStopped(), running]);
load.stop();
await running;
clearInterval(timer);
line({ type: 'end', submitted: load.submitted, acknowledged: load.acknowledged, versions: load.versions });
bus.close();
