import fs from 'node:fs';
import path from 'node:path';
import Type, { type Static } from 'typebox';
import {
  type Frozen,
  findProblem,
  idPattern,
  type Kinds,
  kindSchemas,
  kinds,
  programDefinition,
  withDefaults,
} from '../bridge/commands.ts';
import type { DataPlaneSettings } from '../bridge/lane/protocol.ts';
import { isPreset, namesSocket, type ProgramDefinition } from '../bridge/service/program-specs.ts';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';

const strict = { additionalProperties: false } as const;
const id = Type.String({ pattern: idPattern });
const byId = <T extends Type.TSchema>(spec: T, description: string) =>
  Type.Record(id, spec, { ...strict, default: {}, description });
const file = (description: string) =>
  Type.Optional(Type.String({ minLength: 1, pattern: '^[^\\u0000]+$', description }));
const section = <T extends Type.TProperties>(fields: T) =>
  Type.Optional(Type.Object(fields, { ...strict, default: {} }));

/** The config file: types, validation, help and docs/config.md come from here. */
export const configSchema = Type.Object(
  {
    stateDir: file('Directory of the desired state.'),
    runtimeDir: file('Directory of sockets and of what is needed to resume after a restart.'),
    api: section({
      socket: file('Unix socket of the REST API.'),
      socketMode: Type.Optional(
        Type.String({ pattern: '^0[0-7]{3}$', default: '0660', description: 'Permission bits of the socket, octal.' }),
      ),
      tcp: Type.Optional(
        Type.Object(
          {
            host: Type.Optional(
              Type.String({
                default: '127.0.0.1',
                description: 'Loopback address to listen on as well, 127.0.0.1 or ::1. Without api.tcp there is none.',
              }),
            ),
            port: Type.Integer({ minimum: 1, maximum: 65_535, description: 'TCP port.' }),
            tokenFile: file('File of the token that every request over TCP must carry; made if it does not exist.'),
          },
          strict,
        ),
      ),
    }),
    log: section({
      level: Type.Optional(
        Type.Enum(['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'], {
          default: 'info',
          description: 'The least severe lines that are written.',
        }),
      ),
    }),
    lane: section({
      mode: Type.Optional(
        Type.Enum(['worker', 'inline'], {
          default: 'worker',
          description: 'Where guest messages are handled: in a thread of its own, or in the main one.',
        }),
      ),
      dataPlaneWorkers: Type.Optional(
        Type.Integer({
          minimum: 0,
          maximum: limits.dataPlaneWorkersMax,
          default: 1,
          description:
            'Threads that pass notifications on between guests and programs that work on their memory; 0: none of their own.',
        }),
      ),
      dataPlaneSpinUs: Type.Optional(
        Type.Integer({
          minimum: 0,
          maximum: limits.dataPlaneSpinMaxUs,
          default: 20,
          description: 'How long such a thread looks for the next notification before it sleeps, where that pays.',
        }),
      ),
    }),
    disks: section({
      io: Type.Optional(
        Type.Enum(['auto', 'io_uring', 'threads'], {
          default: 'auto',
          description: 'How `blk` reads and writes images; `auto` is `io_uring` where the kernel lets it be used.',
        }),
      ),
    }),
    xen: section({
      xlPath: Type.Optional(
        Type.String({
          minLength: 1,
          pattern: '^[^\\u0000]+$',
          default: 'xl',
          description: 'The command xl, where a bus says `destroy-mapper`.',
        }),
      ),
    }),
    programs: Type.Optional(byId(programDefinition, 'Programs that serve devices, by name; the service starts them.')),
    domains: Type.Optional(byId(kindSchemas.domains.spec, 'Domains by id.')),
    buses: Type.Optional(byId(kindSchemas.buses.spec, 'Buses by id.')),
    backends: Type.Optional(byId(kindSchemas.backends.spec, 'Backends by id.')),
    attachments: Type.Optional(byId(kindSchemas.attachments.spec, 'Attachments by id.')),
  },
  strict,
);

