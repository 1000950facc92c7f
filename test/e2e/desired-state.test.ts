import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { CliError, exitCode } from '../../src/app/cli/exit-codes.ts';
import type { Kind, Resource } from '../../src/bridge/commands.ts';
import { BlkDriver, connect, RngDriver } from '../../src/guest/index.ts';
import { SeededRandom } from '../support/random.ts';
import { ServiceHome, type ServiceProcess } from '../support/service-process.ts';

const kills = 12;
const clients = ['a', 'b', 'c'] as const;

const home = new ServiceHome({ domains: {}, buses: {}, backends: {}, attachments: {} });
let service: ServiceProcess;
before(async () => {
  service = await home.start();
});
after(async () => {
  await service.kill();
  home.remove();
});

type Expected = Pick<Resource, 'spec' | 'revision'> & { readonly deviceNumber: number | null };
const numberOf = ({ status }: Resource): number | null =>
  (status as { readonly deviceNumber?: number | null }).deviceNumber ?? null;
const expectedOf = (resource: Resource): Expected => ({
  spec: resource.spec,
  revision: resource.revision,
  deviceNumber: numberOf(resource),
});

/**
 * One client of the API with objects of its own. It knows what was acknowledged, and of the one call that a kill
 * interrupted that it may or may not have happened.
 */
class Client {
  readonly acknowledged = new Map<string, Expected>();
  calls = 0;
  inDoubt: { readonly path: string; readonly spec: object | null } | null = null;
  readonly #name: string;
  readonly #random: SeededRandom;
  readonly #image: string;

  constructor(name: string, seed: number) {
    this.#name = name;
    this.#random = new SeededRandom(seed);
    this.#image = join(home.directory, `${name}.img`);
    writeFileSync(this.#image, Buffer.alloc(64 * 1024, seed));
  }

  get bus(): string {
    return `${this.#name}-bus`;
  }

  /** What everything else refers to; it stays. */
  async begin(): Promise<void> {
    await this.#put(`domains/${this.#name}-vm`, {});
    await this.#put(`buses/${this.bus}`, { domain: `${this.#name}-vm`, transport: 'loopback', role: 'driver' });
    await this.#put(`backends/${this.#name}-disk`, { type: 'blk', path: this.#image });
    await this.#put(`backends/${this.#name}-rng`, { type: 'rng' });
    await this.#put(`attachments/${this.#name}-0`, { bus: this.bus, backend: `${this.#name}-disk` });
  }

  /** Until the service is gone. */
  async run(): Promise<void> {
    try {
      for (;;) await this.#step();
    } catch (error) {
      if (!(error instanceof CliError) || error.exitCode !== exitCode.unavailable) throw error;
    }
  }

  async #step(): Promise<void> {
    const path = this.#choose();
    const known = this.acknowledged.get(path);
    if (path.startsWith('domains/')) {
      await this.#put(path, { description: `${this.#random.below(1000)}` });
    } else if (known === undefined) {
      const number = this.#random.below(2) === 0 ? {} : { deviceNumber: 1000 + Number(path.split('-')[1]) };
      await this.#put(path, { bus: this.bus, backend: `${this.#name}-rng`, ...number });
    } else {
      await this.#delete(path);
    }
  }

  #choose(): string {
    if (this.#random.below(4) === 0) return `domains/${this.#name}-vm`;
    return `attachments/${this.#name}-${1 + this.#random.below(6)}`;
  }

