import { toErrorData, VmsgError } from '../../kit/errors.ts';
import { runDemo } from '../demo/demo.ts';
import { runServe } from '../serve.ts';
import { packageVersion } from '../version.ts';
import type { ApiClient } from './api-client.ts';
import { apiTarget } from './api-target.ts';
import { CliError, exitCode, usageError } from './exit-codes.ts';
import { runGuest } from './guest.ts';
import type { CliIo } from './io.ts';
import { runMetrics } from './metrics.ts';
import { type ObjectName, objectCommands, runObjectCommand } from './objects.ts';
import { runChannels, runShares } from './observations.ts';
import { runAttach, runDetach, runEvents, runLs } from './overview.ts';

const help = `vmsg: virtio-msg buses for VMs

  vmsg demo [--disk FILE] [--exit]           start everything and show real data flow
  vmsg serve [--config FILE]                 run the service; --help lists the config fields

  vmsg ls                                    buses and attachments
  vmsg domain  ls|show|add|rm [ID]           add: [--description TEXT]
  vmsg bus     ls|show|add|rm [ID]           add: --domain ID [--admit UID,...] [--max-message-size BYTES]
  vmsg backend ls|show|add|rm [ID]           add: --type blk --path FILE [--read-only] [--serial TEXT]
                                                  [--queues N]
                                                  --type rng [--source FILE]
                                                  --type console --socket PATH | --pty PATH [--name TEXT]
                                                  --type shm [--bytes N]
                                                  --type template [--greeting TEXT]
  vmsg attach BUS BACKEND [--id ID] [--number N]
  vmsg detach ATTACHMENT
  vmsg attachment ls|show|add|rm [ID]        add: --bus ID --backend ID [--number N]
  vmsg events                                what happens, until the service ends
  vmsg channels [BUS] [--records]            message paths; --records: the last messages of one
  vmsg shares                                memory that guests share
  vmsg metrics                               counters of buses and attachments

  vmsg guest --help                          the driver side: find and use the devices of a bus

Commands that speak to the service take --api SOCKET (default: $VMSG_API, else where "vmsg serve" puts it), or
--api http://127.0.0.1:PORT with --token-file FILE (default: $VMSG_TOKEN_FILE);
ls, show, add, attach, events, channels, shares and metrics take --json.
`;

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

async function dispatch(argv: string[], io: CliIo): Promise<number> {
  const [name = 'help', ...args] = argv;
  if (name === 'help' || name === '--help' || name === '-h') io.stdout.write(help);
  else if (name === '--version' || name === 'version') io.stdout.write(`vmsg ${packageVersion()}\n`);
  else if (name === 'serve') return await runServe(args, io);
  else if (name === 'demo') return await runDemo(args, io);
  else if (name === 'guest') return await runGuest(args, io);
  else {
    const command = apiCommands[name];
    if (command === undefined) throw usageError(`no command '${name}'; "vmsg --help" lists them`);
    if (args.includes('--help')) {
      io.stdout.write(help);
      return exitCode.ok;
    }
    const { api, rest } = apiTarget(args, io);
    return await command(rest, api, io);
  }
  return exitCode.ok;
}

/** Runs one command; what goes wrong is one sentence on stderr and an exit code. */
export async function runCommand(argv: string[], io: CliIo): Promise<number> {
  try {
    return await dispatch(argv, io);
  } catch (error) {
    const { code, message } = explain(error);
    io.stderr.write(`vmsg: ${message}\n`);
    return code;
  }
}

function explain(error: unknown): { code: number; message: string } {
  if (error instanceof CliError) return { code: error.exitCode, message: error.message };
  if (error instanceof VmsgError) {
    const code = error.code === 'invalid-config' ? exitCode.config : exitCode.failed;
    return { code, message: error.message };
  }
  // parseArgs: an unknown option, or one without its value.
  const nodeCode = (error as NodeJS.ErrnoException).code ?? '';
  if (nodeCode.startsWith('ERR_PARSE_ARGS')) return { code: exitCode.usage, message: (error as Error).message };
  return { code: exitCode.failed, message: `unexpected: ${toErrorData(error).message}` };
}
