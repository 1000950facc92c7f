import fs from 'node:fs';
import http from 'node:http';
import os from 'node:os';
import path from 'node:path';
import type { FastifyInstance } from 'fastify';
import type { TokenAccess } from '../../api/access.ts';
import { ApiState, buildServer, type ServerParts } from '../../api/server.ts';
import { openApiDocument } from '../../src/app/package-files.ts';
import { type ConfiguredObjects, Service } from '../../src/bridge/service.ts';
import { Store } from '../../src/bridge/store.ts';
import type { StoreFiles } from '../../src/bridge/store-files.ts';
import type { Clock, Timer } from '../../src/kit/clock.ts';
import { FakeDomains } from '../support/fake-domains.ts';
import { FakeLane } from './fake-lane.ts';

/** Time that only a test moves. */
class FakeClock implements Clock {
  readonly #timers = new Set<{ readonly at: number; readonly callback: () => void }>();
  #now = 0;

  nowMs(): number {
    return this.#now;
  }

  get pending(): number {
    return this.#timers.size;
  }

  after(delayMs: number, callback: () => void): Timer {
    const timer = { at: this.#now + delayMs, callback };
    this.#timers.add(timer);
    return { cancel: () => void this.#timers.delete(timer) };
  }

  /** Fires what is due, earliest first, then lets promises settle. */
  async advance(ms: number): Promise<void> {
    const end = this.#now + ms;
    for (;;) {
      const [next] = [...this.#timers].filter(({ at }) => at <= end).sort((a, b) => a.at - b.at);
      if (next === undefined) break;
      this.#timers.delete(next);
      this.#now = next.at;
      next.callback();
      await settle();
    }
    this.#now = end;
    await settle();
  }
}

/** Lets everything that waits for nothing but the event loop go on. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 10; i += 1) await new Promise((resolve) => setImmediate(resolve));
}

/** The end of a test, or of a group of tests. */
export interface Cleanup {
  after(release: () => unknown): void;
}

const nothingConfigured: ConfiguredObjects = { domains: {}, buses: {}, backends: {}, attachments: {} };

export interface World {
  readonly lane: FakeLane;
  readonly xen: FakeDomains;
  readonly clock: FakeClock;
  readonly service: Service;
  readonly directory: string;
  readonly warnings: { readonly data: object; readonly message: string }[];
}

export interface WorldOptions {
  readonly directory?: string;
  readonly configured?: Partial<ConfiguredObjects>;
  readonly lane?: FakeLane;
  readonly xen?: FakeDomains;
  readonly files?: StoreFiles;
  readonly busDir?: string;
}

export function temporaryDirectory(t: Cleanup): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'vmsg-test-'));
  t.after(() => fs.rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** A service on a fake lane, not started. */
export function makeWorld(t: Cleanup, options: WorldOptions = {}): World {
  const directory = options.directory ?? temporaryDirectory(t);
  const lane = options.lane ?? new FakeLane();
  const xen = options.xen ?? new FakeDomains();
  const clock = new FakeClock();
  const warnings: { data: object; message: string }[] = [];
  const service = new Service({
    lane,
    store: Store.open(directory, options.files),
    clock,
    wallMs: () => Date.UTC(2026, 0, 2),
    log: { info: () => {}, warn: (data, message) => void warnings.push({ data, message }) },
    configured: { ...nothingConfigured, ...options.configured },
    busDir: options.busDir ?? '/run/bus',
    recoveryDir: '/run/recovery',
    uid: 1000,
    xen,
    destroyDomain: (domid) => xen.destroy(domid),
  });
  return { lane, xen, clock, service, directory, warnings };
}

export async function startWorld(t: Cleanup, options: WorldOptions = {}): Promise<World> {
  const world = makeWorld(t, options);
  await world.service.start();
  return world;
}

export const partsOf = ({ service, clock }: World): ServerParts => ({
  commands: service,
  events: service,
  clock,
  version: '1.2.3',
  openApi: openApiDocument,
  instance: 'run1',
  processNumbers: () => ({ uptimeSeconds: 3, residentBytes: 4096, openFds: 5 }),
});

export async function makeServer(
  t: Cleanup,
  world: World,
  state = new ApiState(partsOf(world)),
  access?: TokenAccess,
): Promise<FastifyInstance> {
  const app = await buildServer(partsOf(world), state, access);
  t.after(() => app.close());
  return app;
}

export interface Answer {
  readonly status: number;
  readonly headers: http.IncomingHttpHeaders;
  readonly body: string;
}

/** One HTTP request over a Unix socket. */
export function request(
  socketPath: string,
  method: string,
  url: string,
  body?: unknown,
  headers: http.OutgoingHttpHeaders = {},
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const type = body === undefined ? {} : { 'content-type': 'application/json' };
    const call = http.request(
      { socketPath, method, path: url, agent: false, headers: { ...type, ...headers } },
      (response) => {
        const chunks: Buffer[] = [];
        response.on('data', (chunk: Buffer) => chunks.push(chunk));
        response.on('end', () => {
          const text = Buffer.concat(chunks).toString();
          resolve({ status: response.statusCode ?? 0, headers: response.headers, body: text });
        });
      },
    );
    call.on('error', reject);
    call.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

export const blk = { type: 'blk', path: '/srv/disk.img' } as const;
export const loopback = { domain: 'vm1', transport: 'loopback', role: 'driver' } as const;
