import swagger from '@fastify/swagger';
import Fastify from 'fastify';
import type { Commands } from '../src/bridge/commands.ts';
import type { EventSource } from '../src/bridge/events.ts';
import { systemClock } from '../src/kit/clock.ts';
import { ApiState, compilersFactory, registerRoutes } from './server.ts';

const never = async (): Promise<never> => {
  throw new Error('a server that only describes itself has no commands');
};

const commands: Commands = {
  put: never,
  get: never,
  list: never,
  delete: never,
  dataPlane: never,
  listChannels: never,
  getChannel: never,
  listRecords: never,
  listShares: never,
  getShare: never,
  readiness: () => null,
};
const events: EventSource = { subscribe: () => ({ complete: true, close: () => {} }) };

const openapi = (version: string): object => ({
  openapi: '3.1.0',
  info: {
    title: 'vmsg',
    version,
    description: 'Controls virtio-msg buses, the backends behind them and what is attached where.',
    license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
  },
  components: {
    securitySchemes: {
      token: { type: 'http', scheme: 'bearer', description: 'Over TCP: the token of the token file.' },
    },
  },
  // Over the Unix socket nothing is needed.
  security: [{}, { token: [] }],
});

/**
 * The OpenAPI document as a file: what the routes declare, with a line break at the end. The service hands out the
 * file: what makes it takes longer to load than all routes.
 */
export async function openApiText(version: string): Promise<string> {
  const processNumbers = () => ({ uptimeSeconds: 0, residentBytes: 0, openFds: 0 });
  const common = { commands, events, clock: systemClock, version, instance: 'describe' };
  const parts = { ...common, openApi: never, processNumbers };
  const app = Fastify({ schemaController: { compilersFactory } });
  await app.register(swagger, {
    openapi: openapi(version),
    refResolver: { buildLocalReference: (json, _base, _fragment, i) => String(json.$id ?? `def-${i}`) },
  });
  registerRoutes(app, parts, new ApiState(parts));
  await app.ready();
  const text = JSON.stringify(app.swagger(), null, 2);
  await app.close();
  return `${text}\n`;
}
