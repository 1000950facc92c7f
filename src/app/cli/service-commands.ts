import type { ApiClient } from './api-client.ts';
import { apiTarget } from './api-target.ts';
import { runAttach } from './attach.ts';
import { exitCode, usageError } from './exit-codes.ts';
import type { CliIo } from './io.ts';
import { runMetrics } from './metrics.ts';
import { type ObjectName, objectCommands, runObjectCommand } from './objects.ts';
import { runChannels, runShares } from './observations.ts';
import { runDetach, runEvents, runLs } from './overview.ts';

type ApiCommand = (args: string[], api: ApiClient, io: CliIo) => Promise<number>;

const apiCommands: Readonly<Record<string, ApiCommand>> = {
  ls: runLs,
  attach: runAttach,
  detach: runDetach,
  events: runEvents,
  channels: runChannels,
  shares: runShares,
  metrics: runMetrics,
  ...Object.fromEntries(
    (Object.keys(objectCommands) as ObjectName[]).map((name): [string, ApiCommand] => [
      name,
      (args, api, io) => runObjectCommand(name, args, api, io),
    ]),
  ),
};

/** A command that asks a running service. @param help what `--help` prints. @returns exit code */
export async function callService(name: string, args: string[], io: CliIo, help: string): Promise<number> {
  const command = apiCommands[name];
  if (command === undefined) throw usageError(`no command '${name}'; "vmsg --help" lists them`);
  if (args.includes('--help')) {
    io.stdout.write(help);
    return exitCode.ok;
  }
  const { api, rest } = apiTarget(args, io);
  return await command(rest, api, io);
}
