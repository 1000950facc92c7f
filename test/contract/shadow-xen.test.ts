import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { laneOptions } from '../../src/app/lane-options.ts';
import { BlkBackend } from '../../src/bridge/backend/blk.ts';
import { InlineLane } from '../../src/bridge/lane/inline.ts';
import type { LaneBackendSpec, LaneEvent } from '../../src/bridge/lane/protocol.ts';
import { BlkDriver, connectXen, type DeviceServer, type GuestBus, serveDevices } from '../../src/guest/index.ts';
import { systemClock } from '../../src/kit/clock.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { asDomid, type Domid } from '../../src/ports/hypervisor.ts';
import { MemoryDisk } from '../support/bridge-disk.ts';
import { FakeXen } from '../support/fake-xen.ts';
import { isCode, until } from '../support/guest-fixture.ts';

const zero = asDomid(0)!;
const mebi = 1024 * 1024;
const noHost = { failed: () => {}, configChanged: () => {} };
const nothing = { mappings: 0, shares: 0, channels: 0, watches: 0 };

/** A machine with Xen where `user` uses what `server` serves, through the real lane in dom0. */
class TwoDomains {
  readonly xen: FakeXen;
  readonly user: Domid;
  readonly server: Domid;
  readonly disk = new MemoryDisk(2 * mebi);
  readonly events: LaneEvent[] = [];
  readonly lane: InlineLane;
  readonly #directory = mkdtempSync(join(tmpdir(), 'vmsg-test-'));

  constructor(silo: boolean) {
    this.xen = new FakeXen({ silo });
    this.user = this.xen.createDomain('user');
    this.server = this.xen.createDomain('server');
    const control = {
      commandLine: () => `dom0=pvh xsm=${silo ? 'silo' : 'dummy'}`,
      buildConfig: () => undefined,
      close: () => {},
    };
    const hypervisor = Object.assign(this.xen.hypervisorFor(zero), {
      openControl: () => control,
    });
    this.lane = new InlineLane((emit) => laneOptions(new LoopPoller(), emit, { hypervisor }));
    this.lane.onEvent((event) => this.events.push(event));
    this.disk.bytes.set(randomBytes(2 * mebi));
  }

