import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox';
import type { FastifyInstance } from 'fastify';
import type { Commands, PageRequest } from '../../src/bridge/commands.ts';
import { limits } from '../../src/kit/limits.ts';
import { readProblems } from '../responses.ts';
import { idParams, noQuery, pageQuery, recordPageQuery, shareIdParams, sharePageQuery } from '../schemas.ts';

const typed = (server: FastifyInstance) => server.withTypeProvider<TypeBoxTypeProvider>();

const answer = (name: string, description: string) => ({ description, $ref: `${name}#` });

const pageRequest = <C>(query: { readonly limit?: number; readonly cursor?: C }): PageRequest<C> => ({
  limit: query.limit ?? limits.apiPageDefaultItems,
  ...(query.cursor === undefined ? {} : { after: query.cursor }),
});

/** What can be seen and not changed: message paths and shared memory. */
export function registerObservations(server: FastifyInstance, commands: Commands): void {
  addChannels(server, commands);
  addRecords(server, commands);
  addShares(server, commands);
}

function addChannels(server: FastifyInstance, commands: Commands): void {
  const app = typed(server);
  const tags = ['channels'];
  app.get(
    '/v1/channels',
    {
      schema: {
        tags,
        operationId: 'listChannel',
        summary: 'List the channels, one for each bus',
        querystring: pageQuery,
        response: { 200: answer('ChannelPage', 'One page.'), ...readProblems() },
      },
    },
    async ({ query }) => commands.listChannels(pageRequest(query)),
  );
  app.get(
    '/v1/channels/:id',
    {
      schema: {
        tags,
        operationId: 'getChannel',
        summary: 'Get the channel of a bus',
        params: idParams,
        querystring: noQuery,
        response: { 200: answer('Channel', 'The channel.'), ...readProblems('not-found') },
      },
    },
    async ({ params }) => commands.getChannel(params.id),
  );
}

function addRecords(server: FastifyInstance, commands: Commands): void {
  typed(server).get(
    '/v1/channels/:id/records',
    {
      schema: {
        tags: ['channels'],
        operationId: 'listChannelRecords',
        summary: 'List the last messages of a bus',
        description: `Headers of at most the last ${limits.flightRecords} messages, oldest first; payloads are not kept.`,
        params: idParams,
        querystring: recordPageQuery,
        response: { 200: answer('MessageRecordPage', 'One page.'), ...readProblems('not-found') },
      },
    },
    async ({ params, query }) => commands.listRecords(params.id, pageRequest(query)),
  );
}

function addShares(server: FastifyInstance, commands: Commands): void {
  const app = typed(server);
  const tags = ['shares'];
  app.get(
    '/v1/shares',
    {
      schema: {
        tags,
        operationId: 'listShare',
        summary: 'List the memory that guests share',
        querystring: sharePageQuery,
        response: { 200: answer('SharePage', 'One page.'), ...readProblems() },
      },
    },
    async ({ query }) => commands.listShares(pageRequest(query)),
  );
  app.get(
    '/v1/shares/:id',
    {
      schema: {
        tags,
        operationId: 'getShare',
        summary: 'Get a shared region',
        params: shareIdParams,
        querystring: noQuery,
        response: { 200: answer('Share', 'The region.'), ...readProblems('not-found') },
      },
    },
    async ({ params }) => commands.getShare(params.id),
  );
}
