import assert from 'node:assert/strict';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { laneOptions } from '../../src/app/lane-options.ts';
import { XenDomains } from '../../src/app/xen-domains.ts';
import type { Kinds } from '../../src/bridge/commands.ts';
import type { ServiceEvent } from '../../src/bridge/events.ts';
import { InlineLane } from '../../src/bridge/lane/inline.ts';
import { Service } from '../../src/bridge/service.ts';
import { Store } from '../../src/bridge/store.ts';
import { BlkDriver, connectXen, type GuestBus, RngDriver } from '../../src/guest/index.ts';
import { systemClock } from '../../src/kit/clock.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { asDomid, type Domid } from '../../src/ports/hypervisor.ts';
import { type FakeHypervisor, FakeXen } from '../support/fake-xen.ts';
import { until } from '../support/guest-fixture.ts';
import { eventually } from '../support/service-process.ts';

const zero = asDomid(0)!;
const kib = 1024;
const nothing = { mappings: 0, shares: 0, channels: 0, watches: 0 };

/** A machine with Xen in memory, and the service as it is composed, with its lane in this thread. */
class ServiceOnXen {
  readonly xen = new FakeXen();
  readonly directory = mkdtempSync(path.join(tmpdir(), 'vmsg-test-'));
  readonly image = path.join(this.directory, 'disk.img');
  readonly content = Uint8Array.from({ length: 256 * kib }, (_, i) => (i * 7 + (i >> 9)) & 0xff);
  readonly events: ServiceEvent[] = [];
  readonly #killed: Service[] = [];
  #process: FakeHypervisor | undefined;
  #service: Service | undefined;

  constructor() {
    writeFileSync(this.image, this.content);
    for (const name of [path.join(this.directory, 'bus'), this.recoveryDir]) mkdirSync(name);
  }

  get recoveryDir(): string {
    return path.join(this.directory, `recovery${this.#killed.length}`);
  }

