import assert from 'node:assert/strict';
import { BlkBackend } from '../../src/bridge/backend/blk.ts';
import type { DiskFile, IoDone } from '../../src/bridge/backend/disk-file.ts';
import { openRng } from '../../src/bridge/backend/rng.ts';
import { BusRuntime } from '../../src/bridge/bus/runtime.ts';
import { XenTransport } from '../../src/bridge/bus/xen/transport.ts';
import type { LaneEvent } from '../../src/bridge/lane/protocol.ts';
import { connectXen, type GuestBus, type XenConnectOptions } from '../../src/guest/index.ts';
import { type Clock, systemClock } from '../../src/kit/clock.ts';
import { type Scheduler, systemScheduler } from '../../src/kit/scheduler.ts';
import type { Backend, BackendHost } from '../../src/ports/backend.ts';
import { asDomid, type Domid, type Xenstore } from '../../src/ports/hypervisor.ts';
import { dialectD5 } from '../../src/virtio-msg/dialect.ts';
import { MemoryDisk } from './bridge-disk.ts';
import { CountingRandom, FakeStore } from './bridge-fakes.ts';
import { type FakeHypervisor, FakeXen, type FakeXenOptions } from './fake-xen.ts';
import { until } from './guest-fixture.ts';
import { settledCensus } from './settled-census.ts';

const zero = asDomid(0)!;
const mebi = 1024 * 1024;

/** What a process has of time and disks: when it is killed, nothing that it began goes on. */
class Life {
  #alive = true;