export type ConfigFile = Frozen<Static<typeof configSchema>>;
type LogLevel = NonNullable<NonNullable<ConfigFile['log']>['level']>;
export type DisksIo = NonNullable<NonNullable<ConfigFile['disks']>['io']>;
type LaneMode = NonNullable<NonNullable<ConfigFile['lane']>['mode']>;

export interface LaneConfig extends DataPlaneSettings {
  readonly mode: LaneMode;
}

/** Where the API listens beside its socket. */
export interface TcpConfig {
  readonly host: string;
  readonly port: number;
  readonly tokenFile: string;
}

/** The config with every default filled in and every path absolute. */
export interface Config {
  readonly stateDir: string;
  readonly runtimeDir: string;
  readonly api: { readonly socket: string; readonly socketMode: number; readonly tcp: TcpConfig | null };
  readonly log: { readonly level: LogLevel };
  readonly lane: LaneConfig;
  readonly disks: { readonly io: DisksIo };
  readonly xen: { readonly xlPath: string };
  readonly programs: Readonly<Record<string, ProgramDefinition>>;
  readonly objects: { readonly [K in keyof Kinds]: Readonly<Record<string, Kinds[K]['spec']>> };
}

/** What the defaults depend on. */
export interface Surroundings {
  readonly uid: number;
  readonly home: string;
  readonly tmpdir: string;
  readonly env: Readonly<Record<string, string | undefined>>;
}

type Json = Record<string, unknown>;

/**
 * Reads a config file; without a path gives the defaults. Relative paths in the file count from its directory.
 * @throws VmsgError `invalid-config` with the JSON pointer of the first wrong field
 */
export function loadConfig(configPath: string | undefined, surroundings: Surroundings): Config {
  if (configPath === undefined) return resolveConfig({}, surroundings);
  const absolute = path.resolve(configPath);
  const content = withAbsolutePaths(parse(absolute, read(absolute)), path.dirname(absolute));
  const problem = findProblem(configSchema, content);
  if (problem !== null) throw wrong(absolute, problem.pointer, problem.message);
  checkHost(absolute, content as ConfigFile);
  checkPrograms(absolute, content as ConfigFile);
  return resolveConfig(content as ConfigFile, surroundings);
}

function checkHost(where: string, { api }: ConfigFile): void {
  const host = api?.tcp?.host ?? '127.0.0.1';
  if (host === '127.0.0.1' || host === '::1') return;
  const why = 'beyond loopback the API needs TLS, which this version does not have';
  throw wrong(where, '/api/tcp/host', `must be 127.0.0.1 or ::1: ${why}`);
}

function checkPrograms(where: string, { programs = {} }: ConfigFile): void {
  if (Object.keys(programs).length > limits.programsMax) {
    throw wrong(where, '/programs', `has more than ${limits.programsMax} entries`);
  }
  for (const [name, { command, device }] of Object.entries(programs)) {
    const pointer = `/programs/${name}`;
    if (isPreset(name)) {
      if (device !== undefined) throw wrong(where, `${pointer}/device`, `is known for ${name}: leave it out`);
      continue;
    }
    if (command === undefined) throw wrong(where, `${pointer}/command`, 'is missing');
    if (device === undefined) throw wrong(where, `${pointer}/device`, 'is missing');
    if (!command.slice(1).some(namesSocket)) {
      throw wrong(where, `${pointer}/command`, 'needs an argument with {socket}');
    }
  }
}

const wrong = (where: string, pointer: string, message: string): VmsgError =>
  new VmsgError('invalid-config', `${where}: ${pointer === '' ? '' : `${pointer} `}${message}`, { pointer });

function read(absolute: string): Uint8Array {
  try {
    const { size } = fs.statSync(absolute);
    if (size > limits.configFileMaxBytes) throw new Error(`it is larger than ${limits.configFileMaxBytes} bytes`);
    return fs.readFileSync(absolute);
  } catch (error) {
    throw wrong(absolute, '', `cannot be read: ${(error as Error).message}`);
  }
}

function parse(absolute: string, bytes: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (error) {
    throw wrong(absolute, '', `is not JSON: ${(error as Error).message}`);
  }
}

