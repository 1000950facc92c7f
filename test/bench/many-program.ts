import { connect, RngDriver } from '../../src/guest/index.ts';
import { serveCommands, workText } from './commands.ts';

/**
 * Guests with many idle devices: BUS-SOCKET... Every device has a driver that is ready. `run MS` sends requests to the
 * first device, one at a time.
 */
const memoryBytes = 8 * 1024 * 1024;
const queueSize = 8;

const buses = await Promise.all(process.argv.slice(2).map((path) => connect({ path, memoryBytes })));
for (const bus of buses) {
  for (const device of await bus.devices()) await RngDriver.open(bus, device, { size: queueSize });
}

async function status(ms: number): Promise<string> {
  const start = performance.now();
  let count = 0;
  for (; performance.now() < start + ms; count++) await buses[0]!.request(0, 'GET_DEVICE_STATUS', {});
  return workText({ count, ms: performance.now() - start });
}

await serveCommands(([, ms]) => status(Number(ms)));
