import Type from 'typebox';
import {
  channelSchema,
  idPattern,
  idSchema,
  type Kind,
  kindSchemas,
  kinds,
  recordSchema,
  shareIdPattern,
  shareIdSchema,
  shareSchema,
} from '../src/bridge/commands.ts';
import { errorRegistry } from '../src/kit/errors.ts';
import { limits } from '../src/kit/limits.ts';

const strict = { additionalProperties: false } as const;

/** Name of the schema of one object of each kind. */
export const resourceName = {
  domains: 'Domain',
  buses: 'Bus',
  backends: 'Backend',
  attachments: 'Attachment',
} as const;

/** One object in words, for summaries. */
export const singular = { domains: 'domain', buses: 'bus', backends: 'backend', attachments: 'attachment' } as const;

const resourceSchema = (kind: Kind) =>
  Type.Object(
    {
      id: idSchema,
      kind: Type.Literal(kind),
      origin: Type.Enum(['config', 'api'], { description: 'config: from the config file, read-only here.' }),
      revision: Type.Integer({ minimum: 0, description: 'Changes with every change of `spec`; the ETag.' }),
      spec: Type.Ref(`${resourceName[kind]}Spec`),
      status: Type.Ref(`${resourceName[kind]}Status`),
    },
    { ...strict, $id: resourceName[kind] },
  );

const pageSchema = (name: string, order = 'Sorted by id.', cursor: Type.TSchema = Type.String()) =>
  Type.Object(
    {
      items: Type.Array(Type.Ref(name), { description: order }),
      next: Type.Union([cursor, Type.Null()], { description: 'Cursor of the next page, null on the last one.' }),
    },
    { ...strict, $id: `${name}Page` },
  );

const problemSchema = Type.Object(
  {
    type: Type.String({ description: '`urn:vmsg:error:` and the code.' }),
    title: Type.String({ description: 'The error in general.' }),
    status: Type.Integer({ description: 'The HTTP status.' }),
    detail: Type.String({ description: 'What happened this time.' }),
    instance: Type.String({ description: '`urn:vmsg:request:` and the id of the request, also in the log.' }),
    code: Type.Enum(Object.keys(errorRegistry), { description: 'Stable; docs/errors.md lists all.' }),
    pointer: Type.Optional(Type.String({ description: 'JSON pointer of the field of the body.' })),
    parameter: Type.Optional(Type.String({ description: 'Name of the query, path or header parameter.' })),
  },
  { ...strict, $id: 'Problem', description: 'An error (RFC 9457).' },
);

const eventSchema = Type.Object(
  {
    id: Type.Integer({ minimum: 1 }),
    time: Type.String({ format: 'date-time' }),
    type: Type.String({ description: 'What happened, such as bus-connected.' }),
    kind: Type.Enum([...kinds, 'service']),
    object: Type.String({ description: 'Id of the object concerned, empty for the service.' }),
    data: Type.Object({}, { additionalProperties: true, description: 'More about it.' }),
  },
  { ...strict, $id: 'Event', description: 'One line `data:` of the stream.' },
);

/** Every schema that has a name of its own in the OpenAPI document. */
export const namedSchemas: readonly Type.TSchema[] = [
  ...kinds.flatMap((kind) => [
    { ...kindSchemas[kind].spec, $id: `${resourceName[kind]}Spec` },
    { ...kindSchemas[kind].status, $id: `${resourceName[kind]}Status` },
    resourceSchema(kind),
    pageSchema(resourceName[kind]),
  ]),
  { ...channelSchema, $id: 'Channel' },
  pageSchema('Channel'),
  { ...recordSchema, $id: 'MessageRecord' },
  pageSchema('MessageRecord', 'Oldest first.', Type.Integer()),
  { ...shareSchema, $id: 'Share' },
  pageSchema('Share'),
  problemSchema,
  eventSchema,
];

export const idParams = Type.Object({ id: idSchema }, strict);

export const shareIdParams = Type.Object({ id: shareIdSchema }, strict);

const pageQueryOf = <T extends Type.TSchema>(cursor: T) =>
  Type.Object(
    {
      limit: Type.Optional(
        Type.Integer({
          minimum: 1,
          maximum: limits.apiPageMaxItems,
          default: limits.apiPageDefaultItems,
          description: 'Most items in the answer.',
        }),
      ),
      cursor: Type.Optional(cursor),
    },
    strict,
  );

const cursorText = '`next` of the page before.';

export const pageQuery = pageQueryOf(Type.String({ pattern: idPattern, description: cursorText }));
export const sharePageQuery = pageQueryOf(Type.String({ pattern: shareIdPattern, description: cursorText }));
export const recordPageQuery = pageQueryOf(
  Type.Integer({ minimum: 0, description: '`next` of the page before, or the `sequence` seen last.' }),
);

export const noQuery = Type.Object({}, strict);
