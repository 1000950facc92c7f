import { ApiClient } from '../../src/app/cli/api-client.ts';
import { BlkDriver, connect, type GuestBus } from '../../src/guest/index.ts';
import { serveCommands, workText } from './commands.ts';
import { DiskLoad, diskMemoryBytes, type Work } from './disk-load.ts';

/**
 * The guest of the bench: BUS-SOCKET API-SOCKET BUS. `run ping MS` and `run blk DEVICE read|write BYTES DEPTH
 * MS` are answered with `COUNT SECONDS`, `attach BACKEND COUNT` with the milliseconds of each.
 */
const [busPath = '', apiPath = '', busId = ''] = process.argv.slice(2);
const disksMax = 4;
const attachDepth = 4;

const bus: GuestBus = await connect({ path: busPath, memoryBytes: disksMax * diskMemoryBytes });
const api = new ApiClient(apiPath);
const disks = new Map<string, Promise<DiskLoad>>();

async function ping(ms: number): Promise<Work> {
  const start = performance.now();
  let count = 0;
  for (; performance.now() < start + ms; count++) await bus.ping();
  return { count, ms: performance.now() - start };
}

function diskOf(device: string): Promise<DiskLoad> {
  const disk = disks.get(device) ?? DiskLoad.open(bus, Number(device));
  disks.set(device, disk);
  return disk;
}

/** Milliseconds from the PUT until a driver has set DRIVER_OK; what takes the device away again is not counted. */
async function attach(backend: string): Promise<number> {
  const path = `/v1/attachments/${busId}.${backend}`;
  const added = new Promise<number>((resolve) => {
    const end = bus.on('added', ({ device }) => {
      end();
      resolve(device);
    });
  });
  const start = performance.now();
  const put = api.call('PUT', path, { bus: busId, backend });
  const driver = await BlkDriver.open(bus, await added, { depth: attachDepth });
  const ms = performance.now() - start;
  await put;
  await driver.device.close();
  await api.call('DELETE', path);
  return ms;
}

async function attachTimes(backend: string, count: number): Promise<string> {
  const times: number[] = [];
  while (times.length < count) times.push(await attach(backend));
  return times.map((ms) => ms.toFixed(3)).join(' ');
}

await serveCommands(async ([verb = '', ...words]) => {
  if (verb === 'attach') return attachTimes(words[0]!, Number(words[1]));
  const [kind, device = '', ...load] = words;
  if (kind === 'ping') return workText(await ping(Number(device)));
  return workText(await (await diskOf(device)).run(load));
});
