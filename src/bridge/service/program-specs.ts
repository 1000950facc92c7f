import { createHash } from 'node:crypto';
import type { Static } from 'typebox';
import { VmsgError } from '../../kit/errors.ts';
import type { VhostUserDevice } from '../backend/vhost-user/shapes.ts';
import type { BackendSpec, Frozen, programDefinition } from '../commands.ts';
import type { LaneProgramSpec, ProgramArgument } from '../lane/protocol.ts';

/** A program of the config file. */
export type ProgramDefinition = Frozen<Static<typeof programDefinition>>;

/** Where programs come from, and where they run. */
export interface ProgramSources {
  /** Those of the config file, by name. */
  readonly definitions: Readonly<Record<string, ProgramDefinition>>;
  /** Directory of theirs, only for the user of the service. */
  readonly directory: string;
}

type SpecOf<T extends BackendSpec['type']> = Extract<BackendSpec, { type: T }>;

/** A program whose arguments the service knows. */
interface Preset<T extends BackendSpec['type']> {
  readonly device: VhostUserDevice;
  /** Debian's. */
  readonly package: string;
  arguments(spec: SpecOf<T>): readonly ProgramArgument[];
}

const text = (...words: readonly string[]): ProgramArgument[] => words.map((word) => [word]);
const socketAfter = (before: string): ProgramArgument => [before, { put: 'socket' }];
const socketAlone: ProgramArgument = [{ put: 'socket' }];

/** In QEMU's lists of options a comma in a value is doubled. */
const qemuValue = (value: string): string => value.replaceAll(',', ',,');

/** Shared memory lies below /dev as well. */
const isBlockDevice = (path: string): boolean => path.startsWith('/dev/') && !path.startsWith('/dev/shm/');

function storageDaemonArguments(spec: SpecOf<'qemu-storage-daemon'>): ProgramArgument[] {
  const { path, format = 'raw', readOnly = false, queues = 1 } = spec;
  const driver = isBlockDevice(path) ? 'host_device' : 'file';
  const file = [`file.driver=${driver}`, `file.filename=${qemuValue(path)}`];
  const access = readOnly ? ['read-only=on'] : ['discard=unmap'];
  const disk = [`driver=${format}`, 'node-name=disk', ...file, ...access].join(',');
  const served = ['type=vhost-user-blk', 'id=export', 'node-name=disk', `num-queues=${queues}`];
  const where = ['addr.type=unix', 'addr.path='];
  const exported = [...served, `writable=${readOnly ? 'off' : 'on'}`, ...where].join(',');
  return [...text('--blockdev', disk, '--export'), [exported, { put: 'qemu-socket' }]];
}

function virtiofsdArguments(spec: SpecOf<'virtiofsd'>): ProgramArgument[] {
  const { directory, tag, readOnly = false, sandbox = 'namespace' } = spec;
  // File handles and more open files need privileges; it has the open files that it was given.
  const modest = ['--inode-file-handles=never', '--rlimit-nofile=0'];
  const access = readOnly ? ['--readonly'] : [];
  const options = text(`--shared-dir=${directory}`, `--tag=${tag}`, `--sandbox=${sandbox}`, ...modest, ...access);
  return [socketAfter('--socket-path='), ...options];
}

function passtArguments(spec: SpecOf<'passt'>): ProgramArgument[] {
  const { address, prefixLength, gateway, dns, ipv4Only = false, hostLoopback = false, ports = [] } = spec;
  const option = (name: string, value: string | number | undefined): string[] =>
    value === undefined ? [] : [name, `${value}`];
  const forwards = ports.flatMap(({ protocol = 'tcp', hostAddress = '127.0.0.1', hostPort, guestPort = hostPort }) => [
    protocol === 'tcp' ? '--tcp-ports' : '--udp-ports',
    `${hostAddress}/${hostPort}:${guestPort}`,
  ]);
  return [
    ...text('--foreground', '--quiet', '--vhost-user', '--repair-path', 'none', '--socket'),
    socketAlone,
    ...text(...option('--address', address), ...option('--netmask', prefixLength), ...option('--gateway', gateway)),
    ...text(...(dns?.length === 0 ? ['--dns', 'none'] : (dns ?? []).flatMap((server) => ['--dns', server]))),
    ...text(...(ipv4Only ? ['--ipv4-only'] : []), ...(hostLoopback ? [] : ['--no-map-gw']), ...forwards),
  ];
}

