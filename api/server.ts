import type { Socket } from 'node:net';
import Fastify, {
  type FastifyBaseLogger,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  type FastifyServerOptions,
  LogController,
} from 'fastify';
import { type Commands, kinds } from '../src/bridge/commands.ts';
import type { EventSource } from '../src/bridge/events.ts';
import type { Clock, Timer } from '../src/kit/clock.ts';
import { VmsgError } from '../src/kit/errors.ts';
import { limits } from '../src/kit/limits.ts';
import { http } from '../src/kit/node-http.ts';
import type { TokenAccess } from './access.ts';
import type { ProcessNumbers } from './families.ts';
import { registerNotFound } from './methods.ts';
import { problemOf, problemType } from './problem.ts';
import { RequestCounts } from './request-counts.ts';
import { registerEvents } from './routes/events.ts';
import { registerHealth } from './routes/health.ts';
import { registerMetrics } from './routes/metrics.ts';
import { registerObservations } from './routes/observations.ts';
import { registerResource } from './routes/resources.ts';
import { namedSchemas } from './schemas.ts';
import { EventStreams } from './sse.ts';
import { compileValidator } from './validation.ts';

export interface ServerParts {
  readonly commands: Commands;
  readonly events: EventSource;
  readonly clock: Clock;
  /** Version of the package. */
  readonly version: string;
  /** The OpenAPI document, JSON. */
  readonly openApi: () => Promise<string>;
  /** Text unique to this run of the service; part of request and event ids. */
  readonly instance: string;
  readonly processNumbers: () => ProcessNumbers;
  /** Without it nothing is logged. */
  readonly logger?: FastifyBaseLogger;
}

/** What the servers of one service have in common, whatever they listen on. */
export class ApiState {
  readonly requests = new RequestCounts();
  readonly streams: EventStreams;
  readonly #instance: string;
  #lastRequest = 0;

  constructor(parts: ServerParts) {
    this.#instance = parts.instance;
    const onSlowClient = () => parts.logger?.warn('dropped an event stream whose client does not read');
    this.streams = new EventStreams({ ...parts, onSlowClient });
  }

  nextRequestId(): string {
    this.#lastRequest += 1;
    return `${this.#instance}-${this.#lastRequest}`;
  }
}

type SchemaController = NonNullable<FastifyServerOptions['schemaController']>;

/** Instead of Fastify's own, which are large and then not even loaded. */
export const compilersFactory = {
  buildValidator: () => compileValidator,
  buildSerializer: () => () => (value: unknown) => JSON.stringify(value),
} as object as NonNullable<SchemaController['compilersFactory']>;

/**
 * An HTTP server with all routes, not yet listening.
 * @param access what every request must pass; without it the permissions of the socket decide
 */
export async function buildServer(parts: ServerParts, state: ApiState, access?: TokenAccess): Promise<FastifyInstance> {
  const nextId = () => state.nextRequestId();
  const app = Fastify({
    ...(parts.logger === undefined ? {} : { loggerInstance: parts.logger }),
    logController: new LogController({ disableRequestLogging: true }),
    genReqId: nextId,
    bodyLimit: limits.apiBodyMaxBytes,
    requestTimeout: limits.apiRequestTimeoutMs,
    // Longer than any id: a long one is a wrong id, not an unknown path.
    routerOptions: { maxParamLength: 16 * 1024 },
    schemaController: { compilersFactory },
    // These come before any hook.
    frameworkErrors: (error, request, reply) => {
      sendProblem(access?.refusal(request.headers) ?? error, request, reply);
      state.requests.add(request.method, undefined, reply.statusCode);
    },
    clientErrorHandler: (error, socket) => {
      if (answerBrokenRequest(error, socket, nextId())) state.requests.add('', undefined, 400);
    },
  });
  app.server.maxConnections = limits.apiConnectionsMax;
  app.removeContentTypeParser('text/plain');
  app.setErrorHandler(sendProblem);
  registerNotFound(app);
  app.addHook('onRequest', async (request, reply) => {
    reply.headers(commonHeaders(request.id));
    const refusal = access?.refusal(request.headers);
    if (refusal !== undefined) throw refusal;
  });
  app.addHook('onResponse', async (request, reply) => {
    const { method, url } = request;
    state.requests.add(method, request.routeOptions.url, reply.statusCode);
    const line = { method, url, status: reply.statusCode, ms: Math.round(reply.elapsedTime) };
    if (method === 'GET' || method === 'HEAD') request.log.debug(line, 'request');
    else request.log.info(line, 'request');
  });
  registerRoutes(app, parts, state);
  boundClose(app, parts.clock);
  return app;
}

/** All that an API of ours has, with the schemas that its routes name. */
export function registerRoutes(app: FastifyInstance, parts: ServerParts, state: ApiState): void {
  for (const schema of namedSchemas) app.addSchema(schema);
  for (const kind of kinds) registerResource(app, kind, parts.commands);
  registerObservations(app, parts.commands);
  registerEvents(app, state.streams);
  registerHealth(app, parts);
  registerMetrics(app, { ...parts, ...state });
}

/** A client that does not finish its request must not keep the service from ending. */
function boundClose(app: FastifyInstance, clock: Clock): void {
  let timer: Timer | undefined;
  app.addHook('preClose', async () => {
    timer = clock.after(limits.apiCloseTimeoutMs, () => app.server.closeAllConnections());
  });
  app.addHook('onClose', async () => timer?.cancel());
}

const commonHeaders = (requestId: string) => ({ 'x-request-id': requestId, 'cache-control': 'no-store' });

function sendProblem(error: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const problem = problemOf(error, request.id);
  if (problem.code === 'internal') request.log.error({ err: error }, 'request failed');
  // A path that cannot be decoded comes here without any hook.
  reply.headers(commonHeaders(request.id));
  if (problem.code === 'unauthorized') reply.header('www-authenticate', 'Bearer realm="vmsg"');
  void reply.code(problem.status).type(problemType).send(JSON.stringify(problem));
}

/** What cannot be read as HTTP has no request and no reply. @returns whether somebody is there to get an answer */
function answerBrokenRequest(error: Error & { code?: string }, socket: Socket, requestId: string): boolean {
  const isAnswered = error.code !== 'ECONNRESET' && socket.writable;
  if (isAnswered) {
    const detail =
      error.code === 'ERR_HTTP_REQUEST_TIMEOUT' ? 'the request did not arrive in time' : 'this is not HTTP/1.1';
    const tooLong = error.code === 'HPE_HEADER_OVERFLOW';
    const cause = new VmsgError('invalid-request', tooLong ? 'the request line and headers are too long' : detail);
    const problem = problemOf(cause, requestId);
    const body = JSON.stringify(problem);
    const head = [
      `HTTP/1.1 ${problem.status} ${http.STATUS_CODES[problem.status]}`,
      `Content-Type: ${problemType}`,
      `Content-Length: ${Buffer.byteLength(body)}`,
      'Connection: close',
    ];
    socket.write(`${head.join('\r\n')}\r\n\r\n${body}`);
  }
  socket.destroySoon();
  return isAnswered;
}
