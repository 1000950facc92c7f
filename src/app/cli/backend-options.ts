import type { Resource } from '../../bridge/commands.ts';
import { usageError } from './exit-codes.ts';
import { type CliIo, resolvePath } from './io.ts';
import { required, type Values, wholeNumber } from './values.ts';

/** One option of `vmsg backend add` and the field of the spec that it sets. */
interface FieldOption {
  readonly field: string;
  readonly kind: 'text' | 'path' | 'number' | 'flag';
}

const fieldOptions: Readonly<Record<string, FieldOption>> = {
  path: { field: 'path', kind: 'path' },
  'read-only': { field: 'readOnly', kind: 'flag' },
  serial: { field: 'serial', kind: 'text' },
  queues: { field: 'queues', kind: 'number' },
  source: { field: 'source', kind: 'path' },
  bytes: { field: 'bytes', kind: 'number' },
  greeting: { field: 'greeting', kind: 'text' },
  // Of a vhost-user back-end, where `device` is a type, not a number.
  serves: { field: 'device', kind: 'text' },
  bus: { field: 'bus', kind: 'text' },
  device: { field: 'deviceNumber', kind: 'number' },
  'data-path': { field: 'dataPath', kind: 'text' },
  cols: { field: 'cols', kind: 'number' },
  rows: { field: 'rows', kind: 'number' },
  // Of a console: --name, --socket and --pty make its port; the API takes more than one.
  socket: { field: 'socket', kind: 'path' },
  pty: { field: 'pty', kind: 'path' },
  name: { field: 'name', kind: 'text' },
};

const portFields = ['socket', 'pty', 'name'] as const;

export const backendOptions: Readonly<Record<string, { readonly type: 'string' | 'boolean' }>> = {
  type: { type: 'string' },
  ...Object.fromEntries(
    Object.entries(fieldOptions).map(([name, { kind }]) => [
      name,
      { type: kind === 'flag' ? ('boolean' as const) : ('string' as const) },
    ]),
  ),
};

function fieldValue(values: Values, name: string, { kind }: FieldOption, io: CliIo): unknown {
  if (kind === 'flag') return true;
  const text = required(values, name);
  if (kind === 'path') return resolvePath(io, text);
  return kind === 'number' ? wholeNumber(text, `--${name}`) : text;
}

/** The body of `PUT /v1/backends/{id}`; the service judges which fields a type has. */
export function backendSpec(values: Values, io: CliIo): object {
  const type = required(values, 'type');
  const given = Object.entries(fieldOptions).filter(([name]) => values[name] !== undefined);
  const fields: Record<string, unknown> = Object.fromEntries(
    given.map(([name, option]) => [option.field, fieldValue(values, name, option, io)]),
  );
  if (type !== 'console') return { type, ...fields };
  if (fields.socket === undefined && fields.pty === undefined) throw usageError('a console needs --socket or --pty');
  const port = Object.fromEntries(portFields.flatMap((field) => (field in fields ? [[field, fields[field]]] : [])));
  const { socket: _socket, pty: _pty, name: _name, ...rest } = fields;
  return { type, ports: [port], ...rest };
}

/** What a backend serves, for the table. */
export function whatOf(spec: Resource<'backends'>['spec']): string {
  switch (spec.type) {
    case 'blk':
      return `${spec.path}${spec.readOnly ? ' (read-only)' : ''}`;
    case 'rng':
      return spec.source ?? '/dev/urandom';
    case 'console':
      return spec.ports.map((port) => ('socket' in port ? port.socket : port.pty)).join(' ');
    case 'shm':
      return spec.bytes === undefined ? '' : `${spec.bytes} bytes`;
    case 'template':
      return spec.greeting ?? '';
    case 'guest':
      return `device ${spec.deviceNumber} of bus ${spec.bus}`;
    case 'vhost-user':
      return `${spec.device} at ${spec.socket}`;
    case 'qemu-storage-daemon':
      return `${spec.path} (${spec.format ?? 'raw'}${spec.readOnly ? ', read-only' : ''})`;
    case 'virtiofsd':
      return `${spec.directory} as ${spec.tag}${spec.readOnly ? ' (read-only)' : ''}`;
    case 'passt':
      return spec.address ?? '';
    case 'vhost-device-vsock':
      return `CID ${spec.guestCid} at ${spec.hostSocket}`;
    case 'program':
      return spec.program;
    case 'bridge':
      return `device ${spec.deviceNumber} at ${spec.socket}`;
  }
}