  async open(): Promise<this> {
    for (const [bus, role, domid] of [
      ['drv', 'driver', this.user],
      ['dev', 'device', this.server],
    ] as const) {
      await this.lane.call('openBus', {
        bus,
        role,
        domid,
        transport: 'xen',
        maxMessageSizeBytes: 64,
        recoveryDir: join(this.#directory, bus),
        index: 0,
        poolMaxBytes: 64 * mebi,
        incarnation: `${domid}`,
      });
      await this.lane.call('listenBus', { bus });
    }
    return this;
  }

  async serve(): Promise<DeviceServer> {
    const server = await serveDevices({ xen: {}, hypervisor: this.xen.hypervisorFor(this.server) });
    this.disk.closed = false;
    server.addDevice(new BlkBackend(this.disk, 'served', { host: noHost, clock: systemClock }));
    await this.sees('served-devices');
    await until(() => this.events.some((e) => e.type === 'served-devices' && e.devices.includes(0)), 'the device');
    return server;
  }

  async attach(dataPath?: 'auto' | 'direct' | 'shadow'): Promise<number> {
    const backend: LaneBackendSpec = { type: 'guest', bus: 'dev', deviceNumber: 0, ...(dataPath && { dataPath }) };
    return (await this.lane.call('attach', { bus: 'drv', attachment: 'a', backend })).deviceNumber;
  }

  connect(): Promise<GuestBus> {
    return connectXen({ hypervisor: this.xen.hypervisorFor(this.user), memoryBytes: 4 * mebi });
  }

  async sees(type: LaneEvent['type']): Promise<LaneEvent> {
    await until(() => this.events.some((event) => event.type === type), type);
    return this.events.find((event) => event.type === type)!;
  }

  async device() {
    const { buses } = await this.lane.call('inspect', {});
    return buses.flatMap(({ devices }) => devices)[0];
  }

  async close(): Promise<void> {
    for (const domid of [this.user, this.server]) await this.#empty(domid);
    await this.lane.call('shutdown', {});
    this.lane.close();
    await this.#empty();
    this.xen.close();
    rmSync(this.#directory, { recursive: true });
  }

  async #empty(domid?: Domid): Promise<void> {
    const open = (): string => JSON.stringify(this.xen.census(domid));
    await until(() => open() === JSON.stringify(nothing), `nothing is open: ${open()}`);
  }
}

async function useDisk(bus: GuestBus, { disk }: TwoDomains): Promise<void> {
  const [number = 0] = await bus.devices();
  const blk = await BlkDriver.open(bus, number);
  assert.deepEqual(Buffer.from(await blk.read(0, 2 * mebi)), Buffer.from(disk.bytes));
  const data = randomBytes(64 * 1024);
  await blk.write(8, data);
  await blk.flush();
  assert.deepEqual(Buffer.from(disk.bytes.subarray(4096, 4096 + data.length)), data);
  await blk.close();
}

for (const path of ['relayed', 'shadow'] as const) {
  describe(`a device of one Xen domain in another, ${path}`, () => {
    test('is used by one driver after the other, and every page goes back', async () => {
      const world = await new TwoDomains(path === 'shadow').open();
      const server = await world.serve();
      const number = await world.attach();
      for (let round = 0; round < 2; round++) {
        const bus = await world.connect();
        await useDisk(bus, world);
        const device = await world.device();
        assert.equal(device?.dataPath, path);
        if (path === 'shadow')
          assert.equal(
            device?.dataPathReason,
            "Xen runs with XSM SILO (xsm=silo on Xen's command line): domains cannot map each other's memory",
          );
        else assert.equal(device?.dataPathReason, null);
        bus.close();
      }
      assert.equal(number, 0);
      await server.close();
      await world.close();
    });

    test('goes with the domain that serves it, and comes back with it', async () => {
      const world = await new TwoDomains(path === 'shadow').open();
      const first = await world.serve();
      await world.attach();
      const bus = await world.connect();
      const [number = 0] = await bus.devices();
      const blk = await BlkDriver.open(bus, number);
      const removed = new Promise<number>((resolve) => bus.on('removed', ({ device }) => resolve(device)));
      await first.close();
      assert.equal(await removed, number);
      await assert.rejects(blk.read(0, 512), isCode('not-found'));
      await world.sees('attachment-lost');
      world.events.length = 0;
      const second = await world.serve();
      const added = new Promise<number>((resolve) => bus.on('added', ({ device }) => resolve(device)));
      const again = await world.attach();
      assert.equal(await added, again);
      const back = await BlkDriver.open(bus, again);
      assert.equal((await back.read(0, 512)).length, 512);
      await back.close();
      bus.close();
      await second.close();
      await world.close();
    });

    test('is free again when the domain that used it is destroyed', async () => {
      const world = await new TwoDomains(path === 'shadow').open();
      const server = await world.serve();
      await world.attach();
      const bus = await world.connect();
      const blk = await BlkDriver.open(bus, 0);
      assert.equal((await blk.read(0, 512)).length, 512);
      const reading = blk.read(0, 512).catch(() => {});
      world.xen.destroy(world.user);
      await world.lane.call('closeBus', { bus: 'drv' });
      bus.close();
      await reading;
      const idle = world.xen.census(world.server).mappings;
      await until(() => world.xen.census(world.server).mappings <= idle, 'the server maps nothing of it');
      assert.ok(!world.events.some(({ type }) => type === 'share-stuck'));
      await server.close();
      await world.close();
    });
  });
}

test('a path that was asked for and that Xen forbids is refused with the reason', async () => {
  const world = await new TwoDomains(true).open();
  const server = await world.serve();
  await assert.rejects(world.attach('direct'), isCode('backend-unusable', /cannot be direct: Xen runs with XSM SILO/));
  await server.close();
  await world.close();
  const other = await new TwoDomains(false).open();
  const second = await other.serve();
  await other.attach('shadow');
  const bus = await other.connect();
  await useDisk(bus, other);
  assert.equal((await other.device())?.dataPathReason, 'the backend asks for it');
  bus.close();
  await second.close();
  await other.close();
});

test('a paused serving domain that keeps the pages of a dead one is reported, also when it has let go', async () => {
  const world = await new TwoDomains(false).open();
  const server = await world.serve();
  await world.attach();
  const bus = await world.connect();
  const blk = await BlkDriver.open(bus, 0);
  assert.equal((await blk.read(0, 512)).length, 512);
  world.xen.pause(world.server);
  world.xen.destroy(world.user);
  const closing = world.lane.call('closeBus', { bus: 'drv' });
  bus.close();
  const stuck = await world.sees('share-stuck');
  const about = { bus: 'drv', domid: world.user, mapperBus: 'dev', mapperDomid: world.server };
  assert.ok(stuck.type === 'share-stuck' && stuck.pages >= (4 * mebi) / 4096 && stuck.ageMs > 0);
  assert.deepEqual({ ...stuck, ...about }, stuck);
  const { buses } = await world.lane.call('inspect', {});
  assert.deepEqual(
    buses.find((each) => each.bus === 'dev')?.stuck.map(({ domid, pages }) => [domid, pages]),
    [[world.user, stuck.pages]],
  );
  world.xen.unpause(world.server);
  const released = await world.sees('share-released');
  assert.deepEqual({ ...released, ...about, pages: stuck.pages }, released);
  await closing;
  await server.close();
  await world.close();
});
