import Type from 'typebox';
import { idPattern, idSchema, type Kind, kindSchemas, kinds } from '../src/bridge/commands.ts';
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

const pageSchema = (kind: Kind) =>
  Type.Object(
    {
      items: Type.Array(Type.Ref(resourceName[kind]), { description: 'Sorted by id.' }),
      next: Type.Union([Type.String(), Type.Null()], { description: 'Cursor of the next page, null on the last one.' }),
    },
    { ...strict, $id: `${resourceName[kind]}Page` },
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
    pageSchema(kind),
  ]),
  problemSchema,
  eventSchema,
];

export const idParams = Type.Object({ id: idSchema }, strict);

export const pageQuery = Type.Object(
  {
    limit: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: limits.apiPageMaxItems,
        default: limits.apiPageDefaultItems,
        description: 'Most objects in the answer.',
      }),
    ),
    cursor: Type.Optional(Type.String({ pattern: idPattern, description: '`next` of the page before.' })),
  },
  strict,
);

export const noQuery = Type.Object({}, strict);
