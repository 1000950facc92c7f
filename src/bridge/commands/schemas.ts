import Type, { type Static } from 'typebox';
import { limits } from '../../kit/limits.ts';
import { vhostUserDevices } from '../backend/vhost-user/shapes.ts';
import { absolutePath, busState, count, counters, ids, orNull, peer, reason, strict, u64, words } from './fields.ts';
import { programBackendSpecs, vhostUserDataPath } from './program-schemas.ts';

/** A type with every level read-only: what leaves the service is not changed by those who get it. */
export type Frozen<T> = T extends (infer U)[]
  ? readonly Frozen<U>[]
  : T extends object
    ? { readonly [K in keyof T]: Frozen<T[K]> }
    : T;

export const idPattern = '^[a-z0-9][a-z0-9._-]{0,62}$';
export const idSchema = Type.String({
  pattern: idPattern,
  description: 'Name chosen by the client: 1 to 63 of a-z, 0-9, ".", "_" and "-", beginning with a letter or digit.',
});

const reference = (what: string) => Type.String({ pattern: idPattern, description: `Id of the ${what}.` });

const domainSpec = Type.Object(
  {
    description: Type.Optional(
      Type.String({ maxLength: 200, description: 'Free text. The one field that may change.' }),
    ),
    xen: Type.Optional(
      Type.Object(
        {
          name: Type.Optional(
            Type.String({
              pattern: '^[^\\u0000-\\u001f/]{1,128}$',
              description: 'Name of the Xen domain, as `xl list` shows it.',
            }),
          ),
          uuid: Type.Optional(
            Type.String({
              pattern: '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$',
              description: 'UUID of the Xen domain, instead of its name.',
            }),
          ),
        },
        { ...strict, title: 'XenDomain' },
      ),
    ),
  },
  {
    ...strict,
    title: 'DomainSpec',
    description: 'A VM: with `xen` a Xen domain, else what stands for one on the loopback bus, a guest process.',
  },
);

const busSpec = Type.Object(
  {
    domain: reference('domain that the bus belongs to'),
    transport: words(
      ['loopback', 'xen'],
      'How messages travel: loopback is rings in shared memory, one Unix socket a bus; xen is for Xen domains.',
    ),
    role: words(
      ['driver', 'device'],
      'What the domain does on this bus: driver, it uses devices; device, it serves them.',
    ),
    maxMessageSizeBytes: Type.Optional(
      Type.Integer({
        minimum: limits.messageSizeMinBytes,
        maximum: limits.messageSizeMaxBytes,
        default: limits.messageSizeDefaultBytes,
        description: 'Largest message that the service offers in the handshake, in bytes.',
      }),
    ),
    admittedUids: Type.Optional(
      Type.Array(Type.Integer({ minimum: 0, maximum: 0xffff_fffe }), {
        uniqueItems: true,
        maxItems: limits.admittedUidsPerBus,
        description: 'Loopback: user ids that may connect. Without it: the user of the service and root.',
      }),
    ),
    index: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: limits.busesPerDomain - 1,
        default: 0,
        description: 'Xen: which of the buses of its domain it is; last part of its xenstore paths.',
      }),
    ),
    poolMaxBytes: Type.Optional(
      Type.Integer({
        minimum: limits.poolMinBytes,
        maximum: limits.poolMaxBytes,
        multipleOf: limits.poolMinBytes,
        default: limits.poolMaxBytes,
        description: 'Xen: most memory that the guest may share as regions, in bytes.',
      }),
    ),
    onStuck: Type.Optional(
      Type.Enum(['report', 'destroy-mapper'], {
        default: 'report',
        description:
          'Role device: what to do when this domain keeps memory of a domain that is gone. destroy-mapper, on Xen: end this domain.',
      }),
    ),
  },
  { ...strict, title: 'BusSpec', description: 'One virtio-msg bus between the service and a domain.' },
);

const blkBackendSpec = Type.Object(
  {
    type: Type.Literal('blk', { description: 'A disk.' }),
    path: Type.String({ ...absolutePath, description: 'Raw image file, an absolute path.' }),
    readOnly: Type.Optional(Type.Boolean({ default: false, description: 'Whether guests may only read.' })),
    serial: Type.Optional(
      Type.String({
        pattern: '^[ -~]{0,20}$',
        description: 'What the guest reads with GET_ID: at most 20 printable ASCII characters. Without it: the id.',
      }),
    ),
    queues: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: limits.blkQueuesMax,
        default: 1,
        description: 'Request queues. A guest with several processors uses one each.',
      }),
    ),
  },
  { ...strict, title: 'BlkBackendSpec' },
);