type PresetName = 'qemu-storage-daemon' | 'virtiofsd' | 'passt' | 'vhost-device-vsock';

const presets: { readonly [T in PresetName]: Preset<T> } = {
  'qemu-storage-daemon': { device: 'blk', package: 'qemu-utils', arguments: storageDaemonArguments },
  virtiofsd: { device: 'fs', package: 'virtiofsd', arguments: virtiofsdArguments },
  passt: { device: 'net', package: 'passt', arguments: passtArguments },
  'vhost-device-vsock': {
    device: 'vsock',
    package: 'vhost-device-vsock',
    arguments: ({ guestCid, hostSocket }) => [
      ...text('--socket'),
      socketAlone,
      ...text('--uds-path', hostSocket, '--guest-cid', `${guestCid}`),
    ],
  },
};

/** Programs whose arguments the service knows. */
export const isPreset = (name: string): name is PresetName => Object.hasOwn(presets, name);

/** What a vhost-user back-end serves; undefined for other backends, and for a program that is not in the config file. */
export function vhostUserDeviceOf(spec: BackendSpec, sources: ProgramSources | undefined): VhostUserDevice | undefined {
  if (spec.type === 'vhost-user') return spec.device;
  if (spec.type === 'program') return definitionOf(spec.program, sources)?.device;
  return isPreset(spec.type) ? presets[spec.type].device : undefined;
}

const definitionOf = (name: string, sources: ProgramSources | undefined): ProgramDefinition | undefined =>
  sources !== undefined && Object.hasOwn(sources.definitions, name) ? sources.definitions[name] : undefined;

/** A locally administered address, always the same for a backend. */
function macOf(id: string): string {
  const bytes = createHash('sha256').update(id).digest().subarray(0, 6);
  bytes[0] = (bytes[0]! & 0xfc) | 0x02;
  return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join(':');
}

const placeholder = /(\{socket\}|\{qemu-socket\})/;

/** Whether an argument of the config file has a placeholder. */
export const namesSocket = (argument: string): boolean => placeholder.test(argument);

const configuredArgument = (argument: string): ProgramArgument =>
  argument
    .split(placeholder)
    .filter((piece) => piece !== '')
    .map((piece) => {
      if (piece === '{socket}') return { put: 'socket' };
      return piece === '{qemu-socket}' ? { put: 'qemu-socket' } : piece;
    });

/**
 * The program of a backend as a lane starts it.
 * @throws VmsgError backend-unusable: the config file does not name it
 */
export function laneProgramSpec(
  id: string,
  spec: SpecOf<PresetName | 'program'>,
  sources: ProgramSources | undefined,
): LaneProgramSpec {
  const name = spec.type === 'program' ? spec.program : spec.type;
  const definition = definitionOf(name, sources);
  const device = vhostUserDeviceOf(spec, sources);
  if (device === undefined || sources === undefined) {
    throw new VmsgError('backend-unusable', `the config file names no program "${name}" with a device`);
  }
  const command = definition?.command?.map(configuredArgument);
  const preset = spec.type === 'program' ? undefined : (presets[spec.type] as Preset<PresetName>);
  const known = preset === undefined ? [] : preset.arguments(spec as SpecOf<PresetName>);
  const { restart = 'always', openFiles, memoryBytes } = definition ?? {};
  return {
    type: 'program',
    device,
    backend: id,
    program: name,
    package: command === undefined ? (preset?.package ?? null) : null,
    command: [...(command ?? [[name]]), ...known],
    directory: sources.directory,
    restart,
    ...(openFiles === undefined ? {} : { openFiles }),
    ...(memoryBytes === undefined ? {} : { memoryBytes }),
    ...(spec.dataPath === undefined ? {} : { dataPath: spec.dataPath }),
    ...(spec.type === 'qemu-storage-daemon' ? { lock: { path: spec.path, exclusive: spec.readOnly !== true } } : {}),
    ...(spec.type === 'passt' ? { mac: spec.mac ?? macOf(id) } : {}),
  };
}
