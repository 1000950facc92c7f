import { randomFillSync } from 'node:crypto';
import { openBlk } from '../../bridge/backend/blk.ts';
import { openRng } from '../../bridge/backend/rng.ts';
import { type DeviceServer, serveDevices } from '../../guest/index.ts';
import { systemClock } from '../../kit/clock.ts';
import type { BackendHost } from '../../ports/backend.ts';
import { endSignal } from '../signals.ts';
import { CliError, exitCode, usageError } from './exit-codes.ts';
import type { BusPlace, GuestArgs } from './guest-args.ts';
import type { CliIo } from './io.ts';

/** A backend that fails says so and keeps its device: the next request shows it to the driver. */
const reportTo = (io: CliIo): BackendHost => ({
  configChanged: () => {},
  failed: (reason) => void io.stderr.write(`vmsg guest: ${reason}\n`),
});

/** @returns the numbers of the devices */
async function offer(server: DeviceServer, args: GuestArgs, io: CliIo): Promise<number[]> {
  const host = reportTo(io);
  const numbers: number[] = [];
  if (args.text('disk-image') !== undefined) {
    const spec = { path: args.path('disk-image', 'FILE'), readOnly: args.flag('read-only'), serial: 'guest' };
    numbers.push(server.addDevice(await openBlk(spec, host, systemClock)));
  }
  if (args.flag('entropy')) {
    const random = { fill: (target: Uint8Array) => void randomFillSync(target) };
    numbers.push(server.addDevice(await openRng({ source: '/dev/urandom' }, random, host)));
  }
  if (numbers.length === 0) throw usageError('guest serve needs --disk-image FILE or --entropy');
  return numbers;
}

/**
 * `vmsg guest serve`: the guest serves devices instead of using some, until SIGINT or SIGTERM.
 * @returns exit code
 */
export async function runGuestServe(place: BusPlace, args: GuestArgs, io: CliIo): Promise<number> {
  const seconds = args.number('reconnect', 3600) ?? 0;
  const options = seconds === 0 ? {} : { reconnect: { totalMs: seconds * 1000 } };
  const where = place.xen === undefined ? { path: place.path } : { xen: { index: place.xen.index } };
  const server = await serveDevices({ ...options, ...where });
  server.on('diagnosed', ({ text }) => void io.stderr.write(`vmsg guest: ${text}\n`));
  try {
    const lost = new Promise<never>((_, reject) => {
      server.on('lost', (error) => reject(new CliError(exitCode.unavailable, error.message)));
    });
    for (const number of await offer(server, args, io)) io.stdout.write(`serving device ${number}\n`);
    await Promise.race([endSignal(), lost]);
    return exitCode.ok;
  } finally {
    await server.close();
  }
}
