import { parseArgs } from 'node:util';
import type { Kind, Resource } from '../../bridge/commands.ts';
import type { ApiClient } from './api-client.ts';
import { backendOptions, backendSpec, whatOf } from './backend-options.ts';
import { exitCode, usageError } from './exit-codes.ts';
import type { CliIo } from './io.ts';
import { table } from './table.ts';
import { required, type Values, wholeNumber } from './values.ts';

/** What the command knows of one kind of object. */
interface ObjectCommand<K extends Kind> {
  readonly kind: K;
  readonly options: Readonly<Record<string, { readonly type: 'string' | 'boolean' }>>;
  /** The body of a PUT from the options of `add`. */
  spec(values: Readonly<Record<string, string | boolean | undefined>>, io: CliIo): object;
  readonly header: readonly string[];
  row(resource: Resource<K>): string[];
}

const domain: ObjectCommand<'domains'> = {
  kind: 'domains',
  options: { description: { type: 'string' } },
  spec: (values) => (values.description === undefined ? {} : { description: values.description }),
  header: ['DOMAIN', 'DOMID', 'BUSES', 'DESCRIPTION'],
  row: ({ id, spec, status }) => [id, String(status.domid), status.buses.join(' '), spec.description ?? ''],
};

const bus: ObjectCommand<'buses'> = {
  kind: 'buses',
  options: {
    domain: { type: 'string' },
    role: { type: 'string' },
    admit: { type: 'string' },
    'max-message-size': { type: 'string' },
  },
  spec: (values) => ({
    domain: required(values, 'domain'),
    transport: 'loopback',
    role: values.role ?? 'driver',
    ...(values.admit === undefined
      ? {}
      : {
          admittedUids: required(values, 'admit')
            .split(',')
            .map((uid) => wholeNumber(uid, '--admit')),
        }),
    ...(values['max-message-size'] === undefined
      ? {}
      : { maxMessageSizeBytes: wholeNumber(required(values, 'max-message-size'), '--max-message-size') }),
  }),
  header: ['BUS', 'DOMAIN', 'ROLE', 'STATE', 'EPOCH', 'PEER', 'ADDRESS'],
  row: ({ id, spec, status }) => [
    id,
    spec.domain,
    spec.role,
    status.state,
    status.epoch,
    status.peer === null ? '-' : `pid ${status.peer.pid}`,
    status.address,
  ],
};

const backend: ObjectCommand<'backends'> = {
  kind: 'backends',
  options: backendOptions,
  spec: backendSpec,
  header: ['BACKEND', 'TYPE', 'WHAT', 'ATTACHED AS'],
  row: ({ id, spec, status }) => [id, spec.type, whatOf(spec), status.attachments.join(' ') || '-'],
};

const attachment: ObjectCommand<'attachments'> = {
  kind: 'attachments',
  options: { bus: { type: 'string' }, backend: { type: 'string' }, number: { type: 'string' } },
  spec: (values) => ({
    bus: required(values, 'bus'),
    backend: required(values, 'backend'),
    ...(values.number === undefined ? {} : { deviceNumber: wholeNumber(required(values, 'number'), '--number') }),
  }),
  header: ['ATTACHMENT', 'BUS', 'DEVICE', 'TYPE', 'BACKEND', 'STATE', 'DRIVER', 'REQUESTS', 'BYTES'],
  row: ({ id, spec, status }) => [
    id,
    spec.bus,
    status.deviceNumber === null ? '-' : String(status.deviceNumber),
    status.deviceType,
    spec.backend,
    status.reason === null ? status.state : `${status.state} (${status.reason})`,
    status.deviceStatus.at(-1) ?? '-',
    String(status.requests ?? '-'),
    String(status.bytes ?? '-'),
  ],
};

export const objectCommands = { domain, bus, backend, attachment } as const;
export type ObjectName = keyof typeof objectCommands;

const print = (io: CliIo, value: unknown): void => void io.stdout.write(`${JSON.stringify(value, null, 2)}\n`);

const pathOf = (kind: Kind, id: string): string => `/v1/${kind}/${encodeURIComponent(id)}`;

/** `vmsg domain|bus|backend|attachment ls|show|add|rm`. @returns exit code */
export async function runObjectCommand(name: ObjectName, args: string[], api: ApiClient, io: CliIo): Promise<number> {
  const command = objectCommands[name] as ObjectCommand<Kind>;
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: { ...command.options, json: { type: 'boolean' } },
  });
  const [verb = 'ls', id, ...surplus] = positionals;
  if (surplus.length > 0) throw usageError(`unexpected argument '${surplus[0]}'`);
  if (verb === 'ls' && id === undefined) return await list(command, api, io, values.json === true);
  if (!['show', 'add', 'rm'].includes(verb)) throw usageError(`vmsg ${name} ${verb}: there are ls, show, add and rm`);
  if (id === undefined) throw usageError(`vmsg ${name} ${verb} needs an id`);
  if (verb === 'show') print(io, (await api.call('GET', pathOf(command.kind, id))).body);
  else if (verb === 'rm') await remove(command.kind, id, api, io);
  else await put(command.kind, id, command.spec(values as Values, io), api, io, values.json === true);
  return exitCode.ok;
}

async function list(command: ObjectCommand<Kind>, api: ApiClient, io: CliIo, json: boolean): Promise<number> {
  const items = await api.listAll<Resource>(command.kind);
  if (json) print(io, items);
  else
    io.stdout.write(
      table(
        command.header,
        items.map((item) => command.row(item)),
      ),
    );
  return exitCode.ok;
}

export async function put(
  kind: Kind,
  id: string,
  spec: object,
  api: ApiClient,
  io: CliIo,
  json: boolean,
): Promise<void> {
  const { status, body } = await api.call('PUT', pathOf(kind, id), spec);
  const resource = body as Resource;
  if (json) {
    print(io, body);
    return;
  }
  const outcome = status === 201 ? 'created' : 'unchanged or updated';
  const { deviceNumber } = resource.status as { deviceNumber?: number | null };
  io.stdout.write(
    `${kind}/${id} ${outcome}${typeof deviceNumber === 'number' ? `, device number ${deviceNumber}` : ''}\n`,
  );
}

export async function remove(kind: Kind, id: string, api: ApiClient, io: CliIo): Promise<void> {
  await api.call('DELETE', pathOf(kind, id));
  io.stdout.write(`${kind}/${id} deleted\n`);
}