const rngBackendSpec = Type.Object(
  {
    type: Type.Literal('rng', { description: 'Random bytes.' }),
    source: Type.Optional(
      Type.String({ ...absolutePath, default: '/dev/urandom', description: 'File to read from, an absolute path.' }),
    ),
  },
  { ...strict, title: 'RngBackendSpec' },
);

const consolePortSpec = Type.Object(
  {
    name: Type.Optional(
      Type.String({
        pattern: '^[ -~]*$',
        maxLength: limits.consolePortNameMaxBytes,
        description: 'Name that the guest sees, printable ASCII.',
      }),
    ),
    socket: Type.Optional(
      Type.String({
        ...absolutePath,
        description: 'Unix stream socket that the service listens on, an absolute path. One program at a time.',
      }),
    ),
    pty: Type.Optional(
      Type.String({
        ...absolutePath,
        description: 'Symbolic link to a pseudo terminal, an absolute path. A port has this or a socket.',
      }),
    ),
  },
  { ...strict, title: 'ConsolePortSpec' },
);

const consoleBackendSpec = Type.Object(
  {
    type: Type.Literal('console', { description: 'A console and other streams of bytes.' }),
    ports: Type.Array(consolePortSpec, {
      minItems: 1,
      maxItems: limits.consolePortsMax,
      description: 'The first port is the console.',
    }),
    cols: Type.Optional(Type.Integer({ minimum: 1, maximum: 0xffff, description: 'Columns of the console.' })),
    rows: Type.Optional(Type.Integer({ minimum: 1, maximum: 0xffff, description: 'Rows of the console.' })),
  },
  { ...strict, title: 'ConsoleBackendSpec' },
);

const shmBackendSpec = Type.Object(
  {
    type: Type.Literal('shm', { description: 'A test device with one shared memory region.' }),
    bytes: Type.Optional(
      Type.Integer({
        minimum: limits.shmRegionMinBytes,
        maximum: limits.shmRegionMaxBytes,
        multipleOf: limits.shmRegionMinBytes,
        default: limits.shmRegionDefaultBytes,
        description: 'Size of the region.',
      }),
    ),
  },
  { ...strict, title: 'ShmBackendSpec' },
);

const templateBackendSpec = Type.Object(
  {
    type: Type.Literal('template', { description: 'An example for those who write a backend: it greets.' }),
    greeting: Type.Optional(
      Type.String({ maxLength: 100, default: 'Hello', description: 'What stands before the name in an answer.' }),
    ),
  },
  { ...strict, title: 'TemplateBackendSpec' },
);

const servedNumber = Type.Integer({
  minimum: 0,
  maximum: 0xffff,
  description: 'Number that the serving side gave it.',
});

const guestBackendSpec = Type.Object(
  {
    type: Type.Literal('guest', { description: 'A device that the guest of a bus of role device serves.' }),
    bus: reference('bus whose guest serves the device'),
    deviceNumber: servedNumber,
    dataPath: Type.Optional(
      Type.Enum(['auto', 'direct', 'shadow'], {
        default: 'auto',
        description:
          'direct: the serving guest maps the memory of the driver. shadow: the service copies. auto: direct where possible.',
      }),
    ),
  },
  { ...strict, title: 'GuestBackendSpec' },
);

const bridgeBackendSpec = Type.Object(
  {
    type: Type.Literal('bridge', { description: 'A device on a bus of another bridge; this one is the guest there.' }),
    socket: Type.String({ ...absolutePath, description: 'Socket of that bus, an absolute path.' }),
    deviceNumber: servedNumber,
  },
  { ...strict, title: 'BridgeBackendSpec' },
);

const vhostUserBackendSpec = Type.Object(
  {
    type: Type.Literal('vhost-user', {
      description: 'A device that a vhost-user back-end serves, a process of its own.',
    }),
    device: Type.Enum([...vhostUserDevices], {
      description: 'What the back-end serves; the protocol does not tell.',
    }),
    socket: Type.String({ ...absolutePath, description: 'Socket between it and the service, an absolute path.' }),
    mode: Type.Optional(
      Type.Enum(['connect', 'listen'], {
        default: 'connect',
        description: 'connect: the back-end listens on the socket. listen: it connects to the service.',
      }),
    ),
    dataPath: vhostUserDataPath,
  },
  { ...strict, title: 'VhostUserBackendSpec' },
);

const backendSpec = Type.Union(
  [
    vhostUserBackendSpec,
    ...programBackendSpecs,
    guestBackendSpec,
    bridgeBackendSpec,
    blkBackendSpec,
    rngBackendSpec,
    consoleBackendSpec,
    shmBackendSpec,
    templateBackendSpec,
  ],
  {
    title: 'BackendSpec',
    description: 'What serves a device; `type` says which fields it has.',
  },
);

