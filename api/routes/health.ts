import type { FastifyInstance } from 'fastify';
import type { Commands } from '../../src/bridge/commands.ts';
import { VmsgError } from '../../src/kit/errors.ts';
import { accessProblems, problemsOf } from '../responses.ts';
import { noQuery } from '../schemas.ts';

const answer = (status: string) => ({
  type: 'object',
  properties: { status: { const: status } },
  required: ['status'],
  additionalProperties: false,
});

interface HealthParts {
  readonly commands: Commands;
  readonly openApi: () => Promise<string>;
}

/** Is the process alive, can it do its work, and what does it understand. */
export function registerHealth(app: FastifyInstance, { commands, openApi }: HealthParts): void {
  const tags = ['service'];
  app.get(
    '/healthz',
    {
      schema: {
        tags,
        operationId: 'getHealth',
        summary: 'Whether the process answers',
        querystring: noQuery,
        response: { 200: { description: 'It does.', ...answer('ok') }, ...problemsOf(accessProblems) },
      },
    },
    async () => ({ status: 'ok' }),
  );
  app.get(
    '/readyz',
    {
      schema: {
        tags,
        operationId: 'getReadiness',
        summary: 'Whether the service can do its work',
        querystring: noQuery,
        response: {
          200: { description: 'It can.', ...answer('ready') },
          ...problemsOf([...accessProblems, 'unavailable']),
        },
      },
    },
    async () => {
      const reason = commands.readiness();
      if (reason !== null) throw new VmsgError('unavailable', reason);
      return { status: 'ready' };
    },
  );
  app.get(
    '/v1/openapi.json',
    {
      schema: {
        tags,
        operationId: 'getOpenApi',
        summary: 'This description',
        querystring: noQuery,
        response: {
          200: { description: 'An OpenAPI 3.1 document.', type: 'object', additionalProperties: true },
          ...problemsOf(accessProblems),
        },
      },
    },
    async (_request, reply) => reply.type('application/json; charset=utf-8').send(await openApi()),
  );
}
