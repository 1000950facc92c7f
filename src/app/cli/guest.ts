import {
  type BlkDriver,
  type BusOptions,
  connect,
  connectXen,
  deviceInfo,
  type GuestBus,
  offeredFeatures,
  RngDriver,
} from '../../guest/index.ts';
import { VmsgError } from '../../kit/errors.ts';
import { SystemCallError } from '../../libc/errno.ts';
import { CliError, exitCode, usageError } from './exit-codes.ts';
import { type BusPlace, GuestArgs } from './guest-args.ts';
import { blkCopy, blkRead, blkVerify, blkWrite, openDisk } from './guest-blk.ts';
import { runConsole } from './guest-console.ts';
import { writeOut } from './guest-output.ts';
import { runGuestServe } from './guest-serve.ts';
import { runTour } from './guest-tour.ts';
import type { CliIo } from './io.ts';
import { table } from './table.ts';

const help = `vmsg guest: the driver side of a bus

  vmsg guest enumerate --bus SOCKET [--json]        the devices of the bus
  vmsg guest info DEVICE --bus SOCKET [--json]      what one device says about itself
  vmsg guest blk DEVICE read --out FILE|- [--offset SIZE] [--length SIZE]
  vmsg guest blk DEVICE write --in FILE|- [--offset SIZE]
  vmsg guest blk DEVICE verify --sha256 HEX | --against FILE [--offset SIZE] [--length SIZE]
  vmsg guest blk DEVICE copy --to DEVICE | --from DEVICE [--length SIZE]
  vmsg guest console DEVICE [--port N] [--eof]      stdin and stdout to a port; Ctrl-] ends, --eof: the end of stdin
  vmsg guest rng DEVICE --bytes SIZE [--hex]        random bytes on stdout
  vmsg guest ping --bus SOCKET [--json]             how long the service takes to answer
  vmsg guest serve --bus SOCKET [--disk-image FILE [--read-only]] [--entropy]
                                                    serve devices on a bus of role device
  vmsg guest tour --bus SOCKET ...                  the guest of "vmsg demo": one JSON object a line
       [--bytes SIZE --sha256 HEX]                    what the first disk must hold
       [--disk DEVICE] [--scratch DEVICE] [--scratch-bytes SIZE] [--seed N] [--random SIZE]
       [--hotplug-timeout SECONDS]

Every command takes --bus, and --reconnect SECONDS to resume when the service restarts.
  --bus SOCKET           a loopback bus
  --bus xen[:INDEX]      a bus of this Xen domain, 0 by default
  --memory pool|grants   xen: memory that is granted once (pool), or every buffer by its grants
  --pool SIZE            xen: size of the pool, 16M by default
A SIZE is a number of bytes such as 512, 4k, 16M or 1G.
Exit codes: 64 usage, 65 the data differs, 69 the bus or the device is not available, 74 I/O error.
`;

type Command = (bus: GuestBus, args: GuestArgs, io: CliIo) => Promise<number | undefined>;

const withDisk =
  (run: (disk: BlkDriver, args: GuestArgs, io: CliIo) => Promise<void>): Command =>
  async (bus, args, io) => {
    const disk = await openDisk(bus, args.device());
    try {
      await run(disk, args, io);
    } finally {
      await disk.close();
    }
    return undefined;
  };

const commands: Readonly<Record<string, Command>> = {
  console: runConsole,
  enumerate,
  info,
  ping,
  rng,
  tour: runTour,
  'blk read': withDisk(blkRead),
  'blk write': withDisk(blkWrite),
  'blk verify': withDisk(blkVerify),
  'blk copy': withDisk(blkCopy),
};

const hex = (value: number, digits: number): string => `0x${value.toString(16).padStart(digits, '0')}`;

async function enumerate(bus: GuestBus, args: GuestArgs, io: CliIo): Promise<undefined> {
  const devices = await Promise.all((await bus.devices()).map((number) => deviceInfo(bus, number)));
  if (args.flag('json')) io.stdout.write(`${JSON.stringify(devices)}\n`);
  else if (devices.length === 0) io.stdout.write('The bus has no devices.\n');
  else {
    const rows = devices.map((device) => [
      String(device.number),
      device.name,
      String(device.maxVirtqueues),
      String(device.configSize),
      hex(device.vendorId, 8),
      device.uuid ?? '-',
    ]);
    io.stdout.write(table(['DEVICE', 'TYPE', 'QUEUES', 'CONFIG BYTES', 'VENDOR', 'UUID'], rows));
  }
}

async function info(bus: GuestBus, args: GuestArgs, io: CliIo): Promise<undefined> {
  const device = await deviceInfo(bus, args.device());
  const features = (await offeredFeatures(bus, device)).names(device.type);
  const { status } = await bus.request(device.number, 'GET_DEVICE_STATUS', {});
  if (args.flag('json')) io.stdout.write(`${JSON.stringify({ ...device, features, status })}\n`);
  else {
    const rows = [
      ['device', String(device.number)],
      ['type', `${device.name} (${device.type})`],
      ['vendor', hex(device.vendorId, 8)],
      ['uuid', device.uuid ?? '-'],
      ['queues', String(device.maxVirtqueues)],
      ['config bytes', String(device.configSize)],
      ['status', hex(status, 2)],
      ['features', features.join(' ')],
    ];
    io.stdout.write(table(['FIELD', 'VALUE'], rows));
  }
}