const attachmentSpec = Type.Object(
  {
    bus: reference('bus'),
    backend: reference('backend'),
    deviceNumber: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: 0xffff,
        description: 'Device number on the bus. Without it: the lowest one not used since the guest connected.',
      }),
    ),
  },
  { ...strict, title: 'AttachmentSpec', description: 'One backend bound to one device number of a bus.' },
);

const stuckShare = Type.Object({
  bus: Type.String({ description: 'Bus on which it serves devices.' }),
  domid: Type.Integer({ description: 'Number of the domain whose memory it is.' }),
  pages: count('Pages of 4096 bytes.'),
  ageMs: Type.Number({ minimum: 0, description: 'Since when, in milliseconds.' }),
});

const domainStatus = Type.Object(
  {
    state: words(['running', 'absent'], 'Whether the Xen domain runs; always running where there is none.'),
    reason,
    domid: orNull(Type.Integer(), 'Number of the domain, null while it is absent.'),
    name: orNull(Type.String(), 'Name of the Xen domain that runs.'),
    uuid: orNull(Type.String(), 'Its UUID.'),
    buses: ids('Its buses.'),
    stuckShares: Type.Array(stuckShare, {
      description: 'Memory of others that it keeps although it was told to give it back.',
    }),
  },
  { title: 'DomainStatus' },
);

const grants = Type.Object({
  persistent: Type.Boolean({ description: 'Whether mappings are kept until the guest releases its grants.' }),
  hits: count('Uses of a mapping that was kept.'),
  misses: count('Mappings made.'),
  evictions: count('Kept mappings given up to stay within the bound.'),
  faults: count('Uses refused.'),
  mappedPages: count('Pages mapped now.'),
});

const busStatus = Type.Object(
  {
    state: busState,
    reason,
    address: Type.String({ description: 'What a guest connects to.' }),
    epoch: u64('Number of the connection, 0x0 before the first one.'),
    peer,
    counters,
    regions: count('Memory regions of the guest.'),
    regionBytes: count('Their size.'),
    regionsDraining: count('Regions already removed that I/O still uses.'),
    grants: orNull(grants, 'Grants used by address since the guest connected, null where the bus has none.'),
    diagnosis: orNull(
      Type.String(),
      'The last memory or event channel of the guest that could not be used, and what to check.',
    ),
    attachments: ids('Attachments on this bus.'),
  },
  { title: 'BusStatus' },
);

const backendStatus = Type.Object(
  { deviceType: Type.String({ description: 'Name of the virtio device type.' }), attachments: ids('Its attachments.') },
  { title: 'BackendStatus' },
);

const Queue = Type.Object({
  index: count('Index of the queue.'),
  size: count('Its size.'),
  inFlight: count('Requests taken and not yet answered.'),
});

const attachmentStatus = Type.Object(
  {
    state: words(
      ['pending', 'active', 'degraded', 'detaching', 'failed'],
      'pending: not attached yet. active: the guest can use it. degraded: attached, the device needs a reset. detaching: waits for requests in flight. failed: not attached, is tried again.',
    ),
    reason,
    deviceNumber: orNull(Type.Integer(), 'Number on the bus, null while not attached.'),
    deviceType: Type.String({ description: 'Name of the virtio device type.' }),
    deviceStatus: ids('Names of the virtio device status bits that are set.'),
    recovery: words(['resume', 'reset'], 'What a restart of the service does to the device.'),
    dataPath: words(
      ['direct', 'relayed', 'shadow'],
      'direct: the backend uses the memory of the guest. relayed: so does the side that serves it. shadow: copies.',
    ),
    dataPathReason: orNull(Type.String(), 'Why data is copied, where it is.'),
    epoch: u64('Epoch of the bus.'),
    queues: Type.Array(Queue),
    requests: orNull(count('Requests.'), 'Requests taken, null where data does not pass the bridge.'),
    bytes: orNull(count('Bytes.'), 'Bytes of them, null where data does not pass the bridge.'),
  },
  { title: 'AttachmentStatus' },
);

/** Spec and status schema of each kind of object. */
export const kindSchemas = {
  domains: { spec: domainSpec, status: domainStatus },
  buses: { spec: busSpec, status: busStatus },
  backends: { spec: backendSpec, status: backendStatus },
  attachments: { spec: attachmentSpec, status: attachmentStatus },
} as const;

type Schemas = typeof kindSchemas;
export type Kind = keyof Schemas;
/** Types of spec and status of each kind, derived from the schemas. */
export type Kinds = {
  [K in Kind]: { spec: Frozen<Static<Schemas[K]['spec']>>; status: Frozen<Static<Schemas[K]['status']>> };
};
/** In the order of dependency: an object refers only to kinds before its own. */
export const kinds = ['domains', 'buses', 'backends', 'attachments'] as const satisfies readonly Kind[];
