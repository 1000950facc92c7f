import { homedir, tmpdir } from 'node:os';
import { parseArgs } from 'node:util';
import { pino } from 'pino';
import { toErrorData } from '../kit/errors.ts';
import { CliError, exitCode } from './cli/exit-codes.ts';
import { type CliIo, resolvePath } from './cli/io.ts';
import { startService } from './compose.ts';
import { type Config, loadConfig, type Surroundings } from './config.ts';
import { configHelp } from './config-help.ts';
import { endSignal } from './signals.ts';
import { activatedSocket, notifyManager } from './systemd.ts';

export const surroundings = (io: CliIo): Surroundings => ({
  uid: process.getuid?.() ?? 0,
  home: homedir(),
  tmpdir: tmpdir(),
  env: io.env,
});

const serveHelp = (): string => `vmsg serve [--config FILE]

Runs the service until SIGINT or SIGTERM. Guests that are connected then may resume at the next start.
Log lines are JSON on standard output.

Fields of the config file (JSON; every one has a default):
${configHelp()}
`;

/** `vmsg serve`. @returns exit code, when the service has ended */
export async function runServe(args: string[], io: CliIo): Promise<number> {
  const { values } = parseArgs({ args, options: { config: { type: 'string' }, help: { type: 'boolean' } } });
  if (values.help) {
    io.stdout.write(serveHelp());
    return exitCode.ok;
  }
  const config = readConfig(values.config, io);
  const log = pino({ level: config.log.level });
  const ended = endSignal();
  const tell = (text: string): void => {
    const failure = notifyManager(io.env, text);
    if (failure !== null) log.warn({ reason: failure }, 'the service manager cannot be told');
  };
  const service = await startService(config, log, activatedSocket(io.env, process.pid));
  tell('READY=1');
  const signal = await ended;
  tell('STOPPING=1');
  log.info({ signal }, 'stopping');
  await service.stop();
  return exitCode.ok;
}

function readConfig(path: string | undefined, io: CliIo): Config {
  try {
    return loadConfig(path === undefined ? undefined : resolvePath(io, path), surroundings(io));
  } catch (error) {
    throw new CliError(exitCode.config, toErrorData(error).message);
  }
}
