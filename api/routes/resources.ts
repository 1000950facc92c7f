import type { IncomingHttpHeaders } from 'node:http';
import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox';
import type { FastifyInstance } from 'fastify';
import Type from 'typebox';
import type { Commands, Kind, Kinds, Precondition, Resource } from '../../src/bridge/commands.ts';
import { limits } from '../../src/kit/limits.ts';
import { ParameterError } from '../problem.ts';
import { problemResponses } from '../responses.ts';
import { idParams, noQuery, pageQuery, resourceName, singular } from '../schemas.ts';

const conditions = {
  'if-match': Type.Optional(Type.String({ description: 'The ETag that the object must have, or * for any.' })),
  'if-none-match': Type.Optional(Type.String({ description: '* when the object must not exist yet.' })),
} as const;

const textHeader = (description: string) => ({ type: 'string', description });
const etagHeader = { etag: textHeader('Revision of `spec`, for If-Match.') };

const etagOf = ({ revision }: Resource): string => `"${revision}"`;

/** @throws ParameterError for what is not one strong ETag or `*` */
function preconditionOf({ headers }: { readonly headers: IncomingHttpHeaders }): Precondition | undefined {
  const match = headers['if-match'];
  const noneMatch = headers['if-none-match'];
  if (noneMatch !== undefined) {
    if (noneMatch === '*' && match === undefined) return 'absent';
    throw new ParameterError('if-none-match', 'the parameter if-none-match can only be * and only without if-match');
  }
  if (match === undefined) return undefined;
  if (match === '*') return 'exists';
  const revision = /^"(\d{1,16})"$/.exec(match)?.[1];
  if (revision === undefined)
    throw new ParameterError('if-match', 'the parameter if-match must be * or one ETag as it was sent');
  return Number(revision);
}

interface Routes<K extends Kind> {
  readonly app: ReturnType<typeof typed>;
  readonly kind: K;
  readonly commands: Commands;
}

const typed = (server: FastifyInstance) => server.withTypeProvider<TypeBoxTypeProvider>();

const reference = (name: string) => ({ $ref: `${name}#` });

/** An answer with the object. */
const objectAnswer = (kind: Kind, description: string, headers = {}) => ({
  description,
  headers: { ...etagHeader, ...headers },
  ...reference(resourceName[kind]),
});

/** Routes of one kind of object: they are the same for all. */
export function registerResource<K extends Kind>(server: FastifyInstance, kind: K, commands: Commands): void {
  const routes: Routes<K> = { app: typed(server), kind, commands };
  addList(routes);
  addGet(routes);
  addPut(routes);
  addDelete(routes);
}

function addList<K extends Kind>({ app, kind, commands }: Routes<K>): void {
  app.get(
    `/v1/${kind}`,
    {
      schema: {
        tags: [kind],
        operationId: `list${resourceName[kind]}`,
        summary: `List the ${kind}`,
        querystring: pageQuery,
        response: {
          200: { description: 'One page.', ...reference(`${resourceName[kind]}Page`) },
          ...problemResponses('list', kind),
        },
      },
    },
    async ({ query }) => {
      const { limit = limits.apiPageDefaultItems, cursor } = query;
      return commands.list(kind, { limit, ...(cursor === undefined ? {} : { after: cursor }) });
    },
  );
}

function addGet<K extends Kind>({ app, kind, commands }: Routes<K>): void {
  app.get(
    `/v1/${kind}/:id`,
    {
      schema: {
        tags: [kind],
        operationId: `get${resourceName[kind]}`,
        summary: `Get the ${singular[kind]}`,
        params: idParams,
        querystring: noQuery,
        response: { 200: objectAnswer(kind, 'The object.'), ...problemResponses('get', kind) },
      },
    },
    async ({ params }, reply) => {
      const resource = await commands.get(kind, params.id);
      reply.header('etag', etagOf(resource));
      return resource;
    },
  );
}

function addPut<K extends Kind>({ app, kind, commands }: Routes<K>): void {
  app.put(
    `/v1/${kind}/:id`,
    {
      schema: {
        tags: [kind],
        operationId: `put${resourceName[kind]}`,
        summary: `Create the ${singular[kind]}, or change what may change`,
        params: idParams,
        querystring: noQuery,
        headers: Type.Object(conditions),
        body: Type.Unsafe<Kinds[K]['spec']>(reference(`${resourceName[kind]}Spec`)),
        response: {
          200: objectAnswer(kind, 'It was there: unchanged, or changed as asked.'),
          201: objectAnswer(kind, 'It was created and is durable.', { location: textHeader('Path of the object.') }),
          ...problemResponses('put', kind),
        },
      },
    },
    async (request, reply) => {
      const { id } = request.params;
      const { outcome, resource } = await commands.put(
        kind,
        id,
        request.body as Kinds[K]['spec'],
        preconditionOf(request),
      );
      if (outcome === 'created') reply.code(201).header('location', `/v1/${kind}/${id}`);
      reply.header('etag', etagOf(resource));
      return resource;
    },
  );
}

function addDelete<K extends Kind>({ app, kind, commands }: Routes<K>): void {
  app.delete(
    `/v1/${kind}/:id`,
    {
      schema: {
        tags: [kind],
        operationId: `delete${resourceName[kind]}`,
        summary: `Delete the ${singular[kind]}`,
        params: idParams,
        querystring: noQuery,
        headers: Type.Object({ 'if-match': conditions['if-match'] }),
        response: { 204: Type.Null({ description: 'It is gone.' }), ...problemResponses('delete', kind) },
      },
    },
    async (request, reply) => {
      const condition = preconditionOf(request);
      if (condition === 'absent')
        throw new ParameterError('if-none-match', 'the parameter if-none-match is for PUT only');
      await commands.delete(kind, request.params.id, condition);
      return reply.code(204).send(null);
    },
  );
}