  get service(): Service {
    assert.ok(this.#service !== undefined, 'the service runs');
    return this.#service;
  }

  async start(): Promise<void> {
    const process = this.xen.hypervisorFor(zero);
    const service = new Service({
      lane: new InlineLane((emit) => laneOptions(new LoopPoller(), emit, { hypervisor: process })),
      store: Store.open(path.join(this.directory, 'state')),
      clock: systemClock,
      wallMs: () => 0,
      log: { info: () => {}, warn: () => {} },
      configured: { domains: {}, buses: {}, backends: {}, attachments: {} },
      busDir: path.join(this.directory, 'bus'),
      recoveryDir: this.recoveryDir,
      uid: 0,
      xen: new XenDomains(process),
      destroyDomain: async (domid) => this.xen.destroy(asDomid(domid)!),
    });
    service.subscribe((event) => this.events.push(event));
    this.#process = process;
    this.#service = service;
    await service.start();
  }

  /** SIGKILL: what JavaScript objects it had reach nothing any more, not even the recovery files of the next one. */
  kill(): void {
    this.#process?.kill();
    const files = this.recoveryDir;
    this.#killed.push(this.service);
    cpSync(files, this.recoveryDir, { recursive: true });
    this.#service = undefined;
  }

  async close(): Promise<void> {
    await this.service.stop();
    assert.deepEqual(this.xen.census(zero), nothing, 'nothing of the service is left');
    for (const service of this.#killed) await service.stop();
    this.xen.close();
    rmSync(this.directory, { recursive: true });
  }

  /** One domain object, its bus, a disk and entropy. */
  async define(): Promise<void> {
    await this.service.put('domains', 'vm1', { xen: { name: 'vm1' } });
    await this.service.put('buses', 'b', { domain: 'vm1', transport: 'xen', role: 'driver' });
    await this.service.put('backends', 'disk', { type: 'blk', path: this.image, readOnly: true });
    await this.service.put('backends', 'rng', { type: 'rng' });
    await this.service.put('attachments', 'a', { bus: 'b', backend: 'disk', deviceNumber: 1 });
    await this.service.put('attachments', 'r', { bus: 'b', backend: 'rng', deviceNumber: 2 });
  }

  has(node: string): boolean {
    return this.xen.stored.tree.generationOf(node) !== -1;
  }

  node(node: string): string | undefined {
    return this.has(node) ? this.xen.stored.tree.read(0, node) : undefined;
  }

  async bus(): Promise<Kinds['buses']['status']> {
    return (await this.service.get('buses', 'b')).status;
  }

  async connect(domid: Domid, reconnect = false): Promise<GuestBus> {
    return await connectXen({ hypervisor: this.xen.hypervisorFor(domid), memoryBytes: 4096 * kib, reconnect });
  }

  async readDisk(guest: GuestBus): Promise<void> {
    const blk = await BlkDriver.open(guest, 1);
    assert.deepEqual(await blk.read(0, this.content.length), this.content);
    await blk.close();
  }
}

async function withService(run: (world: ServiceOnXen) => Promise<void>): Promise<void> {
  const world = new ServiceOnXen();
  await world.start();
  await run(world);
  await world.close();
}

const frontendState = (domid: number): string => `/local/domain/${domid}/device/vmsg/0/state`;
const backendOf = (domid: number): string => `/local/domain/0/backend/vmsg/${domid}/0`;

test('a domain finds its bus with all devices from its first moment', () =>
  withService(async (world) => {
    await world.define();
    assert.equal((await world.bus()).reason, 'domain vm1 is not running');
    const domid = world.xen.createDomain('vm1');
    world.xen.pause(domid);
    await until(() => world.node(`${backendOf(domid)}/state`) === '2', 'the bus is offered while the domain is paused');
    assert.equal(world.node(frontendState(domid)), '1');
    const happened = world.events.map(({ type, object }) => `${type} ${object}`);
    assert.deepEqual(happened.slice(-4).sort(), [
      'attachment-state a',
      'attachment-state r',
      'bus-state b',
      'domain-appeared vm1',
    ]);
    world.xen.unpause(domid);
    const guest = await world.connect(domid);
    assert.deepEqual(await guest.devices(), [1, 2]);
    await world.readDisk(guest);
    const { state, peer, address, grants } = await world.bus();
    assert.deepEqual([state, peer, address], ['connected', { domid }, `xen:${domid}/device/vmsg/0`]);
    assert.equal(grants?.faults, 0);
    guest.close();
    await until(() => world.xen.census(domid).shares === 0, 'the guest has its pages back');
  }));

test('a domain that is destroyed leaves nothing, and one of its name gets the bus', () =>
  withService(async (world) => {
    await world.define();
    const first = world.xen.createDomain('vm1');
    await world.connect(first);
    await eventually(async () => (await world.bus()).state === 'connected' || undefined, 'connected');
    world.xen.destroy(first);
    await eventually(async () => (await world.bus()).reason !== null || undefined, 'the bus waits again');
    assert.ok(!world.has(backendOf(first)));
    assert.equal(world.xen.census(zero).mappings, 0);
    const { state, reason } = (await world.service.get('attachments', 'a')).status;
    assert.deepEqual([state, reason], ['pending', 'bus "b" is not open: domain vm1 is not running']);
    const second = world.xen.createDomain('vm1');
    await eventually(
      async () => (await world.bus()).address === `xen:${second}/device/vmsg/0` || undefined,
      'the new domain has it',
    );
    const guest = await world.connect(second);
    await world.readDisk(guest);
    guest.close();
  }));

test('the name decides, also when it moves to another domain', () =>
  withService(async (world) => {
    await world.define();
    const [one, other] = [world.xen.createDomain('vm1'), world.xen.createDomain('other')];
    await eventually(
      async () => (await world.bus()).address.startsWith(`xen:${one}/`) || undefined,
      'the first has it',
    );
    const dom0 = world.xen.hypervisorFor(zero);
    const store = dom0.openXenstore();
    store.write(`/local/domain/${one}/name`, 'old');
    store.write(`/local/domain/${other}/name`, 'vm1');
    store.close();
    await until(() => world.node(`${backendOf(other)}/state`) === '2', 'the other one is offered the bus');
    await until(() => !world.has(backendOf(one)), 'the first is not any more');
    const guest = await world.connect(other);
    await world.readDisk(guest);
    guest.close();
  }));

test('a guest goes on after the service was killed', () =>
  withService(async (world) => {
    await world.define();
    const domid = world.xen.createDomain('vm1');
    const guest = await world.connect(domid, true);
    const resumed: boolean[] = [];
    guest.on('reconnected', (how) => resumed.push(how.resumed));
    const rng = await RngDriver.open(guest, 2);
    assert.equal((await rng.read(64)).length, 64);
    for (let round = 1; round <= 3; round += 1) {
      world.kill();
      await until(() => guest.state === 'reconnecting', 'the guest notices');
      const pending = rng.read(32);
      await world.start();
      assert.equal((await pending).length, 32);
      assert.equal(resumed.length, round);
      assert.ok(resumed.at(-1), 'its devices kept their state');
    }
    await rng.close();
    guest.close();
  }));

test('a domain that restarted while the service was away starts afresh', () =>
  withService(async (world) => {
    await world.define();
    const first = world.xen.createDomain('vm1');
    const before = await world.connect(first);
    const { epoch } = before.terms;
    assert.ok(epoch > 0n);
    world.kill();
    world.xen.destroy(first);
    const second = world.xen.createDomain('vm1');
    assert.ok(world.has(backendOf(first)), 'nobody could remove it');
    await world.start();
    assert.ok(!world.has(backendOf(first)), 'it is swept at the start');
    const kept = readdirSync(path.join(world.recoveryDir, 'b@xen'));
    assert.equal(kept.length, 1);
    assert.ok(kept[0]?.startsWith(`${second}.`));
    const guest = await world.connect(second);
    assert.deepEqual(await guest.devices(), [1, 2]);
    await world.readDisk(guest);
    guest.close();
  }));

test('a bus that is deleted is gone from xenstore and for its guest', () =>
  withService(async (world) => {
    await world.define();
    const domid = world.xen.createDomain('vm1');
    const guest = await world.connect(domid);
    const lost = new Promise((resolve) => guest.on('lost', resolve));
    for (const id of ['a', 'r']) await world.service.delete('attachments', id);
    await world.service.delete('buses', 'b');
    await lost;
    assert.ok(!world.has(backendOf(domid)));
    guest.close();
  }));

test('where a device of Xen is missing the bus fails and says which', async () => {
  const world = new ServiceOnXen();
  await world.start();
  const openGrantMapper = () => {
    throw new Error('/dev/xen/gntdev is not there');
  };
  const process = Object.assign(world.xen.hypervisorFor(zero), { openGrantMapper });
  const { makeBus, close } = laneOptions(new LoopPoller(), () => {}, { hypervisor: process });
  const spec = {
    bus: 'b',
    transport: 'xen',
    role: 'driver',
    domid: world.xen.createDomain('vm1'),
    incarnation: '1.x',
    index: 0,
    poolMaxBytes: 4096,
    maxMessageSizeBytes: 64,
    recoveryDir: path.join(world.recoveryDir, 'b@xen'),
  } as const;
  const wanted = { code: 'unavailable', message: '/dev/xen/gntdev is not there' };
  assert.throws(() => makeBus(spec, () => {}), wanted);
  close?.();
  assert.deepEqual(process.census(), nothing, 'what was opened before is closed');
  await world.close();
});
