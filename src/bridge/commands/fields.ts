import Type from 'typebox';

export const absolutePath = { pattern: '^/[^\\u0000]*$', maxLength: 4095 } as const;

export const strict = { additionalProperties: false } as const;

export const u64 = (description: string) => Type.String({ pattern: '^0x[0-9a-f]{1,16}$', description });
export const count = (description: string) => Type.Integer({ minimum: 0, description });
export const ids = (description: string) => Type.Array(Type.String(), { description });
export const orNull = <T extends Type.TSchema>(schema: T, description: string) =>
  Type.Union([schema, Type.Null()], { description });
export const words = <const T extends string[]>(values: [...T], description: string) =>
  Type.Enum(values, { description });

export const reason = orNull(Type.String(), 'Why, where the state needs a reason.');

export const busState = words(
  ['pending', 'listening', 'handshake', 'connected', 'failed'],
  'pending: not open yet. listening: waits for a guest. handshake, connected: has one. failed: not open, is tried again.',
);

export const peer = Type.Union(
  [
    Type.Object({ pid: Type.Integer(), uid: Type.Integer(), gid: Type.Integer() }),
    Type.Object({ domid: Type.Integer() }),
    Type.Null(),
  ],
  { description: 'The connected process, or Xen domain.' },
);

export const counters = Type.Object({
  messagesIn: count('Messages from the guest.'),
  messagesOut: count('Messages to the guest.'),
  doorbellsIn: count('Doorbells from the guest.'),
  doorbellsOut: count('Doorbells to the guest.'),
  malformed: count('Malformed messages, dropped.'),
  dropped: count('Messages dropped for another reason.'),
  failures: count('Failure events sent to the guest.'),
});
