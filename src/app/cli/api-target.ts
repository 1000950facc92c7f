import { readFileSync } from 'node:fs';
import { loadConfig } from '../config.ts';
import { surroundings } from '../serve.ts';
import { ApiClient, type TcpTarget } from './api-client.ts';
import { CliError, exitCode, usageError } from './exit-codes.ts';
import { type CliIo, resolvePath } from './io.ts';

/** Takes `--api` and `--token-file` out of the arguments, wherever they stand, and says whom to call. */
export function apiTarget(args: readonly string[], io: CliIo): { api: ApiClient; rest: string[] } {
  const rest = [...args];
  const target = takeOption(rest, '--api', 'the path of a socket, or http://127.0.0.1:PORT') ?? io.env.VMSG_API;
  const tokenFile = takeOption(rest, '--token-file', 'the path of a file') ?? io.env.VMSG_TOKEN_FILE;
  if (target !== undefined && /^[a-z]+:\/\//i.test(target)) {
    return { api: new ApiClient(tcpTarget(target, tokenFile, io)), rest };
  }
  const path = target === undefined ? loadConfig(undefined, surroundings(io)).api.socket : resolvePath(io, target);
  return { api: new ApiClient(path), rest };
}

function takeOption(args: string[], name: string, what: string): string | undefined {
  const at = args.findIndex((arg) => arg === name || arg.startsWith(`${name}=`));
  if (at < 0) return undefined;
  const [flag] = args.splice(at, 1);
  const value = flag === name ? args.splice(at, 1)[0] : flag?.slice(name.length + 1);
  if (value === undefined || value === '') throw usageError(`${name} takes ${what}`);
  return value;
}

/** The token must not travel further than this machine: nothing encrypts it. */
function tcpTarget(text: string, tokenFile: string | undefined, io: CliIo): TcpTarget {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const host = url?.hostname.replace(/^\[|\]$/g, '');
  const isLoopback = host === '127.0.0.1' || host === '::1' || host === 'localhost';
  if (url?.protocol !== 'http:' || url.pathname !== '/' || url.search !== '' || !isLoopback) {
    throw usageError(`--api takes the path of a socket, or http://127.0.0.1:PORT, not '${text}'`);
  }
  if (tokenFile === undefined) throw usageError('--api over TCP needs --token-file, or $VMSG_TOKEN_FILE');
  return { host, port: url.port === '' ? 80 : Number(url.port), token: readToken(resolvePath(io, tokenFile)) };
}

function readToken(path: string): string {
  try {
    const token = readFileSync(path, 'utf8').trim();
    if (/^[!-~]+$/.test(token)) return token;
  } catch (error) {
    throw new CliError(exitCode.config, `the token file cannot be read: ${(error as Error).message}`);
  }
  throw new CliError(exitCode.config, `${path} holds no token`);
}
