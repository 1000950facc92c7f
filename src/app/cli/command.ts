import { toErrorData, VmsgError } from '../../kit/errors.ts';
import { packageVersion } from '../package-files.ts';
import { CliError, exitCode } from './exit-codes.ts';
import type { CliIo } from './io.ts';

const help = `vmsg: virtio-msg buses for VMs

  vmsg demo [--disk FILE] [--exit]           start everything and show real data flow
  vmsg serve [--config FILE]                 run the service; --help lists the config fields
  vmsg doctor [--role ROLE] [--config FILE]  what this machine has and lacks to be a service, xen-service or xen-guest

  vmsg ls                                    buses and attachments
  vmsg domain  ls|show|add|rm [ID]           add: [--xen-name NAME | --xen-uuid UUID] [--description TEXT]
  vmsg bus     ls|show|add|rm [ID]           add: --domain ID [--role driver|device] [--max-message-size BYTES]
                                                  [--admit UID,...]
                                                  of a Xen domain: [--index N] [--pool-max BYTES]
                                                  [--on-stuck report|destroy-mapper]
  vmsg backend ls|show|add|rm [ID]           add: --type blk --path FILE [--read-only] [--serial TEXT]
                                                  [--queues N]
                                                  --type rng [--source FILE]
                                                  --type console --socket PATH | --pty PATH [--name TEXT]
                                                  --type shm [--bytes N]
                                                  --type template [--greeting TEXT]
                                                  --type guest --bus ID --device N
                                                      [--data-path auto|direct|shadow]
                                                  --type bridge --socket PATH --device N
                                                  --type vhost-user --socket PATH [--mode connect|listen]
                                                      --serves blk|net|fs|vsock|rng|i2c
                                             programs that the service starts:
                                                  --type qemu-storage-daemon --path FILE [--format FORMAT]
                                                      [--read-only] [--queues N]
                                                  --type virtiofsd --directory DIR --tag TAG [--read-only]
                                                      [--sandbox namespace|none]
                                                  --type passt [--mac MAC] [--address IP --prefix-length N]
                                                      [--gateway IP] [--dns IP,...] [--ipv4-only]
                                                      [--host-loopback] [--forward PORTS]
                                                  --type vhost-device-vsock --guest-cid N --host-socket PATH
                                                  --type program --program NAME
  vmsg attach BUS BACKEND [--id ID] [--number N]
  vmsg attach BUS --disk FILE [--format FORMAT] [--read-only]
  vmsg attach BUS --directory DIR [--tag TAG] [--read-only]
  vmsg attach BUS --network [--mac MAC] [--forward [udp:][ADDRESS:]PORT[:GUESTPORT],...]
  vmsg attach BUS --vsock CID --host-socket PATH
                                             the last four make the backend too: [--name ID] [--id ID] [--number N]
  vmsg detach ATTACHMENT
  vmsg attachment ls|show|add|rm [ID]        add: --bus ID --backend ID [--number N]
  vmsg events                                what happens, until the service ends
  vmsg channels [BUS] [--records]            message paths; --records: the last messages of one
  vmsg shares                                memory that guests share
  vmsg metrics                               counters of buses and attachments

  vmsg guest --help                          the driver side: find and use the devices of a bus

Commands that speak to the service take --api SOCKET (default: $VMSG_API, else where "vmsg serve" puts it), or
--api http://127.0.0.1:PORT with --token-file FILE (default: $VMSG_TOKEN_FILE);
ls, show, add, attach, events, channels, shares, metrics and doctor take --json.
`;

type Command = (args: string[], io: CliIo) => Promise<number>;

/** What has many parts is loaded when it is wanted: a guest, or a small machine, needs few of them. */
const largeCommands: Readonly<Record<string, () => Promise<Command>>> = {
  serve: async () => (await import('../serve.ts')).runServe,
  demo: async () => (await import('../demo/demo.ts')).runDemo,
  guest: async () => (await import('./guest.ts')).runGuest,
  doctor: async () => (await import('./doctor.ts')).runDoctor,
};

async function dispatch(argv: string[], io: CliIo): Promise<number> {
  const [name = 'help', ...args] = argv;
  if (name === 'help' || name === '--help' || name === '-h') io.stdout.write(help);
  else if (name === '--version' || name === 'version') io.stdout.write(`vmsg ${packageVersion()}\n`);
  else if (name === 'doctor' && args.includes('--help')) io.stdout.write(help);
  else if (Object.hasOwn(largeCommands, name)) return await (await largeCommands[name]!())(args, io);
  else {
    const { callService } = await import('./service-commands.ts');
    return await callService(name, args, io, help);
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