async function ping(bus: GuestBus, args: GuestArgs, io: CliIo): Promise<undefined> {
  const ms = Number((await bus.ping()).toFixed(3));
  io.stdout.write(args.flag('json') ? `${JSON.stringify({ ms })}\n` : `The service answered after ${ms} ms.\n`);
}

async function rng(bus: GuestBus, args: GuestArgs, io: CliIo): Promise<undefined> {
  const count = args.size('bytes');
  if (count === undefined) throw usageError('guest rng needs --bytes SIZE');
  const driver = await RngDriver.open(bus, args.device());
  try {
    const chunk = 1024 * 1024;
    for (let at = 0; at < count; at += chunk) {
      const bytes = Buffer.from(await driver.read(Math.min(chunk, count - at)));
      await writeOut(io.stdout, args.flag('hex') ? bytes.toString('hex') : bytes);
    }
    if (args.flag('hex')) await writeOut(io.stdout, '\n');
  } finally {
    await driver.close();
  }
}

/** Checks what can be checked without a bus, so that usage errors come first. */
function checkUsage(args: GuestArgs): Command {
  const command = commands[args.command];
  if (command === undefined) throw usageError(`no command 'guest ${args.command}'; "vmsg guest --help" lists them`);
  if (args.command !== 'tour' && args.command !== 'enumerate' && args.command !== 'ping') args.device();
  const { command: name } = args;
  if (name === 'blk read') args.path('out', 'FILE');
  if (name === 'blk write') args.path('in', 'FILE');
  if (name === 'rng') args.required('bytes', 'SIZE');
  if (name === 'blk verify' && (args.text('sha256') === undefined) === (args.text('against') === undefined)) {
    throw usageError('guest blk verify needs --sha256 HEX or --against FILE');
  }
  if (name === 'blk copy' && (args.text('from') === undefined) === (args.text('to') === undefined)) {
    throw usageError('guest blk copy needs --to DEVICE or --from DEVICE');
  }
  for (const option of ['offset', 'length', 'bytes', 'scratch-bytes', 'random'] as const) args.size(option);
  for (const option of ['from', 'to', 'disk', 'scratch', 'port'] as const) args.number(option, 0xffff);
  args.sha256();
  return command;
}

/** Commands that need no memory. */
const moveNoData = ['enumerate', 'info', 'ping'];
const busyAttempts = 10;
const busyPauseMs = 50;

/** The service may still be taking leave of the guest before us. */
async function connectPatiently(place: BusPlace, options: BusOptions): Promise<GuestBus> {
  // The Xen bus waits by itself.
  if (place.xen !== undefined) return await connectXen({ ...place.xen, ...options });
  for (let attempt = 1; ; attempt++) {
    try {
      return await connect({ path: place.path, ...options });
    } catch (error) {
      if (!(error instanceof VmsgError && error.code === 'bus-busy') || attempt === busyAttempts) throw error;
      await new Promise((resolve) => setTimeout(resolve, busyPauseMs));
    }
  }
}

async function run(argv: string[], io: CliIo): Promise<number> {
  const args = new GuestArgs(argv, io);
  if (args.help) {
    io.stdout.write(help);
    return exitCode.ok;
  }
  const serves = args.command === 'serve';
  const command = serves ? undefined : checkUsage(args);
  const place = args.bus();
  if (command === undefined) return await runGuestServe(place, args, io);
  const seconds = args.number('reconnect', 3600) ?? 0;
  const bus = await connectPatiently(place, {
    ...(seconds === 0 ? {} : { reconnect: { totalMs: seconds * 1000 } }),
    ...(moveNoData.includes(args.command) ? { memoryBytes: 0 } : {}),
  });
  try {
    return (await command(bus, args, io)) ?? exitCode.ok;
  } finally {
    bus.close();
  }
}

/**
 * Runs `vmsg guest ...`. What goes wrong is one sentence on stderr.
 * @param argv what follows `guest`. @returns the exit code: 0, 64 usage, 65 data differs, 69 not available, 74 I/O error
 */
export async function runGuest(argv: string[], io: CliIo): Promise<number> {
  try {
    return await run(argv, io);
  } catch (error) {
    const { code, message } = explain(error);
    io.stderr.write(`vmsg guest: ${message.split('\n')[0]}\n`);
    return code;
  }
}

function explain(error: unknown): { code: number; message: string } {
  if (error instanceof CliError) return { code: error.exitCode, message: error.message };
  const message = error instanceof Error ? error.message : String(error);
  const nodeCode = (error as NodeJS.ErrnoException).code ?? '';
  if (error instanceof VmsgError) {
    if (error.code === 'invalid-request') return { code: exitCode.usage, message };
    const isIo = error.code === 'io-error' || error.code === 'device-failed' || error instanceof SystemCallError;
    return { code: isIo ? exitCode.ioError : exitCode.unavailable, message };
  }
  if (nodeCode.startsWith('ERR_PARSE_ARGS')) return { code: exitCode.usage, message };
  // What is left comes from files and streams of the user.
  return { code: exitCode.ioError, message };
}
