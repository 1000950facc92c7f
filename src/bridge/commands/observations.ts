import Type, { type Static } from 'typebox';
import { busState, count, counters, orNull, peer, reason, strict, u64, words } from './fields.ts';
import { type Frozen, idSchema } from './schemas.ts';

/** What can be seen of the running service beside its objects; read-only. */
export const channelSchema = Type.Object(
  {
    id: idSchema,
    domain: Type.String({ description: 'Id of the domain of the bus.' }),
    state: busState,
    reason,
    epoch: u64('Number of the connection, 0x0 before the first one.'),
    peer,
    dialect: orNull(Type.String(), 'Wire revision of virtio-msg, null without a guest; so are the next three.'),
    maxMessageSizeBytes: orNull(Type.Integer(), 'Largest message that was agreed on.'),
    slotBytes: orNull(Type.Integer(), 'Size of a slot of the rings.'),
    backlogMessages: orNull(Type.Integer(), 'Messages that wait for room in the ring to the guest.'),
    counters,
  },
  { ...strict, title: 'Channel', description: 'The message path of a bus; it has the id of the bus.' },
);

export const recordSchema = Type.Object(
  {
    sequence: count('Rises by one with every message of the bus; a gap says what was overwritten.'),
    ageMs: Type.Number({ minimum: 0, description: 'How long ago the message passed, in milliseconds.' }),
    direction: words(['in', 'out'], 'in: from the guest. out: to it.'),
    kind: words(['request', 'response', 'event'], 'What kind of message it is.'),
    message: orNull(Type.String(), 'Name of the message, null for an id that the wire revision does not have.'),
    messageId: count('Its id on the wire.'),
    isBusMessage: Type.Boolean({ description: 'Whether it is about the bus, not about a device.' }),
    deviceNumber: orNull(Type.Integer(), 'Device that it is about, null for a bus message.'),
    token: count('Joins a response with its request; 0 in events.'),
    sizeBytes: count('Header and payload.'),
  },
  { ...strict, title: 'MessageRecord', description: 'The header of a message that passed; payloads are not kept.' },
);

export const shareIdPattern = '^[a-z0-9][a-z0-9._-]{0,62}\\.[0-9]{1,5}$';
export const shareIdSchema = Type.String({
  pattern: shareIdPattern,
  description: 'Id of the bus, a dot, and the area id that the guest chose.',
});

export const shareSchema = Type.Object(
  {
    id: shareIdSchema,
    bus: Type.String({ description: 'Id of the bus.' }),
    domain: Type.String({ description: 'Id of the domain that the memory belongs to.' }),
    area: count('Area id.'),
    bytes: count('Size.'),
    readOnly: Type.Boolean({ description: 'Whether devices may only read.' }),
    pins: count('How often devices hold it, for their queues and for I/O under way.'),
    state: words(['active', 'draining'], 'active: devices may use it. draining: removed, still held.'),
  },
  { ...strict, title: 'Share', description: 'A region of memory that a guest shares.' },
);

export type Channel = Frozen<Static<typeof channelSchema>>;
export type MessageRecord = Frozen<Static<typeof recordSchema>>;
export type Share = Frozen<Static<typeof shareSchema>>;
