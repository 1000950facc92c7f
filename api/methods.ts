import type { FastifyInstance } from 'fastify';
import { VmsgError } from '../src/kit/errors.ts';

/** Answers what no route takes: 405 with `Allow` where the path exists, 204 to OPTIONS, else 404. */
export function registerNotFound(app: FastifyInstance): void {
  const routes: { readonly pattern: RegExp; readonly methods: Set<string> }[] = [];
  app.addHook('onRoute', ({ url, method }) => {
    const source = `^${url.replaceAll('.', '\\.').replace(/:[a-z]+/g, '[^/]+')}$`;
    const known = routes.find(({ pattern }) => pattern.source === new RegExp(source).source);
    const methods = known?.methods ?? new Set(['OPTIONS']);
    for (const name of [method].flat()) methods.add(name);
    if (known === undefined) routes.push({ pattern: new RegExp(source), methods });
  });
  app.setNotFoundHandler((request, reply) => {
    const path = request.url.replace(/[?#].*$/s, '');
    const route = routes.find(({ pattern }) => pattern.test(path));
    if (route === undefined) throw new VmsgError('not-found', `there is nothing at ${path}`);
    reply.header('allow', [...route.methods].sort().join(', '));
    if (request.method === 'OPTIONS') return reply.code(204).send();
    throw new VmsgError('method-not-allowed', `${path} does not take ${request.method}`);
  });
}
