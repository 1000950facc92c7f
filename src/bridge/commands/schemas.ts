import Type, { type Static } from 'typebox';
import { limits } from '../../kit/limits.ts';

/** A type with every level read-only: what leaves the service is not changed by those who get it. */
export type Frozen<T> = T extends (infer U)[]
  ? readonly Frozen<U>[]
  : T extends object
    ? { readonly [K in keyof T]: Frozen<T[K]> }
    : T;

const strict = { additionalProperties: false } as const;
const absolutePath = { pattern: '^/[^\\u0000]*$', maxLength: 4095 } as const;

export const idPattern = '^[a-z0-9][a-z0-9._-]{0,62}$';
export const idSchema = Type.String({
  pattern: idPattern,
  description: 'Name chosen by the client: 1 to 63 of a-z, 0-9, ".", "_" and "-", beginning with a letter or digit.',
});

const reference = (what: string) => Type.String({ pattern: idPattern, description: `Id of the ${what}.` });
const u64 = (description: string) => Type.String({ pattern: '^0x[0-9a-f]{1,16}$', description });
const count = (description: string) => Type.Integer({ minimum: 0, description });
const ids = (description: string) => Type.Array(Type.String(), { description });
const orNull = <T extends Type.TSchema>(schema: T, description: string) =>
  Type.Union([schema, Type.Null()], { description });
const words = <const T extends string[]>(values: [...T], description: string) => Type.Enum(values, { description });

const domainSpec = Type.Object(
  {
    description: Type.Optional(
      Type.String({ maxLength: 200, description: 'Free text. The one field that may change.' }),
    ),
  },
  { ...strict, title: 'DomainSpec', description: 'A VM, or what stands for one on the loopback bus: a guest process.' },
);

const busSpec = Type.Object(
  {
    domain: reference('domain that the bus belongs to'),
    transport: words(['loopback'], 'How messages travel: loopback is rings in shared memory, one Unix socket a bus.'),
    role: words(['driver'], 'What the domain does on this bus: driver, it uses devices.'),
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
        description: 'User ids that may connect. Without it: the user of the service and root.',
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

const backendSpec = Type.Union([blkBackendSpec, rngBackendSpec], {
  title: 'BackendSpec',
  description: 'What serves a device; `type` says which fields it has.',
});

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

const Peer = Type.Object({ pid: Type.Integer(), uid: Type.Integer(), gid: Type.Integer() });
const reason = orNull(Type.String(), 'Why, where the state needs a reason.');

const Counters = Type.Object({
  messagesIn: count('Messages from the guest.'),
  messagesOut: count('Messages to the guest.'),
  doorbellsIn: count('Doorbells from the guest.'),
  doorbellsOut: count('Doorbells to the guest.'),
  malformed: count('Malformed messages, dropped.'),
  dropped: count('Messages dropped for another reason.'),
  failures: count('Failure events sent to the guest.'),
});

const domainStatus = Type.Object(
  { domid: Type.Integer({ description: 'Number of the domain while the service runs.' }), buses: ids('Its buses.') },
  { title: 'DomainStatus' },
);

const busStatus = Type.Object(
  {
    state: words(
      ['pending', 'listening', 'handshake', 'connected', 'failed'],
      'pending: not open yet. listening: waits for a guest. handshake, connected: has one. failed: not open, is tried again.',
    ),
    reason,
    address: Type.String({ description: 'What a guest connects to.' }),
    epoch: u64('Number of the connection, 0x0 before the first one.'),
    peer: orNull(Peer, 'The connected process.'),
    counters: Counters,
    regions: count('Memory regions of the guest.'),
    regionBytes: count('Their size.'),
    regionsDraining: count('Regions already removed that I/O still uses.'),
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
    dataPath: words(['direct', 'shadow'], 'direct: the backend uses the memory of the guest. shadow: copies.'),
    epoch: u64('Epoch of the bus.'),
    queues: Type.Array(Queue),
    requests: count('Requests completed.'),
    bytes: count('Bytes moved for them.'),
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