const isObject = (value: unknown): value is Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Resolves the fields that are paths, wherever they are strings; the schema judges the rest. */
function withAbsolutePaths(content: unknown, directory: string): unknown {
  if (!isObject(content)) return content;
  const resolveFields = (object: unknown, fields: readonly string[]): unknown => {
    if (!isObject(object)) return object;
    const found = fields.filter((field) => typeof object[field] === 'string' && object[field] !== '');
    const changes = found.map((field) => [field, path.resolve(directory, object[field] as string)]);
    return { ...object, ...Object.fromEntries(changes) };
  };
  const result = resolveFields(content, ['stateDir', 'runtimeDir']) as Json;
  if (isObject(content.api)) {
    const api = resolveFields(content.api, ['socket']) as Json;
    result.api = 'tcp' in api ? { ...api, tcp: resolveFields(api.tcp, ['tokenFile']) } : api;
  }
  if (isObject(content.programs)) {
    const programs = Object.entries(content.programs).map(([name, program]): [string, unknown] => {
      if (!isObject(program) || !Array.isArray(program.command)) return [name, program];
      const [file, ...args] = program.command as unknown[];
      // A file without a slash is looked for in PATH.
      const isPath = typeof file === 'string' && file.includes('/');
      return [name, { ...program, command: [isPath ? path.resolve(directory, file) : file, ...args] }];
    });
    result.programs = Object.fromEntries(programs);
  }
  if (isObject(content.backends)) {
    const backends = Object.entries(content.backends).map(([key, spec]): [string, unknown] => {
      const resolved = resolveFields(spec, ['path', 'source', 'socket', 'directory', 'hostSocket']);
      if (!isObject(resolved) || !Array.isArray(resolved.ports)) return [key, resolved];
      const ports = resolved.ports.map((port: unknown) => resolveFields(port, ['socket', 'pty']));
      return [key, { ...resolved, ports }];
    });
    result.backends = Object.fromEntries(backends);
  }
  return result;
}

type Filled = ConfigFile & {
  readonly api: {
    readonly socket?: string;
    readonly socketMode: string;
    readonly tcp?: { readonly host: string; readonly port: number; readonly tokenFile?: string };
  };
  readonly log: { readonly level: LogLevel };
  readonly lane: LaneConfig;
  readonly disks: { readonly io: DisksIo };
  readonly xen: { readonly xlPath: string };
};

function resolveConfig(content: ConfigFile, surroundings: Surroundings): Config {
  const { api, log, lane, disks, xen } = withDefaults(configSchema, content) as Filled;
  const runtimeDir = content.runtimeDir ?? defaultRuntimeDir(surroundings);
  const stateDir = content.stateDir ?? defaultStateDir(surroundings);
  const tcp = api.tcp === undefined ? null : { tokenFile: path.join(stateDir, 'api-token'), ...api.tcp };
  const objects = Object.fromEntries(kinds.map((kind) => [kind, content[kind] ?? {}]));
  return {
    stateDir,
    runtimeDir,
    api: {
      socket: api.socket ?? path.join(runtimeDir, 'api.sock'),
      socketMode: Number.parseInt(api.socketMode, 8),
      tcp,
    },
    log,
    lane,
    disks,
    xen,
    programs: content.programs ?? {},
    objects: objects as unknown as Config['objects'],
  };
}

/** The XDG rules: a relative path in such a variable is to be ignored. */
const absoluteOr = (value: string | undefined, fallback: () => string): string =>
  value !== undefined && path.isAbsolute(value) ? path.join(value, 'vmsg') : fallback();

function defaultStateDir({ uid, home, env }: Surroundings): string {
  if (uid === 0) return '/var/lib/vmsg';
  return absoluteOr(env.XDG_STATE_HOME, () => path.join(home, '.local/state/vmsg'));
}

function defaultRuntimeDir({ uid, tmpdir, env }: Surroundings): string {
  if (uid === 0) return '/run/vmsg';
  return absoluteOr(env.XDG_RUNTIME_DIR, () => path.join(tmpdir, `vmsg-${uid}`));
}
