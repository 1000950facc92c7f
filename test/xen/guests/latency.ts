import { BlkDriver } from '../../../src/guest/index.ts';
import { type BusOrder, openBus, orderOf, say, untilStopped } from './bus.ts';

/** Reads 4 KiB after 4 KiB and says how long each took, until SIGTERM. */
export interface LatencyOrder extends BusOrder {
  readonly disk: number;
}

export interface LatencyLine {
  readonly type: 'window';
  /** Of consecutive reads, microseconds. */
  readonly latencies: number[];
}

const samplesPerLine = 60;
const readBytes = 4096;

const order = orderOf<LatencyOrder>();
const bus = await openBus(order);
const disk = await BlkDriver.open(bus, order.disk, { depth: 1 });
const buffer = disk.device.alloc(readBytes, readBytes);
let going = true;
void untilStopped().then(() => {
  going = false;
});
const places = disk.capacityBytes / readBytes;
for (let n = 0; going; ) {
  const latencies: number[] = [];
  for (; latencies.length < samplesPerLine; n++) {
    const began = performance.now();
    await disk.read(((n * 7919) % places) * (readBytes / 512), buffer);
    latencies.push(Math.round((performance.now() - began) * 1000));
  }
  say({ type: 'window', latencies } satisfies LatencyLine);
}
bus.close();
