import assert from 'node:assert/strict';
import type { LaneEvent } from '../../src/bridge/lane/protocol.ts';
import { connectXen, type GuestBus, type XenConnectOptions } from '../../src/guest/index.ts';
import type { Backend, BackendHost } from '../../src/ports/backend.ts';
import { asDomid, type Domid } from '../../src/ports/hypervisor.ts';
import type { MemoryDisk } from './bridge-disk.ts';
import { type XenBusOptions, XenBusWorld, type XenMachine } from './bus-xen-world.ts';
import { type FakeHypervisor, FakeXen, type FakeXenOptions } from './fake-xen.ts';
import { until } from './guest-fixture.ts';
import { settledCensus } from './settled-census.ts';

const zero = asDomid(0)!;
const mebi = 1024 * 1024;
const nothing = JSON.stringify({ mappings: 0, shares: 0, channels: 0, watches: 0 });

/** A machine in memory, with a service in dom0 and a domain for its guest. */
export class FakeMachine implements XenMachine {
  readonly xen: FakeXen;
  readonly serviceDomid = zero;
  readonly domid: Domid;
  readonly index = 0;

  constructor(options: FakeXenOptions = {}) {
    this.xen = new FakeXen(options);
    this.domid = this.xen.createDomain('vm1');
  }

  process(domid: Domid): FakeHypervisor {
    return this.xen.hypervisorFor(domid);
  }

  held(): string {
    return JSON.stringify(this.xen.census());
  }

  close(): void {
    assert.equal(this.held(), nothing, 'nothing is open');
    this.xen.close();
  }
}

export interface XenWorldOptions extends FakeXenOptions, XenBusOptions {}

/** A bus on a machine in memory, for tests that look at what is under it. */
export class XenWorld extends XenBusWorld<FakeMachine> {
  readonly #buses: GuestBus[] = [];

  constructor(options: XenWorldOptions = {}) {
    super(new FakeMachine(options), options);
  }

  get xen(): FakeXen {
    return this.machine.xen;
  }

  get domid(): Domid {
    return this.machine.domid;
  }

  get disk(): MemoryDisk {
    return this.service.disk;
  }

  get events(): readonly LaneEvent[] {
    return this.service.events;
  }

  start(): Promise<void> {
    return this.service.start();
  }

  kill(): void {
    this.service.kill();
  }

  attach(attachment: string, deviceNumber: number, open: (host: BackendHost) => Promise<Backend>): Promise<void> {
    return this.service.attach(attachment, deviceNumber, open);
  }

  async connect(options: XenConnectOptions = {}): Promise<GuestBus> {
    const memoryBytes = options.memory === 'grants' ? {} : { memoryBytes: 4 * mebi };
    const bus = await connectXen({ hypervisor: this.process(), ...memoryBytes, ...options });
    this.#buses.push(bus);
    return bus;
  }

  async close(): Promise<void> {
    for (const bus of this.#buses) bus.close();
    const guest = () => JSON.stringify(this.xen.census(this.domid));
    await until(() => guest() === nothing, `the guest has nothing open: ${guest()}`);
    await this.service.close();
    this.machine.close();
  }
}

/** Runs a test with the service started, and shows that nothing of either side is left. */
export async function withXen(run: (world: XenWorld) => Promise<void>, options: XenWorldOptions = {}): Promise<void> {
  const before = await settledCensus();
  const world = new XenWorld(options);
  await world.start();
  await run(world);
  await world.close();
  assert.equal(await settledCensus(), before);
}
