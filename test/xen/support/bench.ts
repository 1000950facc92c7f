import assert from 'node:assert/strict';
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Resource } from '../../../src/bridge/commands.ts';
import { ServiceHome, type ServiceProcess } from '../../support/service-process.ts';
import { createDomain, type Domain } from './domains.ts';
import { eventually, lookPauseMs } from './eventually.ts';

/** One Xen domain: its object and its bus have the same name. */
export interface DomainPlan {
  /** `driver` by default. */
  readonly role?: 'driver' | 'device';
  readonly bus?: object;
  /** `loopback`: for guests that are processes of dom0; nothing is created then. */
  readonly transport?: 'xen' | 'loopback';
}

/** A service in dom0, in a directory of its own in memory, and domUs. Everything ends with `close`. */
export class XenBench {
  readonly home: ServiceHome;
  service!: ServiceProcess;
  readonly #domains = new Map<string, Domain>();

  /**
   * @param plans by name of the domain; domains are made by `create`
   * @param extra more members of the config file
   */
  constructor(plans: Readonly<Record<string, DomainPlan>>, extra: object = {}) {
    const entries = Object.entries(plans);
    const domainOf = (name: string, { transport = 'xen' }: DomainPlan) =>
      transport === 'xen' ? { xen: { name } } : {};
    const objects = {
      domains: Object.fromEntries(entries.map(([name, plan]) => [name, domainOf(name, plan)])),
      buses: Object.fromEntries(
        entries.map(([name, { role = 'driver', bus = {}, transport = 'xen' }]) => [
          name,
          { domain: name, transport, role, ...bus },
        ]),
      ),
      backends: {},
      attachments: {},
    };
    this.home = new ServiceHome(objects, extra);
  }

  async start(): Promise<void> {
    this.service = await this.home.start(lookPauseMs);
  }

  /** Starts domUs at the same time. */
  async create(...names: string[]): Promise<Domain[]> {
    const made = await Promise.all(names.map((name) => createDomain(name)));
    for (const domain of made) this.#domains.set(domain.name, domain);
    return made;
  }

  /** One that `create` made. */
  domain(name: string): Domain {
    const found = this.#domains.get(name);
    assert.ok(found !== undefined, `no domain ${name}`);
    return found;
  }

  /** Ends one at once. */
  async destroy(name: string): Promise<void> {
    const domain = this.domain(name);
    this.#domains.delete(name);
    await domain.destroy();
  }

  /** An empty disk image. @returns its path */
  image(name: string, bytes: number): string {
    const path = join(this.home.directory, name);
    writeFileSync(path, '');
    truncateSync(path, bytes);
    return path;
  }

  async put(kind: 'backends' | 'attachments', id: string, spec: object): Promise<void> {
    await this.service.api.call('PUT', `/v1/${kind}/${id}`, spec);
  }

  /** @param more its id, and members of the attachment. @returns when it is in use */
  async attach(
    bus: string,
    backend: string,
    { id = `${bus}-${backend}`, ...more }: { readonly id?: string; readonly deviceNumber?: number } = {},
  ): Promise<Resource<'attachments'>> {
    await this.put('attachments', id, { bus, backend, ...more });
    return await eventually(async () => {
      const found = await this.service.attachment(id);
      return found.status.state === 'active' ? found : undefined;
    }, `attachment ${id} is active`);
  }

  async detach(id: string): Promise<void> {
    await this.service.api.call('DELETE', `/v1/attachments/${id}`);
  }

  async close(): Promise<void> {
    await Promise.all([...this.#domains.keys()].map((name) => this.destroy(name)));
    if (this.service?.alive) await this.service.kill();
    this.home.remove();
  }
}
