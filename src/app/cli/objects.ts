import { parseArgs } from 'node:util';
import type { Kind, Resource } from '../../bridge/commands.ts';
import type { ApiClient } from './api-client.ts';
import { backendOptions, backendSpec, whatOf } from './backend-options.ts';
import { exitCode, usageError } from './exit-codes.ts';
import type { CliIo } from './io.ts';
import { peerText } from './peer-text.ts';
import { table } from './table.ts';
import { fieldsOf, numbersOf, required, type Values, wholeNumber } from './values.ts';

/** What the command knows of one kind of object. */
interface ObjectCommand<K extends Kind> {
  readonly kind: K;
  readonly options: Readonly<Record<string, { readonly type: 'string' | 'boolean' }>>;
  /** The body of a PUT from the options of `add`. */
  spec(values: Values, io: CliIo, api: ApiClient): object | Promise<object>;
  readonly header: readonly string[];
  row(resource: Resource<K>): string[];
}

const domain: ObjectCommand<'domains'> = {
  kind: 'domains',
  options: { description: { type: 'string' }, 'xen-name': { type: 'string' }, 'xen-uuid': { type: 'string' } },
  spec: (values) => {
    const xen = fieldsOf(values, { 'xen-name': 'name', 'xen-uuid': 'uuid' });
    return { ...fieldsOf(values, { description: 'description' }), ...(Object.keys(xen).length > 0 ? { xen } : {}) };
  },
  header: ['DOMAIN', 'DOMID', 'STATE', 'XEN', 'BUSES', 'DESCRIPTION'],
  row: ({ id, spec, status }) => [
    id,
    String(status.domid ?? '-'),
    withReason(status),
    spec.xen?.name ?? spec.xen?.uuid ?? '-',
    status.buses.join(' ') || '-',
    spec.description ?? '',
  ],
};

/** Whatever has a reason for its state is shown with it. */
const withReason = ({ state, reason }: { readonly state: string; readonly reason: string | null }): string =>
  reason === null ? state : `${state} (${reason})`;

/** The domain says how messages travel, if the caller does not; the service judges what is wrong. */
async function transportOf(domainId: string, api: ApiClient): Promise<string> {
  const domains = await api.listAll<Resource<'domains'>>('domains');
  return domains.find(({ id }) => id === domainId)?.spec.xen === undefined ? 'loopback' : 'xen';
}

const bus: ObjectCommand<'buses'> = {
  kind: 'buses',
  options: {
    domain: { type: 'string' },
    transport: { type: 'string' },
    role: { type: 'string' },
    index: { type: 'string' },
    admit: { type: 'string' },
    'max-message-size': { type: 'string' },
    'pool-max': { type: 'string' },
    'on-stuck': { type: 'string' },
  },
  spec: async (values, _io, api) => {
    const domainId = required(values, 'domain');
    const admit = values.admit === undefined ? undefined : required(values, 'admit').split(',');
    return {
      domain: domainId,
      transport: values.transport ?? (await transportOf(domainId, api)),
      role: values.role ?? 'driver',
      ...numbersOf(values, { index: 'index', 'max-message-size': 'maxMessageSizeBytes', 'pool-max': 'poolMaxBytes' }),
      ...fieldsOf(values, { 'on-stuck': 'onStuck' }),
      ...(admit === undefined ? {} : { admittedUids: admit.map((uid) => wholeNumber(uid, '--admit')) }),
    };
  },
  header: ['BUS', 'DOMAIN', 'ROLE', 'STATE', 'EPOCH', 'PEER', 'ADDRESS'],
  row: ({ id, spec, status }) => [
    id,
    spec.domain,
    spec.role,
    withReason({ state: status.state, reason: status.reason ?? status.diagnosis }),
    status.epoch,
    peerText(status.peer),
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
    ...numbersOf(values, { number: 'deviceNumber' }),
  }),
  header: ['ATTACHMENT', 'BUS', 'DEVICE', 'TYPE', 'BACKEND', 'STATE', 'DRIVER', 'REQUESTS', 'BYTES'],
  row: ({ id, spec, status }) => [
    id,
    spec.bus,
    status.deviceNumber === null ? '-' : String(status.deviceNumber),
    status.deviceType,
    spec.backend,
    withReason({ state: status.state, reason: status.reason ?? status.dataPathReason }),
    status.deviceStatus.at(-1) ?? '-',
    String(status.requests ?? '-'),
    String(status.bytes ?? '-'),
  ],
};

export const objectCommands = { domain, bus, backend, attachment } as const;
export type ObjectName = keyof typeof objectCommands;

const print = (io: CliIo, value: unknown): void => void io.stdout.write(`${JSON.stringify(value, null, 2)}\n`);

export const pathOf = (kind: Kind, id: string): string => `/v1/${kind}/${encodeURIComponent(id)}`;

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
  else await put(command.kind, id, await command.spec(values as Values, io, api), api, io, values.json === true);
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
  const { deviceNumber, reason } = resource.status as { deviceNumber?: number | null; reason?: string | null };
  const number = typeof deviceNumber === 'number' ? `, device number ${deviceNumber}` : '';
  io.stdout.write(`${kind}/${id} ${outcome}${number}${typeof reason === 'string' ? `: ${reason}` : ''}\n`);
}

export async function remove(kind: Kind, id: string, api: ApiClient, io: CliIo): Promise<void> {
  await api.call('DELETE', pathOf(kind, id));
  io.stdout.write(`${kind}/${id} deleted\n`);
}