  readonly clock: Clock = {
    nowMs: () => systemClock.nowMs(),
    after: (delayMs, callback) => systemClock.after(delayMs, this.#mortal(callback)),
  };
  readonly scheduler: Scheduler = {
    soon: (work) => systemScheduler.soon(this.#mortal(work)),
    later: (work) => systemScheduler.later(this.#mortal(work)),
  };

  #mortal<T extends unknown[]>(work: (...parts: T) => void): (...parts: T) => void {
    return (...parts) => {
      if (this.#alive) work(...parts);
    };
  }

  disk(disk: MemoryDisk): DiskFile {
    const end = (done: IoDone): IoDone => this.#mortal(done);
    return {
      readOnly: disk.readOnly,
      blockBytes: disk.blockBytes,
      canPunch: disk.canPunch,
      get sizeBytes() {
        return disk.sizeBytes;
      },
      read: (parts, offset, done) => disk.read(parts, offset, end(done)),
      write: (parts, offset, done) => disk.write(parts, offset, end(done)),
      punch: (offset, length, done) => disk.punch(offset, length, end(done)),
      zero: (offset, length, done) => disk.zero(offset, length, end(done)),
      datasync: (done) => disk.datasync(end(done)),
      refresh: (done) => disk.refresh(end(done)),
      close: () => disk.close(),
    };
  }

  end(): void {
    this.#alive = false;
  }
}

interface WorldService {
  readonly life: Life;
  readonly process: FakeHypervisor;
  readonly transport: XenTransport;
  readonly runtime: BusRuntime;
}

export interface XenWorldOptions extends FakeXenOptions {
  readonly role?: 'driver' | 'device';
  readonly maxMessageSizeBytes?: number;
  readonly poolMaxBytes?: number;
}

/** A machine with Xen where the real service serves a disk (device 1) and entropy (device 2) to one domain. */
export class XenWorld {
  readonly xen: FakeXen;
  readonly domid: Domid;
  readonly disk = new MemoryDisk(4 * mebi);
  readonly events: LaneEvent[] = [];
  readonly #o: XenWorldOptions;
  readonly #store = new FakeStore();
  readonly #buses: GuestBus[] = [];
  #service: WorldService | undefined;

  constructor(options: XenWorldOptions = {}) {
    this.#o = options;
    this.xen = new FakeXen(options);
    this.domid = this.xen.createDomain('vm1');
  }

  get service(): WorldService {
    assert.ok(this.#service !== undefined, 'the service runs');
    return this.#service;
  }

  #transport(process: FakeHypervisor, { clock }: Life): XenTransport {
    const { role = 'driver', maxMessageSizeBytes = 64, poolMaxBytes = 64 * mebi } = this.#o;
    return new XenTransport({
      grants: process.openGrantMapper(),
      channels: process.openEventChannels(),
      xenstore: process.openXenstore(),
      serviceDomid: zero,
      domid: this.domid,
      index: 0,
      role,
      maxMessageSizeBytes,
      poolMaxBytes,
      revision: dialectD5.spec.revision,
      dialect: 5,
      clock,
    });
  }

  /** The service starts, for the first time or after `kill`: what it had stored is there. */
  async start(): Promise<WorldService> {
    this.disk.closed = false;
    const process = this.xen.hypervisorFor(zero);
    const life = new Life();
    const { clock, scheduler } = life;
    const transport = this.#transport(process, life);
    const runtime = new BusRuntime({
      bus: 'b',
      domid: this.domid,
      maxMessageSize: this.#o.maxMessageSizeBytes ?? 64,
      dialect: dialectD5,
      transport,
      store: this.#store,
      clock,
      scheduler,
      random: new CountingRandom(),
      emit: (event) => this.events.push(event),
    });
    this.#service = { life, process, transport, runtime };
    const random = { fill: (target: Uint8Array) => void target.fill(0xa5) };
    await this.attach('disk', 1, async (host) => new BlkBackend(life.disk(this.disk), 'xen', { host, clock }));
    await this.attach('random', 2, (host) => openRng({ source: '/dev/urandom' }, random, host));
    runtime.listen();
    return this.#service;
  }

  async attach(attachment: string, deviceNumber: number, open: (host: BackendHost) => Promise<Backend>): Promise<void> {
    let device: BackendHost | undefined;
    const backend = await open({
      configChanged: (offset, data) => device?.configChanged(offset, data),
      failed: (reason) => device?.failed(reason),
    });
    const spec = { bus: 'b', attachment, deviceNumber, backend: { type: 'rng', source: attachment } as const };
    this.service.runtime.attach(spec, backend, (host) => {
      device = host;
    });
  }

  /** SIGKILL: nothing of it acts any more; what its disk had not begun is never done. */
  kill(): void {
    this.service.life.end();
    this.service.process.kill();
    this.#service = undefined;
    this.disk.waiting = undefined;
  }

  /** A process of the domain. */
  process(): FakeHypervisor {
    return this.xen.hypervisorFor(this.domid);
  }

  async connect(options: XenConnectOptions = {}): Promise<GuestBus> {
    const memoryBytes = options.memory === 'grants' ? {} : { memoryBytes: 4 * mebi };
    const bus = await connectXen({ hypervisor: this.process(), ...memoryBytes, ...options });
    this.#buses.push(bus);
    return bus;
  }

  /** A node that the guest wrote. */
  node(name: string): string | undefined {
    return this.withStore((store) => store.read(`/local/domain/${this.domid}/device/vmsg/0/${name}`));
  }

  /** State of the service's side. */
  get backendState(): string | undefined {
    return this.withStore((store) => store.read(`/local/domain/0/backend/vmsg/${this.domid}/0/state`));
  }

  /** Writes or removes a node, as dom0 may. */
  setNode(name: string, value: string | undefined): void {
    this.#set(`/local/domain/${this.domid}/device/vmsg/0/${name}`, value);
  }

  /** Writes or removes a node of the service. */
  setBackendNode(name: string, value: string | undefined): void {
    this.#set(`/local/domain/0/backend/vmsg/${this.domid}/0/${name}`, value);
  }

  #set(path: string, value: string | undefined): void {
    this.withStore((store) => (value === undefined ? store.remove(path) : store.write(path, value)));
  }

  withStore<T>(use: (store: Xenstore) => T): T {
    const store = this.xen.hypervisorFor(zero).openXenstore();
    try {
      return use(store);
    } finally {
      store.close();
    }
  }

  async close(): Promise<void> {
    for (const bus of this.#buses) bus.close();
    const nothing = JSON.stringify({ mappings: 0, shares: 0, channels: 0, watches: 0 });
    const guest = () => JSON.stringify(this.xen.census(this.domid));
    await until(() => guest() === nothing, `the guest has nothing open: ${guest()}`);
    await this.#service?.runtime.close(true);
    const all = JSON.stringify(this.xen.census());
    assert.equal(all, nothing, 'nothing is open');
    this.xen.close();
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
