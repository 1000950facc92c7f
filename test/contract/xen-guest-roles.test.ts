import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { laneOptions } from '../../src/app/lane-options.ts';
import { openConsole } from '../../src/bridge/backend/console.ts';
import { RngBackend } from '../../src/bridge/backend/rng.ts';
import { InlineLane } from '../../src/bridge/lane/inline.ts';
import type { LaneEvent } from '../../src/bridge/lane/protocol.ts';
import { ConsoleDriver, serveDevices } from '../../src/guest/index.ts';
import { systemClock } from '../../src/kit/clock.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { asDomid } from '../../src/ports/hypervisor.ts';
import { HypervisorError } from '../../src/xen/errors.ts';
import { type FakeHypervisor, FakeXen } from '../support/fake-xen.ts';
import { isCode, until } from '../support/guest-fixture.ts';
import { withXen } from '../support/xen-world.ts';

const zero = asDomid(0)!;
const nothing = { mappings: 0, shares: 0, channels: 0, watches: 0 };
const noHost = { failed: () => {}, configChanged: () => {} };

for (const memory of ['pool', 'grants'] as const) {
  test(`a console carries bytes both ways, and tells of its end: ${memory}`, async () => {
    const directory = mkdtempSync(join(tmpdir(), 'vmsg-test-'));
    const poller = new LoopPoller();
    const end = (path: string) => openConsole({ ports: [{ name: 'tty', socket: path }] }, poller, systemClock, noHost);
    await withXen(async (world) => {
      await world.attach('console', 3, () => end(join(directory, 'one')));
      const bus = await world.connect({ memory });
      const driver = await ConsoleDriver.open(bus, 3);
      const port = await driver.port(0);
      await port.open();
      const exchange = async (path: string): Promise<void> => {
        const client = net.connect(path);
        const sent = randomBytes(30_000);
        client.write(sent);
        let heard = Buffer.alloc(0);
        while (heard.length < sent.length) heard = Buffer.concat([heard, (await port.read()) ?? Buffer.alloc(0)]);
        assert.deepEqual(heard, sent);
        const back = new Promise<Buffer>((resolve) => {
          let all = Buffer.alloc(0);
          client.on('data', (bytes) => {
            all = Buffer.concat([all, bytes]);
            if (all.length === sent.length) resolve(all);
          });
        });
        await port.write(sent);
        assert.deepEqual(await back, sent);
        client.destroy();
      };
      await exchange(join(directory, 'one'));
      assert.equal(await port.read(), null);
      await driver.close();
    });
    poller.close();
    rmSync(directory, { recursive: true });
  });
}

/** A domain, and a lane in dom0 with a bus of role `device` to it. */
class ServingDomain {
  readonly xen = new FakeXen();
  readonly domid = this.xen.createDomain('server');
  readonly events: LaneEvent[] = [];
  readonly #directory = mkdtempSync(join(tmpdir(), 'vmsg-test-'));
  #process: FakeHypervisor | undefined;
  #lane: InlineLane | undefined;

  async start(): Promise<void> {
    const process = this.xen.hypervisorFor(zero);
    const lane = new InlineLane((emit) => laneOptions(new LoopPoller(), emit, { hypervisor: process }));
    lane.onEvent((event) => this.events.push(event));
    this.#process = process;
    this.#lane = lane;
    await lane.call('openBus', {
      bus: 'dev',
      role: 'device',
      domid: this.domid,
      transport: 'xen',
      maxMessageSizeBytes: 64,
      recoveryDir: join(this.#directory, 'recovery'),
      index: 0,
      poolMaxBytes: 1024 * 1024,
      incarnation: 'one',
    });
    await lane.call('listenBus', { bus: 'dev' });
  }

  kill(): void {
    this.#process?.kill();
    this.#lane = undefined;
    this.events.length = 0;
  }

  /** Whether the service that runs now knows the device. */
  get served(): boolean {
    return this.events.some((event) => event.type === 'served-devices' && event.devices.includes(0));
  }

  async close(): Promise<void> {
    const open = () => JSON.stringify(this.xen.census(this.domid));
    await until(() => open() === JSON.stringify(nothing), `nothing is open: ${open()}`);
    await this.#lane?.call('shutdown', {});
    assert.deepEqual(this.xen.census(), nothing);
    this.xen.close();
    rmSync(this.#directory, { recursive: true });
  }
}

test('a guest that serves devices connects again after a restart of the service', async () => {
  const world = new ServingDomain();
  await world.start();
  const hypervisor = world.xen.hypervisorFor(world.domid);
  const server = await serveDevices({ xen: {}, hypervisor, reconnect: { totalMs: 20_000 } });
  const source = { fill: () => {}, close: async () => {} };
  assert.equal(server.addDevice(new RngBackend(source, noHost)), 0);
  await until(() => world.served, 'the device is seen');
  const epochs: bigint[] = [];
  server.on('reconnected', ({ epoch }) => epochs.push(epoch));
  for (let round = 1; round <= 2; round++) {
    world.kill();
    await world.start();
    await until(() => epochs.length === round, 'it is back');
    await until(() => world.served, 'the device is seen again');
  }
  assert(epochs[0]! < epochs[1]!);
  await server.close();
  await world.close();
});

test('roles have to fit, and what is missing is named', async () => {
  const world = new ServingDomain();
  await world.start();
  const hypervisor = world.xen.hypervisorFor(world.domid);
  await withXen(async (driver) => {
    const opening = serveDevices({ xen: {}, hypervisor: driver.process() });
    await assert.rejects(opening, isCode('invalid-request', /a guest that uses devices \(role driver\)/));
  });
  await assert.rejects(serveDevices({ xen: { index: -1 }, hypervisor }), isCode('invalid-request'));
  const without = Object.assign(world.xen.hypervisorFor(world.domid), {
    openGrantMapper: () => {
      throw new HypervisorError('open', 'ENOENT', { what: '/dev/xen/gntdev' });
    },
  });
  await assert.rejects(serveDevices({ xen: {}, hypervisor: without }), isCode('unavailable', /gntdev: ENOENT/));
  await world.close();
});
