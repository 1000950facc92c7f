import type { Resource } from '../../bridge/commands.ts';
import { usageError } from './exit-codes.ts';
import { type CliIo, resolvePath } from './io.ts';
import { required, type Values, wholeNumber } from './values.ts';

/** One option of `vmsg backend add` and the field of the spec that it sets. */
interface FieldOption {
  readonly field: string;
  readonly kind: 'text' | 'path' | 'number' | 'flag' | 'list' | 'ports';
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
  mode: { field: 'mode', kind: 'text' },
  format: { field: 'format', kind: 'text' },
  directory: { field: 'directory', kind: 'path' },
  tag: { field: 'tag', kind: 'text' },
  sandbox: { field: 'sandbox', kind: 'text' },
  mac: { field: 'mac', kind: 'text' },
  address: { field: 'address', kind: 'text' },
  'prefix-length': { field: 'prefixLength', kind: 'number' },
  gateway: { field: 'gateway', kind: 'text' },
  dns: { field: 'dns', kind: 'list' },
  'ipv4-only': { field: 'ipv4Only', kind: 'flag' },
  'host-loopback': { field: 'hostLoopback', kind: 'flag' },
  forward: { field: 'ports', kind: 'ports' },
  'guest-cid': { field: 'guestCid', kind: 'number' },
  'host-socket': { field: 'hostSocket', kind: 'path' },
  program: { field: 'program', kind: 'text' },
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
  if (kind === 'list') return text === '' ? [] : text.split(',');
  if (kind === 'ports') return forwardedPorts(text);
  return kind === 'number' ? wholeNumber(text, `--${name}`) : text;
}

const forwardedPort = /^(?:(tcp|udp):)?(?:(\d+(?:\.\d+){3}):)?(\d+)(?::(\d+))?$/;

/** `[udp:][ADDRESS:]PORT[:GUESTPORT],...` as the field of a network. @throws CliError */
export function forwardedPorts(text: string): object[] {
  return text.split(',').map((part) => {
    const [, protocol, hostAddress, hostPort, guestPort] = forwardedPort.exec(part) ?? [];
    if (hostPort === undefined) throw usageError(`--forward takes [udp:][ADDRESS:]PORT[:GUESTPORT],..., not '${part}'`);
    return {
      ...(protocol === undefined ? {} : { protocol }),
      ...(hostAddress === undefined ? {} : { hostAddress }),
      hostPort: Number(hostPort),
      ...(guestPort === undefined ? {} : { guestPort: Number(guestPort) }),
    };
  });
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
