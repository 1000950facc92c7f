import { basename } from 'node:path';
import { parseArgs } from 'node:util';
import type { ApiClient } from './api-client.ts';
import { forwardedPorts } from './backend-options.ts';
import { CliError, exitCode, usageError } from './exit-codes.ts';
import { guessFormat } from './image-format.ts';
import { type CliIo, resolvePath } from './io.ts';
import { pathOf, put } from './objects.ts';
import { required, type Values, wholeNumber } from './values.ts';

const options = {
  id: { type: 'string' },
  number: { type: 'string' },
  name: { type: 'string' },
  disk: { type: 'string' },
  format: { type: 'string' },
  'read-only': { type: 'boolean' },
  directory: { type: 'string' },
  tag: { type: 'string' },
  network: { type: 'boolean' },
  mac: { type: 'string' },
  forward: { type: 'string' },
  vsock: { type: 'string' },
  'host-socket': { type: 'string' },
  json: { type: 'boolean' },
} as const;

/** A backend that `vmsg attach` makes. */
interface Made {
  readonly spec: object;
  /** What the user may want to know. */
  readonly note: string;
}

/** One kind of backend, by the option that asks for it. */
interface Kind {
  /** Further options that it has. */
  readonly options: readonly string[];
  make(values: Values, io: CliIo): Made;
}

const readOnlyOf = (values: Values): object => (values['read-only'] === true ? { readOnly: true } : {});

function makeDisk(values: Values, io: CliIo): Made {
  const path = resolvePath(io, required(values, 'disk'));
  const format = typeof values.format === 'string' ? values.format : guessFormat(path);
  const readOnly = readOnlyOf(values);
  if (format === 'raw') return { spec: { type: 'blk', path, ...readOnly }, note: 'a raw image, served by vmsg itself' };
  const note = `a ${format} image, served by qemu-storage-daemon`;
  return { spec: { type: 'qemu-storage-daemon', path, format, ...readOnly }, note };
}

function makeDirectory(values: Values, io: CliIo): Made {
  const directory = resolvePath(io, required(values, 'directory'));
  const name = basename(directory)
    .replace(/[^!-~]/g, '-')
    .slice(0, 36);
  const tag = typeof values.tag === 'string' ? values.tag : name || 'root';
  const note = `served by virtiofsd; in the guest: mount -t virtiofs ${tag} DIRECTORY`;
  return { spec: { type: 'virtiofsd', directory, tag, ...readOnlyOf(values) }, note };
}

function makeNetwork(values: Values): Made {
  const mac = typeof values.mac === 'string' ? { mac: values.mac } : {};
  const ports = typeof values.forward === 'string' ? { ports: forwardedPorts(values.forward) } : {};
  return { spec: { type: 'passt', ...mac, ...ports }, note: 'a network of the host, by passt' };
}

function makeVsock(values: Values, io: CliIo): Made {
  const guestCid = wholeNumber(required(values, 'vsock'), '--vsock');
  const hostSocket = resolvePath(io, required(values, 'host-socket'));
  return { spec: { type: 'vhost-device-vsock', guestCid, hostSocket }, note: `streams by ${hostSocket}` };
}

const kinds: Readonly<Record<string, Kind>> = {
  disk: { options: ['format', 'read-only'], make: makeDisk },
  directory: { options: ['tag', 'read-only'], make: makeDirectory },
  network: { options: ['mac', 'forward'], make: makeNetwork },
  vsock: { options: ['host-socket'], make: makeVsock },
};
const common = ['id', 'number', 'json'];

/** `vmsg attach BUS BACKEND`, or with a new backend. */
export async function runAttach(args: string[], api: ApiClient, io: CliIo): Promise<number> {
  const { values, positionals } = parseArgs({ args, allowPositionals: true, options });
  const [bus, backend, ...surplus] = positionals;
  const asked = Object.keys(kinds).filter((kind) => (values as Values)[kind] !== undefined);
  const isNew = asked.length === 1 && backend === undefined;
  if (bus === undefined || surplus.length > 0 || (!isNew && (backend === undefined || asked.length > 0))) {
    throw usageError('vmsg attach takes a bus, and a backend or one of --disk, --directory, --network and --vsock');
  }
  const [kind = ''] = asked;
  checkOptions(values, kind);
  const number = values.number === undefined ? {} : { deviceNumber: wholeNumber(values.number, '--number') };
  const attach = (id: string, to: string): Promise<unknown> =>
    put('attachments', values.id ?? id, { bus, backend: to, ...number }, api, io, values.json === true);
  if (backend !== undefined) await attach(`${bus}.${backend}`, backend);
  else {
    const made = kinds[kind]!.make(values, io);
    const { name = `${bus}.${kind}` } = values;
    await withBackend(name, made, api, io, () => attach(values.name === undefined ? name : `${bus}.${name}`, name));
  }
  return exitCode.ok;
}

function checkOptions(values: Values, kind: string): void {
  const allowed = [...common, ...(kind === '' ? [] : ['name', kind, ...kinds[kind]!.options])];
  const wrong = Object.keys(values).find((name) => !allowed.includes(name));
  if (wrong !== undefined)
    throw usageError(`--${wrong} is not for ${kind === '' ? 'a backend that exists' : `--${kind}`}`);
}

/** Makes a backend for what `attach` does; when that fails, a backend that was not there before goes again. */
async function withBackend(
  name: string,
  { spec, note }: Made,
  api: ApiClient,
  io: CliIo,
  attach: () => Promise<unknown>,
): Promise<void> {
  const path = pathOf('backends', name);
  const { status } = await api.call('PUT', path, spec).catch((error: unknown) => {
    if (!(error instanceof CliError) || !error.message.endsWith('[in-use]')) throw error;
    throw new CliError(error.exitCode, `${error.message}; --name gives the new one another id`);
  });
  io.stderr.write(`backends/${name}: ${note}\n`);
  try {
    await attach();
  } catch (error) {
    // What the attachment says matters more than that this may fail too.
    if (status === 201) await api.call('DELETE', path).catch(() => {});
    throw error;
  }
}
