import { createInterface } from 'node:readline';
import { ApiClient } from '../../src/app/cli/api-client.ts';
import { BlkDriver, connect, type GuestBuffer, type GuestBus } from '../../src/guest/index.ts';

/**
 * The guest of the bench: BUS-SOCKET API-SOCKET BUS. Commands: `run ping MS`, `run attach MS` and
 * `run blk DEVICE read|write BYTES DEPTH MS`; each answer is `COUNT SECONDS`.
 */
const [busPath = '', apiPath = '', busId = ''] = process.argv.slice(2);
const depthMax = 32;
const transferMax = 128 * 1024;
const memoryBytes = 64 * 1024 * 1024;
const sectorBytes = 512;

interface Disk {
  readonly driver: BlkDriver;
  readonly buffers: readonly GuestBuffer[];
}

interface Work {
  readonly count: number;
  readonly ms: number;
}

const bus: GuestBus = await connect({ path: busPath, memoryBytes });
const api = new ApiClient(apiPath);
const disks = new Map<number, Disk>();

async function ping(ms: number): Promise<Work> {
  const start = performance.now();
  let count = 0;
  for (; performance.now() < start + ms; count++) await bus.ping();
  return { count, ms: performance.now() - start };
}

async function openDisk(device: number): Promise<Disk> {
  const open = disks.get(device);
  if (open !== undefined) return open;
  const driver = await BlkDriver.open(bus, device, { depth: depthMax, transferBytes: transferMax });
  const buffers = Array.from({ length: depthMax }, () => bus.memory.alloc(transferMax, 4096));
  const disk = { driver, buffers };
  disks.set(device, disk);
  return disk;
}

/** The generator of c/blk.c in 32 bits. */
function xorshift32(): () => number {
  let state = 2_463_534_242;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}

async function transfer([device, kind, bytes, depth]: readonly string[], ms: number): Promise<Work> {
  const { driver, buffers } = await openDisk(Number(device));
  const length = Number(bytes);
  const slots = Math.floor(driver.capacityBytes / length);
  const random = xorshift32();
  const start = performance.now();
  let count = 0;
  const oneByOne = async (buffer: GuestBuffer): Promise<void> => {
    const memory = buffer.slice(0, length);
    while (performance.now() < start + ms) {
      const sector = (random() % slots) * (length / sectorBytes);
      if (kind === 'write') await driver.write(sector, memory);
      else await driver.read(sector, memory);
      count += 1;
    }
  };
  await Promise.all(buffers.slice(0, Number(depth)).map(oneByOne));
  return { count, ms: performance.now() - start };
}

/** Time from the PUT until the guest hears of the device; what takes it away again is not counted. */
async function attach(ms: number): Promise<Work> {
  const path = `/v1/attachments/${busId}.bench-attach`;
  const start = performance.now();
  let count = 0;
  let attaching = 0;
  for (; performance.now() < start + ms; count++) {
    const added = new Promise<number>((resolve) => {
      const end = bus.on('added', () => {
        end();
        resolve(performance.now());
      });
    });
    const before = performance.now();
    await api.call('PUT', path, { bus: busId, backend: 'bench-attach' });
    attaching += (await added) - before;
    await api.call('DELETE', path);
  }
  return { count, ms: attaching };
}

function work(words: readonly string[]): Promise<Work> {
  const [kind, ...rest] = words;
  const ms = Number(rest.pop());
  if (kind === 'ping') return ping(ms);
  if (kind === 'attach') return attach(ms);
  return transfer(rest, ms);
}

console.log('ready');
for await (const line of createInterface({ input: process.stdin })) {
  const { count, ms } = await work(line.split(' ').slice(1));
  console.log(`${count} ${ms / 1000}`);
}
process.exit(0);
