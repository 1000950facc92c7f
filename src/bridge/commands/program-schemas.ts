import Type from 'typebox';
import { limits } from '../../kit/limits.ts';
import { vhostUserDevices } from '../backend/vhost-user/shapes.ts';
import { absolutePath, strict } from './fields.ts';

/** Formats of image files; the names are QEMU's. */
const imageFormats = ['raw', 'qcow2', 'qed', 'vdi', 'vhdx', 'vmdk', 'vpc'] as const;

const readOnly = Type.Optional(Type.Boolean({ default: false, description: 'Whether guests may only read.' }));

/** How data gets to a vhost-user back-end. */
export const vhostUserDataPath = Type.Optional(
  Type.Enum(['auto', 'direct', 'shadow'], {
    default: 'auto',
    description:
      'direct: the back-end works on the memory of the guest, which it may write for as long as it runs. shadow: it gets copies. auto: direct where the service starts it and both sides can do it.',
  }),
);

const storageDaemonBackendSpec = Type.Object(
  {
    type: Type.Literal('qemu-storage-daemon', { description: 'A disk that qemu-storage-daemon serves.' }),
    path: Type.String({ ...absolutePath, description: 'Image file, or a block device below /dev: an absolute path.' }),
    format: Type.Optional(
      Type.Enum([...imageFormats], { default: 'raw', description: 'Format of the image; it is never guessed.' }),
    ),
    readOnly,
    queues: Type.Optional(
      Type.Integer({ minimum: 1, maximum: limits.blkQueuesMax, default: 1, description: 'Request queues.' }),
    ),
    dataPath: vhostUserDataPath,
  },
  { ...strict, title: 'QemuStorageDaemonBackendSpec' },
);

const virtiofsdBackendSpec = Type.Object(
  {
    type: Type.Literal('virtiofsd', { description: 'A directory of the host that virtiofsd serves.' }),
    directory: Type.String({ ...absolutePath, description: 'The directory, an absolute path.' }),
    tag: Type.String({ pattern: '^[!-~]{1,36}$', description: 'By what the guest mounts it: printable ASCII.' }),
    readOnly,
    sandbox: Type.Optional(
      Type.Enum(['namespace', 'none'], {
        default: 'namespace',
        description: 'namespace: virtiofsd sees nothing but the directory. none: for where namespaces are forbidden.',
      }),
    ),
    dataPath: vhostUserDataPath,
  },
  { ...strict, title: 'VirtiofsdBackendSpec' },
);

const ipv4 = '^(25[0-5]|2[0-4]\\d|1?\\d?\\d)(\\.(25[0-5]|2[0-4]\\d|1?\\d?\\d)){3}$';
const port = (description: string) => Type.Integer({ minimum: 1, maximum: 65_535, description });

const forwardedPort = Type.Object(
  {
    protocol: Type.Optional(Type.Enum(['tcp', 'udp'], { default: 'tcp', description: 'tcp or udp.' })),
    hostAddress: Type.Optional(
      Type.String({ pattern: ipv4, default: '127.0.0.1', description: 'Address of the host to listen on.' }),
    ),
    hostPort: port('Port of the host.'),
    guestPort: Type.Optional(port('Port of the guest. Without it: the same one.')),
  },
  { ...strict, title: 'ForwardedPort' },
);

const passtBackendSpec = Type.Object(
  {
    type: Type.Literal('passt', { description: "A network that passt makes of the host's, without privileges." }),
    mac: Type.Optional(
      Type.String({
        pattern: '^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$',
        description: 'Address of the guest. Without it: one made from the id.',
      }),
    ),
    address: Type.Optional(
      Type.String({ pattern: ipv4, description: 'IPv4 address for the guest. Without it: that of the host.' }),
    ),
    prefixLength: Type.Optional(
      Type.Integer({ minimum: 1, maximum: 32, description: 'Length of its network prefix.' }),
    ),
    gateway: Type.Optional(
      Type.String({ pattern: ipv4, description: 'Gateway for the guest. Without it: that of the host.' }),
    ),
    dns: Type.Optional(
      Type.Array(Type.String({ pattern: ipv4 }), {
        maxItems: 8,
        description: "Name servers for the guest; none when the list is empty. Without it: the host's.",
      }),
    ),
    ipv4Only: Type.Optional(Type.Boolean({ default: false, description: 'Whether the guest has no IPv6.' })),
    hostLoopback: Type.Optional(
      Type.Boolean({
        default: false,
        description: 'Whether the guest reaches programs on the loopback of the host, at the address of its gateway.',
      }),
    ),
    ports: Type.Optional(
      Type.Array(forwardedPort, {
        maxItems: limits.forwardedPortsMax,
        description: 'Ports of the host that lead to the guest.',
      }),
    ),
    dataPath: vhostUserDataPath,
  },
  { ...strict, title: 'PasstBackendSpec' },
);

const vsockBackendSpec = Type.Object(
  {
    type: Type.Literal('vhost-device-vsock', { description: 'Streams between guest and host by vhost-device-vsock.' }),
    guestCid: Type.Integer({ minimum: 3, maximum: 0xffff_fffe, description: 'Address (CID) of the guest.' }),
    hostSocket: Type.String({
      ...absolutePath,
      description:
        'Unix socket that the program makes: programs of the host connect to it. Ports of the guest connect to it with "_PORT" appended.',
    }),
    dataPath: vhostUserDataPath,
  },
  { ...strict, title: 'VhostDeviceVsockBackendSpec' },
);

const programBackendSpec = Type.Object(
  {
    type: Type.Literal('program', { description: 'A device of a vhost-user program that the config file names.' }),
    program: Type.String({ pattern: '^[a-z0-9][a-z0-9._-]{0,62}$', description: 'Its name in `programs`.' }),
    dataPath: vhostUserDataPath,
  },
  { ...strict, title: 'ProgramBackendSpec' },
);

/** Backends that are programs which the service starts. */
export const programBackendSpecs = [
  storageDaemonBackendSpec,
  virtiofsdBackendSpec,
  passtBackendSpec,
  vsockBackendSpec,
  programBackendSpec,
] as const;

/** A program that the config file names; clients of the API cannot say what is run. */
export const programDefinition = Type.Object(
  {
    command: Type.Optional(
      Type.Array(Type.String({ minLength: 1, maxLength: limits.programArgumentMaxBytes, pattern: '^[^\\u0000]*$' }), {
        minItems: 1,
        maxItems: limits.programArgumentsMax,
        description:
          'The file and its arguments. `{socket}` stands for the socket that it has to listen on, `{qemu-socket}` for the same with commas doubled. Of qemu-storage-daemon, virtiofsd, passt and vhost-device-vsock: what their arguments are appended to.',
      }),
    ),
    device: Type.Optional(
      Type.Enum([...vhostUserDevices], { description: 'What it serves; not for the four that are known.' }),
    ),
    restart: Type.Optional(
      Type.Enum(['always', 'never'], {
        default: 'always',
        description: 'Whether it is started again when it has ended.',
      }),
    ),
    openFiles: Type.Optional(
      Type.Integer({
        minimum: 16,
        maximum: 1_048_576,
        description: `Most open files (RLIMIT_NOFILE). Without it: ${limits.programOpenFilesDefault}, or as many as the service may have.`,
      }),
    ),
    memoryBytes: Type.Optional(
      Type.Integer({
        minimum: 16 * 1024 ** 2,
        maximum: 1024 ** 4,
        default: limits.programMemoryDefaultBytes,
        description: 'Most writable memory of its own (RLIMIT_DATA), in bytes; memory of guests does not count.',
      }),
    ),
  },
  strict,
);
