import { ConsoleDriver, type ConsolePort, type GuestBus } from '../../guest/index.ts';
import type { GuestArgs } from './guest-args.ts';
import { writeOut } from './guest-output.ts';
import type { CliIo } from './io.ts';

/** Ctrl-], as in telnet(1). */
const escapeByte = 0x1d;
const portMax = 0xffff;

/**
 * `vmsg guest console`: stdin and stdout are the guest's side of a port, once a program of the host is connected. Ends
 * when that program closes, with Ctrl-] on a terminal, and with --eof when stdin ends and the host has all of it.
 */
export async function runConsole(bus: GuestBus, args: GuestArgs, io: CliIo): Promise<undefined> {
  const driver = await ConsoleDriver.open(bus, args.device());
  try {
    const port = await driver.port(args.number('port', portMax) ?? 0);
    await port.open();
    const terminal = process.stdin.isTTY === true;
    if (terminal && !port.hostOpen) io.stderr.write(`port ${port.id}: waits for a program of the host\n`);
    await port.untilHostOpen();
    if (terminal) io.stderr.write(`port ${port.id} ${port.name}: Ctrl-] ends\n`);
    await connectStdio(port, terminal, args.flag('eof'), io);
    await port.close();
  } finally {
    await driver.close();
  }
}

async function connectStdio(port: ConsolePort, terminal: boolean, endWithInput: boolean, io: CliIo): Promise<void> {
  if (terminal) process.stdin.setRawMode(true);
  try {
    const sending = send(port, terminal).then((escaped) => (escaped || endWithInput ? undefined : forever()));
    await Promise.race([receive(port, io), sending]);
  } finally {
    if (terminal) process.stdin.setRawMode(false);
    // A read of stdin under way would keep the process.
    process.stdin.destroy();
  }
}

const forever = (): Promise<never> => new Promise(() => {});

async function receive(port: ConsolePort, io: CliIo): Promise<void> {
  for await (const bytes of port) await writeOut(io.stdout, bytes);
}

/** @returns whether the user wants to leave; else stdin has ended */
async function send(port: ConsolePort, terminal: boolean): Promise<boolean> {
  for await (const bytes of process.stdin as AsyncIterable<Uint8Array>) {
    const at = terminal ? bytes.indexOf(escapeByte) : -1;
    await port.write(at < 0 ? bytes : bytes.subarray(0, at));
    if (at >= 0) return true;
  }
  return false;
}
