import { parseArgs } from 'node:util';
import { usageError } from './exit-codes.ts';
import { type CliIo, resolvePath } from './io.ts';

/** Every option of `vmsg guest`, with the commands that take it. */
const options = {
  bus: { type: 'string', for: ['*'] },
  memory: { type: 'string', for: ['*'] },
  pool: { type: 'string', for: ['*'] },
  reconnect: { type: 'string', for: ['*'] },
  help: { type: 'boolean', for: ['*'] },
  json: { type: 'boolean', for: ['enumerate', 'info', 'ping'] },
  out: { type: 'string', for: ['blk read'] },
  in: { type: 'string', for: ['blk write'] },
  offset: { type: 'string', for: ['blk read', 'blk write', 'blk verify'] },
  length: { type: 'string', for: ['blk read', 'blk verify', 'blk copy'] },
  sha256: { type: 'string', for: ['blk verify', 'tour'] },
  against: { type: 'string', for: ['blk verify'] },
  from: { type: 'string', for: ['blk copy'] },
  to: { type: 'string', for: ['blk copy'] },
  bytes: { type: 'string', for: ['rng', 'tour'] },
  hex: { type: 'boolean', for: ['rng'] },
  port: { type: 'string', for: ['console'] },
  eof: { type: 'boolean', for: ['console'] },
  disk: { type: 'string', for: ['tour'] },
  scratch: { type: 'string', for: ['tour'] },
  'scratch-bytes': { type: 'string', for: ['tour'] },
  seed: { type: 'string', for: ['tour'] },
  random: { type: 'string', for: ['tour'] },
  'hotplug-timeout': { type: 'string', for: ['tour'] },
  'disk-image': { type: 'string', for: ['serve'] },
  'read-only': { type: 'boolean', for: ['serve'] },
  entropy: { type: 'boolean', for: ['serve'] },
} as const;

export type GuestOption = keyof typeof options;

/** Where a bus is. */
export type BusPlace =
  | { readonly path: string; readonly xen?: undefined }
  | { readonly xen: { readonly index: number; readonly memory: 'pool' | 'grants'; readonly memoryBytes?: number } };

const poolStepBytes = 4096;
const sizeUnits: Readonly<Record<string, number>> = { '': 1, k: 1024, m: 1024 ** 2, g: 1024 ** 3 };

/** The arguments of one `vmsg guest` call. Everything wrong throws a usage error. */
export class GuestArgs {
  /** Such as `enumerate` or `blk read`. */
  readonly command: string;
  readonly help: boolean;
  readonly #io: CliIo;
  readonly #device: string | undefined;
  readonly #values: Readonly<Record<string, string | boolean | undefined>>;

  constructor(argv: string[], io: CliIo) {
    const { values, positionals } = parseArgs({ args: argv, options, allowPositionals: true, strict: true });
    this.#io = io;
    this.#values = values;
    const [name, ...rest] = positionals;
    this.help = values.help === true || name === undefined || name === 'help';
    this.#device = rest[0];
    this.command = name === 'blk' ? `blk ${rest[1] ?? ''}` : (name ?? '');
    if (this.help) return;
    const count = { blk: 2, console: 1, info: 1, rng: 1 }[this.command.split(' ')[0] ?? ''] ?? 0;
    if (rest.length > count) throw usageError(`unexpected argument '${rest[count]}'`);
    for (const [option, value] of Object.entries(values)) {
      const takers: readonly string[] = options[option as GuestOption].for;
      if (value !== undefined && !takers.includes('*') && !takers.includes(this.command)) {
        throw usageError(`guest ${this.command} takes no --${option}`);
      }
    }
  }

  flag(name: GuestOption): boolean {
    return this.#values[name] === true;
  }

  text(name: GuestOption): string | undefined {
    const value = this.#values[name];
    return typeof value === 'string' ? value : undefined;
  }

  required(name: GuestOption, what: string): string {
    const value = this.text(name);
    if (value === undefined || value === '') throw usageError(`guest ${this.command} needs --${name} ${what}`);
    return value;
  }

  /** Absolute path; '-' stays. */
  path(name: GuestOption, what: string): string {
    const value = this.required(name, what);
    return value === '-' ? value : resolvePath(this.#io, value);
  }

  /** A number of bytes: 512, 4k, 16M, 1G. */
  size(name: GuestOption): number | undefined {
    const value = this.text(name);
    if (value === undefined) return undefined;
    const match = /^(\d+)([kmg]?)$/i.exec(value);
    const bytes = match === null ? Number.NaN : Number(match[1]) * (sizeUnits[(match[2] ?? '').toLowerCase()] ?? 1);
    if (!Number.isSafeInteger(bytes)) throw usageError(`--${name}: '${value}' is no size such as 512, 4k, 16M or 1G`);
    return bytes;
  }

  /** A plain number from 0 to `most`. */
  number(name: GuestOption, most: number): number | undefined {
    const value = this.text(name);
    return value === undefined ? undefined : plainNumber(value, `--${name}`, most);
  }

  /** The device number that the command names. */
  device(): number {
    if (this.#device === undefined) throw usageError(`guest ${this.command} needs a device number`);
    return plainNumber(this.#device, 'the device', 0xffff);
  }

  /** The bus that --bus names: the path of a socket, or one of this Xen domain. */
  bus(): BusPlace {
    const value = this.required('bus', 'SOCKET|xen[:INDEX]');
    const xen = /^xen(?::(.*))?$/.exec(value);
    const memory = this.text('memory') ?? 'pool';
    const memoryBytes = this.size('pool');
    if (memory !== 'pool' && memory !== 'grants') throw usageError(`--memory: '${memory}' is neither pool nor grants`);
    const sharing = this.text('memory') !== undefined || memoryBytes !== undefined;
    if (sharing && (xen === null || this.command === 'serve')) {
      throw usageError('--memory and --pool are for guests that use devices of --bus xen');
    }
    if (memoryBytes !== undefined && (memory === 'grants' || memoryBytes === 0 || memoryBytes % poolStepBytes !== 0)) {
      throw usageError('--pool takes whole pages of 4096 bytes, and --memory pool');
    }
    if (xen === null) return { path: resolvePath(this.#io, value) };
    const index = xen[1] === undefined ? 0 : plainNumber(xen[1], '--bus xen', 0xffff);
    return { xen: { index, memory, ...(memoryBytes === undefined ? {} : { memoryBytes }) } };
  }

  /** A SHA-256 sum in lower case. */
  sha256(): string | undefined {
    const value = this.text('sha256');
    if (value !== undefined && !/^[0-9a-f]{64}$/i.test(value)) throw usageError('--sha256 takes 64 hexadecimal digits');
    return value?.toLowerCase();
  }
}

function plainNumber(value: string, what: string, most: number): number {
  const number = /^\d+$/.test(value) ? Number(value) : Number.NaN;
  if (!(number <= most)) throw usageError(`${what}: '${value}' is no number from 0 to ${most}`);
  return number;
}