  async #put(path: string, spec: object): Promise<void> {
    this.inDoubt = { path, spec };
    const { body } = await service.api.call('PUT', `/v1/${path}`, spec);
    this.#done(path, expectedOf(body as Resource));
  }

  async #delete(path: string): Promise<void> {
    this.inDoubt = { path, spec: null };
    await service.api.call('DELETE', `/v1/${path}`);
    this.#done(path, undefined);
  }

  #done(path: string, state: Expected | undefined): void {
    if (state === undefined) this.acknowledged.delete(path);
    else this.acknowledged.set(path, state);
    this.inDoubt = null;
    this.calls += 1;
  }

  /** Compares with what the service has, and takes over what became of the call in doubt. */
  check(found: ReadonlyMap<string, Resource>): void {
    const doubt = this.inDoubt;
    this.inDoubt = null;
    if (doubt !== null) {
      const now = found.get(doubt.path);
      const happened = doubt.spec === null ? now === undefined : isDeepStrictEqual(now?.spec, doubt.spec);
      const known = this.acknowledged.get(doubt.path);
      if (now === undefined) {
        if (happened) this.acknowledged.delete(doubt.path);
      } else if (happened) {
        this.acknowledged.set(doubt.path, expectedOf(now));
      } else if (doubt.spec === null && known !== undefined) {
        // Half deleted: its device was taken from the guest, and came back like one that is plugged in.
        this.acknowledged.set(doubt.path, { ...known, deviceNumber: numberOf(now) });
      }
    }
    const own = [...found].filter(([path]) => path.split('/')[1]?.startsWith(`${this.#name}-`));
    assert.deepEqual(
      Object.fromEntries(own.map(([path, resource]) => [path, expectedOf(resource)])),
      Object.fromEntries(this.acknowledged),
    );
    for (const [path, { status }] of own) {
      if (path.startsWith('attachments/')) assert.equal((status as { state: string }).state, 'active', path);
    }
  }

  /** A guest finds exactly the devices that were acknowledged, and uses them. */
  async use(): Promise<void> {
    const attachments = [...this.acknowledged].filter(([path]) => path.startsWith('attachments/'));
    const wanted = new Map(attachments.map(([path, { deviceNumber }]) => [deviceNumber, path]));
    const guest = await connect({ path: home.busPath(this.bus) });
    try {
      const numbers = await guest.devices();
      const ascending = (a: number | null, b: number | null) => (a ?? -1) - (b ?? -1);
      assert.deepEqual([...numbers].sort(ascending), [...wanted.keys()].sort(ascending));
      for (const number of numbers) {
        if (wanted.get(number) === `attachments/${this.#name}-0`) {
          const blk = await BlkDriver.open(guest, number);
          assert.equal((await blk.read(0, 4096)).length, 4096);
        } else {
          const rng = await RngDriver.open(guest, number);
          assert.equal((await rng.read(64)).length, 64);
        }
      }
    } finally {
      guest.close();
    }
  }
}

async function everything(): Promise<Map<string, Resource>> {
  const kinds: readonly Kind[] = ['domains', 'buses', 'backends', 'attachments'];
  const lists = await Promise.all(kinds.map((kind) => service.api.listAll<Resource>(kind)));
  return new Map(lists.flat().map((resource) => [`${resource.kind}/${resource.id}`, resource]));
}

test(`the service is killed ${kills} times between and during changes; what it acknowledged is there`, async (t) => {
  const random = new SeededRandom(7);
  const all = clients.map((name, i) => new Client(name, i + 1));
  for (const client of all) await client.begin();
  const changes = () => all.reduce((sum, { calls }) => sum + calls, 0);
  let doubts = 0;
  for (let n = 0; n < kills; n += 1) {
    const running = Promise.allSettled(all.map((client) => client.run()));
    const wanted = changes() + 2 + random.below(30);
    while (changes() < wanted) await sleep(1);
    await sleep(random.below(5));
    await service.kill();
    for (const outcome of await running) if (outcome.status === 'rejected') throw outcome.reason;
    doubts += all.filter(({ inDoubt }) => inDoubt !== null).length;
    service = await home.start();
    const found = await everything();
    for (const client of all) client.check(found);
    await all[n % all.length]!.use();
  }
  t.diagnostic(`${changes()} changes acknowledged, ${doubts} interrupted`);
  assert.ok(doubts > 0, 'kills came during changes');
});

test('a guest that stays keeps its devices over a kill, with their numbers', async () => {
  const put = (path: string, spec: object) => service.api.call('PUT', `/v1/${path}`, spec);
  await put('domains/stay', {});
  await put('buses/stay', { domain: 'stay', transport: 'loopback', role: 'driver' });
  await put('backends/stay', { type: 'rng' });
  for (const id of ['x', 'y', 'z']) await put(`attachments/stay-${id}`, { bus: 'stay', backend: 'stay' });
  // A hole, so that the numbers are not what a fresh start would give.
  await service.api.call('DELETE', '/v1/attachments/stay-x');
  const guest = await connect({ path: home.busPath('stay'), reconnect: { totalMs: 60_000 } });
  const numbers = await guest.devices();
  assert.deepEqual([...numbers].sort(), [1, 2]);
  const rng = await RngDriver.open(guest, 2);
  const resumed = new Promise<boolean>((resolve) => guest.on('reconnected', (event) => resolve(event.resumed)));
  await service.kill();
  service = await home.start();
  assert.equal(await resumed, true);
  assert.equal((await rng.read(64)).length, 64);
  assert.deepEqual([...(await guest.devices())].sort(), [1, 2]);
  guest.close();
});
