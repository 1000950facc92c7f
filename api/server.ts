import { STATUS_CODES } from 'node:http';
import type { Socket } from 'node:net';
import swagger from '@fastify/swagger';
import Fastify, {
  type FastifyBaseLogger,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  LogController,
} from 'fastify';
import { type Commands, kinds } from '../src/bridge/commands.ts';
import type { EventSource } from '../src/bridge/events.ts';
import type { Clock } from '../src/kit/clock.ts';
import { VmsgError } from '../src/kit/errors.ts';
import { limits } from '../src/kit/limits.ts';
import { registerNotFound } from './methods.ts';
import { problemOf, problemType } from './problem.ts';
import { registerEvents } from './routes/events.ts';
import { registerHealth } from './routes/health.ts';
import { registerResource } from './routes/resources.ts';
import { namedSchemas } from './schemas.ts';
import { EventStreams } from './sse.ts';
import { compileValidator } from './validation.ts';

export interface ServerParts {
  readonly commands: Commands;
  readonly events: EventSource;
  readonly clock: Clock;
  /** Version of the package, for the OpenAPI document. */
  readonly version: string;
  /** Text unique to this run of the service; part of request and event ids. */
  readonly instance: string;
  /** Without it nothing is logged. */
  readonly logger?: FastifyBaseLogger;
}

/** The HTTP server with all its routes, not yet listening. */
export async function buildServer(parts: ServerParts): Promise<FastifyInstance> {
  let requests = 0;
  const nextId = () => {
    requests += 1;
    return `${parts.instance}-${requests}`;
  };
  const app = Fastify({
    ...(parts.logger === undefined ? {} : { loggerInstance: parts.logger }),
    logController: new LogController({ disableRequestLogging: true }),
    genReqId: nextId,
    bodyLimit: limits.apiBodyMaxBytes,
    requestTimeout: limits.apiRequestTimeoutMs,
    // Longer than any id: a long one is a wrong id, not an unknown path.
    routerOptions: { maxParamLength: 16 * 1024 },
    frameworkErrors: sendProblem,
    clientErrorHandler: (error, socket) => answerBrokenRequest(error, socket, nextId()),
  });
  app.server.maxConnections = limits.apiConnectionsMax;
  app.removeContentTypeParser('text/plain');
  app.setValidatorCompiler(compileValidator);
  app.setSerializerCompiler(() => (value) => JSON.stringify(value));
  app.setErrorHandler(sendProblem);
  registerNotFound(app);
  app.addHook('onRequest', async (request, reply) => {
    reply.headers(commonHeaders(request.id));
  });
  app.addHook('onResponse', async (request, reply) => {
    const { method, url } = request;
    const line = { method, url, status: reply.statusCode, ms: Math.round(reply.elapsedTime) };
    if (method === 'GET' || method === 'HEAD') request.log.debug(line, 'request');
    else request.log.info(line, 'request');
  });
  for (const schema of namedSchemas) app.addSchema(schema);
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'vmsg',
        version: parts.version,
        description: 'Controls virtio-msg buses, the backends behind them and what is attached where.',
        license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
      },
    },
    refResolver: { buildLocalReference: (json, _base, _fragment, i) => String(json.$id ?? `def-${i}`) },
  });
  for (const kind of kinds) registerResource(app, kind, parts.commands);
  const onSlowClient = () => app.log.warn('dropped an event stream whose client does not read');
  registerEvents(app, new EventStreams({ ...parts, onSlowClient }));
  registerHealth(app, parts.commands);
  return app;
}

const commonHeaders = (requestId: string) => ({ 'x-request-id': requestId, 'cache-control': 'no-store' });

function sendProblem(error: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const problem = problemOf(error, request.id);
  if (problem.code === 'internal') request.log.error({ err: error }, 'request failed');
  // A path that cannot be decoded comes here without any hook.
  reply.headers(commonHeaders(request.id));
  void reply.code(problem.status).type(problemType).send(JSON.stringify(problem));
}

/** What cannot be read as HTTP has no request and no reply. */
function answerBrokenRequest(error: Error & { code?: string }, socket: Socket, requestId: string): void {
  if (error.code !== 'ECONNRESET' && socket.writable) {
    const detail =
      error.code === 'ERR_HTTP_REQUEST_TIMEOUT' ? 'the request did not arrive in time' : 'this is not HTTP/1.1';
    const tooLong = error.code === 'HPE_HEADER_OVERFLOW';
    const cause = new VmsgError('invalid-request', tooLong ? 'the request line and headers are too long' : detail);
    const problem = problemOf(cause, requestId);
    const body = JSON.stringify(problem);
    const head = [
      `HTTP/1.1 ${problem.status} ${STATUS_CODES[problem.status]}`,
      `Content-Type: ${problemType}`,
      `Content-Length: ${Buffer.byteLength(body)}`,
      'Connection: close',
    ];
    socket.write(`${head.join('\r\n')}\r\n\r\n${body}`);
  }
  socket.destroySoon();
}
