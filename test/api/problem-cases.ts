import assert from 'node:assert/strict';
import type { FastifyInstance, InjectOptions } from 'fastify';
import { type ErrorCode, errorRegistry, VmsgError } from '../../src/kit/errors.ts';
import { blk, type Cleanup, loopback, makeServer, startWorld } from './support.ts';

export interface Case {
  readonly name: string;
  readonly call: InjectOptions;
  readonly code: ErrorCode;
  readonly detail: RegExp;
  readonly pointer?: string;
  readonly parameter?: string;
}

const json = { 'content-type': 'application/json' };
export const put = (url: string, payload: unknown, headers: Record<string, string> = {}): InjectOptions => ({
  method: 'PUT',
  url: `/v1/${url}`,
  payload: typeof payload === 'string' ? payload : JSON.stringify(payload),
  headers: { ...json, ...headers },
});
export const get = (url: string): InjectOptions => ({ method: 'GET', url });
export const del = (url: string, headers: Record<string, string> = {}): InjectOptions => ({
  method: 'DELETE',
  url: `/v1/${url}`,
  headers,
});

type Where = Pick<Case, 'pointer' | 'parameter'>;

export const wrong = (name: string, call: InjectOptions, code: ErrorCode, detail: RegExp, where: Where = {}): Case => ({
  name,
  call,
  code,
  detail,
  ...where,
});

export const badBody = (name: string, call: InjectOptions, pointer: string, detail: RegExp): Case =>
  wrong(name, call, 'invalid-request', detail, { pointer });

export const badParameter = (name: string, call: InjectOptions, parameter: string, detail: RegExp): Case =>
  wrong(name, call, 'invalid-request', detail, { parameter });

/** What every test of problems starts from: config objects, and api objects that use each other. */
export async function populated(t: Cleanup): Promise<FastifyInstance> {
  const configured = { domains: { conf: {} }, backends: { ro: { ...blk, readOnly: true } } };
  const world = await startWorld(t, { configured });
  const { service, lane } = world;
  await service.put('domains', 'vm1', {});
  await service.put('buses', 'b', loopback);
  await service.put('buses', 'b2', loopback);
  await service.put('backends', 'disk', blk);
  await service.put('backends', 'gone', blk);
  await service.put('backends', 'rng', { type: 'rng' });
  await service.put('attachments', 'a', { bus: 'b', backend: 'disk', deviceNumber: 7 });
  lane.refusals.set('attach missing', new VmsgError('backend-unusable', '/srv/disk.img: ENOENT'));
  lane.refusals.set('openBus busy', new VmsgError('system-call', 'bind: EADDRINUSE'));
  lane.refusals.set('openBus thrown', new VmsgError('internal', 'secret detail at /home/me/file.js:12'));
  lane.refusals.set('openBus bug', new Error('secret detail at /home/me/file.js:12') as VmsgError);
  return makeServer(t, world);
}

/** Checks the full shape of an error answer. */
export function assertProblem(
  response: { statusCode: number; headers: object; body: string },
  wanted: Omit<Case, 'name' | 'call'>,
): void {
  const body = JSON.parse(response.body) as Record<string, unknown>;
  const { title, status } = errorRegistry[wanted.code];
  assert.equal(body.code, wanted.code, response.body);
  assert.match(String(body.detail), wanted.detail);
  const headers = response.headers as Record<string, string>;
  assert.equal(headers['www-authenticate'], status === 401 ? 'Bearer realm="vmsg"' : undefined);
  assert.deepEqual(body, {
    type: `urn:vmsg:error:${wanted.code}`,
    title,
    status,
    detail: body.detail,
    instance: `urn:vmsg:request:${headers['x-request-id']}`,
    code: wanted.code,
    ...(wanted.pointer === undefined ? {} : { pointer: wanted.pointer }),
    ...(wanted.parameter === undefined ? {} : { parameter: wanted.parameter }),
  });
  assert.equal(response.statusCode, status);
  assert.match(headers['content-type'] ?? '', /^application\/problem\+json/);
  assert.match(headers['x-request-id'] ?? '', /^run1-\d+$/);
  assert.doesNotMatch(response.body, /\.js|\.ts|node_modules/);
}
