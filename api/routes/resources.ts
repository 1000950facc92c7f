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

/** Routes of one kind of object: they are the same for all. */
export function registerResource<K extends Kind>(server: FastifyInstance, kind: K, commands: Commands): void {
  const app = server.withTypeProvider<TypeBoxTypeProvider>();
  const name = resourceName[kind];
  const one = singular[kind];
  const body = (ref: string) => ({ $ref: `${ref}#` });
  const object = (description: string, headers = {}) => ({
    description,
    headers: { ...etagHeader, ...headers },
    ...body(name),
  });
  const common = { tags: [kind] };

  app.get(
    `/v1/${kind}`,
    {
      schema: {
        ...common,
        operationId: `list${name}`,
        summary: `List the ${kind}`,
        querystring: pageQuery,
        response: { 200: { description: 'One page.', ...body(`${name}Page`) }, ...problemResponses('list', kind) },
      },
    },
    async ({ query }) => {
      const { limit = limits.apiPageDefaultItems, cursor } = query;
      return commands.list(kind, { limit, ...(cursor === undefined ? {} : { after: cursor }) });
    },
  );

  app.get(
    `/v1/${kind}/:id`,
    {
      schema: {
        ...common,
        operationId: `get${name}`,
        summary: `Get the ${one}`,
        params: idParams,
        querystring: noQuery,
        response: { 200: object('The object.'), ...problemResponses('get', kind) },
      },
    },
    async ({ params }, reply) => {
      const resource = await commands.get(kind, params.id);
      reply.header('etag', etagOf(resource));
      return resource;
    },
  );

  app.put(
    `/v1/${kind}/:id`,
    {
      schema: {
        ...common,
        operationId: `put${name}`,
        summary: `Create the ${one}, or change what may change`,
        params: idParams,
        querystring: noQuery,
        headers: Type.Object(conditions),
        body: Type.Unsafe<Kinds[K]['spec']>(body(`${name}Spec`)),
        response: {
          200: object('It was there: unchanged, or changed as asked.'),
          201: object('It was created and is durable.', { location: textHeader('Path of the object.') }),
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

  app.delete(
    `/v1/${kind}/:id`,
    {
      schema: {
        ...common,
        operationId: `delete${name}`,
        summary: `Delete the ${one}`,
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
