import type { FastifyInstance } from 'fastify';
import type { Commands, Kind, PageOf, PageRequest, Resource } from '../../src/bridge/commands.ts';
import { limits } from '../../src/kit/limits.ts';
import { familiesOf, type ProcessNumbers } from '../families.ts';
import { metricsText, metricsType } from '../metrics.ts';
import type { RequestCounts } from '../request-counts.ts';
import { readProblems } from '../responses.ts';
import { noQuery } from '../schemas.ts';
import type { EventStreams } from '../sse.ts';

export interface MetricsParts {
  readonly commands: Commands;
  readonly version: string;
  readonly requests: RequestCounts;
  readonly streams: EventStreams;
  readonly processNumbers: () => ProcessNumbers;
}

export function registerMetrics(app: FastifyInstance, parts: MetricsParts): void {
  app.get(
    '/metrics',
    {
      schema: {
        tags: ['service'],
        operationId: 'getMetrics',
        summary: 'Numbers for Prometheus',
        querystring: noQuery,
        response: {
          200: {
            description: 'The text format 0.0.4 of Prometheus.',
            content: { 'text/plain': { schema: { type: 'string' } } },
          },
          ...readProblems(),
        },
      },
    },
    async (_request, reply) => {
      const { commands, version, requests, streams, processNumbers } = parts;
      const text = await metricsText(
        familiesOf({
          version,
          ready: commands.readiness() === null,
          dataPlane: await commands.dataPlane(),
          channels: await everyPage((page) => commands.listChannels(page)),
          domains: await everyObject(commands, 'domains'),
          buses: await everyObject(commands, 'buses'),
          attachments: await everyObject(commands, 'attachments'),
          requests: requests.rows(),
          streams,
          process: processNumbers(),
        }),
      );
      return reply.type(metricsType).send(text);
    },
  );
}

const everyObject = <K extends Kind>(commands: Commands, kind: K): Promise<Resource<K>[]> =>
  everyPage((page) => commands.list(kind, page));

/** All items of a collection, whose number is bounded. */
async function everyPage<T>(list: (page: PageRequest) => Promise<PageOf<T>>): Promise<T[]> {
  const items: T[] = [];
  let after: string | null = null;
  do {
    const page: PageOf<T> = await list({ limit: limits.apiPageMaxItems, ...(after === null ? {} : { after }) });
    items.push(...page.items);
    after = page.next;
  } while (after !== null);
  return items;
}
