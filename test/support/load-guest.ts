import { BlkDriver, connect, RngDriver } from '../../src/guest/index.ts';
import { SeededRandom } from './random.ts';

/**
 * A guest process that keeps a disk and an rng busy until it is killed: arguments are the path of the bus and a
 * seed. Prints one line when it has begun.
 */
const [path = '', seed = '1'] = process.argv.slice(2);
const random = new SeededRandom(Number(seed));
const bus = await connect({ path, memoryBytes: 4 * 1024 * 1024 });
const [disk = 0, rng = 1] = await bus.devices();
const notify = random.below(2) === 0 ? 'messages' : 'descriptors';
const blk = await BlkDriver.open(bus, disk, { notify, depth: 8, transferBytes: 64 * 1024 });
const entropy = await RngDriver.open(bus, rng);
process.stdout.write('begun\n');

async function diskLoad(): Promise<never> {
  const data = new Uint8Array(64 * 1024).fill(random.below(256));
  for (;;) {
    const sector = random.below(blk.capacitySectors - 128);
    if (random.below(2) === 0) await blk.write(sector, data);
    else await blk.read(sector, data.length);
    if (random.below(16) === 0) await blk.flush();
  }
}

async function regionLoad(): Promise<never> {
  for (;;) {
    const area = await bus.memory.addRegion(64 * 1024);
    await entropy.read(256);
    await bus.memory.removeRegion(area);
  }
}

await Promise.all([diskLoad(), diskLoad(), diskLoad(), diskLoad(), regionLoad()]);
