import type { FastifyInstance } from 'fastify';
import { accessProblems, problemsOf } from '../responses.ts';
import { noQuery } from '../schemas.ts';
import type { EventStreams } from '../sse.ts';

export function registerEvents(app: FastifyInstance, streams: EventStreams): void {
  app.addHook('preClose', async () => streams.closeAll());
  app.get(
    '/v1/events',
    {
      schema: {
        tags: ['events'],
        operationId: 'watchEvents',
        summary: 'Watch what happens, as Server-Sent Events',
        description:
          'With the header Last-Event-ID the stream begins after that event; an event `gap` first says that some are lost.',
        querystring: noQuery,
        response: {
          200: {
            description: 'A stream that does not end; `data` of each event is one Event.',
            content: { 'text/event-stream': { schema: { $ref: 'Event#' } } },
          },
          ...problemsOf(['invalid-request', ...accessProblems, 'limit-reached', 'internal']),
        },
      },
    },
    (request, reply) => {
      if (request.method === 'HEAD') return reply.type('text/event-stream').send();
      streams.checkRoom();
      const lastEventId = request.headers['last-event-id'];
      reply.hijack();
      streams.open(reply.raw, typeof lastEventId === 'string' ? lastEventId : undefined, {
        'x-request-id': request.id,
      });
      return reply;
    },
  );
}
