import { setTimeout as sleep } from 'node:timers/promises';
import { type BusRange, type VirtioDevice, VmsgError } from '../../src/guest/index.ts';

/** Lengths of the buffers of a chain that no driver would make, and what its readable bytes hold. */
interface Chain {
  readonly readable: readonly number[];
  readonly writable: readonly number[];
  readonly fill: number;
}

const chains: readonly Chain[] = [
  { readable: [1], writable: [], fill: 0 },
  { readable: [], writable: [1], fill: 0 },
  { readable: [1], writable: [1], fill: 0xff },
  { readable: [15], writable: [513], fill: 0 },
  { readable: [16, 512], writable: [], fill: 1 },
  { readable: [16], writable: [512, 1], fill: 0xff },
  { readable: [40], writable: [15], fill: 0xff },
  { readable: [40], writable: [16], fill: 0 },
  { readable: [44], writable: [], fill: 0xff },
  { readable: [12, 4], writable: [], fill: 0xff },
  { readable: [4096, 4096], writable: [4096, 4096], fill: 0xff },
  { readable: [65_536], writable: [], fill: 0x5a },
  { readable: new Array<number>(16).fill(1), writable: new Array<number>(16).fill(1), fill: 7 },
];

/** A device may keep a chain that it cannot make sense of; who waits for longer waits in vain. */
const patienceMs = 30;

/**
 * Puts every kind of wrong chain into a queue.
 * @param open takes the device, whatever the chain before did to it. @param oneOf of so many chains, others for each queue
 */
export async function misuse(open: () => Promise<VirtioDevice>, queue: number, oneOf = 1): Promise<void> {
  for (const chain of chains.filter((_, i) => i % oneOf === queue % oneOf)) {
    const device = await open();
    try {
      const opened = await device.addQueue(queue);
      await device.start();
      const total = [...chain.readable, ...chain.writable].reduce((sum, length) => sum + length, 0);
      const buffer = device.alloc(total);
      buffer.bytes.fill(chain.fill);
      let at = 0;
      const take = (length: number): BusRange => {
        at += length;
        return buffer.range(at - length, length);
      };
      const sent = opened.submit(chain.readable.map(take), chain.writable.map(take));
      await Promise.race([sent.catch(mustBeVmsgError), sleep(patienceMs)]);
    } finally {
      await device.close();
    }
  }
}

function mustBeVmsgError(error: unknown): void {
  if (!(error instanceof VmsgError)) throw error;
}
