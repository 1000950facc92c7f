import assert from 'node:assert/strict';
import { BusRuntime } from '../../src/bridge/bus/runtime.ts';
import { XenTransport } from '../../src/bridge/bus/xen/transport.ts';
import type { BusSnapshot, LaneEvent } from '../../src/bridge/lane/protocol.ts';
import type { Backend } from '../../src/ports/backend.ts';
import type { BusTransportHandler } from '../../src/ports/bus.ts';
import { asDomid, type Domid } from '../../src/ports/hypervisor.ts';
import { dialectD5 } from '../../src/virtio-msg/dialect.ts';
import { CountingRandom, FakeClock, FakeScheduler, FakeStore } from './bridge-fakes.ts';
import { type FakeHypervisor, FakeXen, type FakeXenOptions } from './fake-xen.ts';
import { type FrontendOptions, XenFrontend } from './xen-frontend.ts';

const zero = asDomid(0)!;

/** The service on one machine: it can be killed and started again. */
export interface BenchService {
  readonly process: FakeHypervisor;
  readonly transport: XenTransport;
  readonly runtime: BusRuntime;
}

export interface XenBenchOptions extends FakeXenOptions {
  readonly poolMaxBytes?: number;
}

/** A machine with Xen, a service with one bus, and a domain for its guest; time passes when told. */
export class XenBench {
  /** Of the service that runs; a killed one takes its timers with it. */
  clock = new FakeClock();
  readonly scheduler = new FakeScheduler();
  readonly xen: FakeXen;
  readonly domid: Domid;
  readonly store = new FakeStore();
  readonly events: LaneEvent[] = [];
  readonly poolMaxBytes: number;
  /** Nodes that services have read. */
  reads = 0;
  #service: BenchService | undefined;

  constructor(options: XenBenchOptions = {}) {
    this.xen = new FakeXen({ scheduler: this.scheduler, ...options });
    this.domid = this.xen.createDomain('vm1');
    this.poolMaxBytes = options.poolMaxBytes ?? 1024 * 1024;
  }

  get service(): BenchService {
    assert.ok(this.#service !== undefined, 'the service runs');
    return this.#service;
  }

  readonly run = (): void => this.scheduler.run();

  advance(ms: number): void {
    this.clock.advance(ms);
    this.run();
  }

  /** The parts that a lane opens. */
  transport(process: FakeHypervisor, role: 'driver' | 'device' = 'driver', domid = this.domid): XenTransport {
    const xenstore = process.openXenstore();
    const { read } = xenstore;
    xenstore.read = (path) => {
      this.reads += 1;
      return read(path);
    };
    return new XenTransport({
      grants: process.openGrantMapper(),
      channels: process.openEventChannels(),
      xenstore,
      serviceDomid: zero,
      domid,
      index: 0,
      role,
      maxMessageSizeBytes: 64,
      poolMaxBytes: this.poolMaxBytes,
      revision: dialectD5.spec.revision,
      dialect: 5,
      clock: this.clock,
    });
  }

  /** @param attach adds the devices before the first guest is let in */
  start(attach: (runtime: BusRuntime) => void = () => {}): BenchService {
    const process = this.xen.hypervisorFor(zero);
    const transport = this.transport(process);
    const runtime = new BusRuntime({
      bus: 'bench',
      domid: this.domid,
      maxMessageSize: 64,
      dialect: dialectD5,
      transport,
      store: this.store,
      clock: this.clock,
      scheduler: this.scheduler,
      random: new CountingRandom(),
      emit: (event) => this.events.push(event),
    });
    attach(runtime);
    this.#service = { process, transport, runtime };
    runtime.listen();
    this.run();
    return this.#service;
  }

  attach(runtime: BusRuntime, backend: Backend, attachment = 'disk', deviceNumber?: number): number {
    const spec = {
      bus: 'bench',
      attachment,
      ...(deviceNumber === undefined ? {} : { deviceNumber }),
      backend: { type: 'rng', source: attachment } as const,
    };
    const bind = (host: unknown): void => void Object.assign(backend, { host });
    const attached = runtime.attach(spec, backend, bind).deviceNumber;
    this.run();
    return attached;
  }

  frontend(options: FrontendOptions = {}): XenFrontend {
    return new XenFrontend(this.xen.hypervisorFor(this.domid), this.run, options);
  }

  /** SIGKILL of the service: what JavaScript objects it had do nothing any more. */
  kill(): void {
    this.service.process.kill();
    this.#service = undefined;
    this.clock = new FakeClock();
    this.run();
  }

  get snapshot(): BusSnapshot {
    return this.service.runtime.snapshot();
  }

  reasons(type: 'bus-refused' | 'bus-disconnected'): string[] {
    return this.events.flatMap((event) => (event.type === type ? [event.reason] : []));
  }

  /** Removes the bus for good, and makes sure that nothing of the service is left. */
  async end(): Promise<void> {
    if (this.#service !== undefined) {
      const closing = this.#service.runtime.close(true);
      this.run();
      await closing;
      this.run();
    }
    assert.deepEqual(this.xen.census(zero), { mappings: 0, shares: 0, channels: 0, watches: 0 });
    assert.equal(this.xen.stored.tree.generationOf('/local/domain/0/backend/vmsg/1'), -1, 'no backend directory');
    assert.equal(this.clock.timers, 0, 'no timer runs');
    this.xen.close();
  }
}

/** A bus without devices: notes what its transport reports. */
export class NotingHandler implements BusTransportHandler {
  readonly log: string[] = [];
  nextEpoch = 1n;

  epochUsed(epoch: bigint): void {
    if (epoch >= this.nextEpoch) this.nextEpoch = epoch + 1n;
  }

  admit() {
    const epoch = this.nextEpoch;
    this.nextEpoch += 1n;
    return { epoch, token: new Uint8Array(16).fill(7), resumed: false };
  }

  connected(): void {
    this.log.push('connected');
  }

  disconnected(reason: string): void {
    this.log.push(`disconnected: ${reason}`);
  }

  refused(_peer: unknown, reason: string): void {
    this.log.push(`refused: ${reason}`);
  }

  diagnosed(text: string): void {
    this.log.push(`diagnosed: ${text}`);
  }
}
