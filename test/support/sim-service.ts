import { BlkBackend } from '../../src/bridge/backend/blk.ts';
import { type EntropySource, RngBackend } from '../../src/bridge/backend/rng.ts';
import { ShmBackend } from '../../src/bridge/backend/shm.ts';
import { TemplateBackend } from '../../src/bridge/backend/template.ts';
import { BusRuntime } from '../../src/bridge/bus/runtime.ts';
import { DataPlane } from '../../src/bridge/data-plane/data-plane.ts';
import { LaneCore } from '../../src/bridge/lane/core.ts';
import type { LaneAttachSpec, LaneEvent, LaneSnapshot } from '../../src/bridge/lane/protocol.ts';
import { VmsgError } from '../../src/kit/errors.ts';
import { limits } from '../../src/kit/limits.ts';
import { dialectD5 } from '../../src/virtio-msg/dialect.ts';
import type { SimDisk } from './sim-disk.ts';
import type { SimLoop, SimProcess } from './sim-loop.ts';
import { SimStore } from './sim-resources.ts';
import { SimSocket, SimTransport } from './sim-transport.ts';

/** What of a bus outlives the service: its socket path, its recovery files, and what is to be attached to it. */
export class SimBus {
  readonly name: string;
  readonly socket: SimSocket;
  readonly files = new Map<string, Uint8Array>();
  readonly wanted = new Map<string, LaneAttachSpec>();
  readonly maxMessageSize: number;
  lastEpoch = 0n;
  /** Attachment behind each device number. */
  readonly numbers = new Map<number, string>();
  /** Numbers that the guest of this epoch may know. */
  readonly numbersOfEpoch = new Set<number>();

  constructor(loop: SimLoop, name: string, maxMessageSize: number) {
    this.name = name;
    this.socket = new SimSocket(loop);
    this.maxMessageSize = maxMessageSize;
  }
}

/** One run of the service: the real lane on simulated ports, until it ends or is killed. */
export class SimService {
  readonly process: SimProcess;
  readonly #loop: SimLoop;
  readonly #core: LaneCore;
  readonly #buses: readonly SimBus[];
  readonly #disks: ReadonlyMap<string, SimDisk>;
  /** Device numbers by attachment. */
  readonly #attached = new Map<SimBus, Map<string, number>>();
  /** Lane calls under way. */
  calls = 0;
  isUp = false;
  /** Chance that the entropy source fails. */
  entropyErrorRate = 0;

  constructor(loop: SimLoop, name: string, buses: readonly SimBus[], disks: ReadonlyMap<string, SimDisk>) {
    this.#loop = loop;
    this.#buses = buses;
    this.#disks = disks;
    this.process = loop.process(name);
    const { process } = this;
    this.#core = new LaneCore({
      emit: (event) => this.#onEvent(event),
      backends: {
        blk: async (spec) => {
          await loop.sleep(process, loop.random.below(5));
          return new BlkBackend(this.#disks.get(spec.path)!.open(process), spec.serial);
        },
        console: async () => {
          throw new VmsgError('backend-unusable', 'no terminals and sockets here');
        },
        'vhost-user': async () => {
          throw new VmsgError('backend-unusable', 'no processes here');
        },
        program: async () => {
          throw new VmsgError('backend-unusable', 'no processes here');
        },
        rng: async (_spec, host) => new RngBackend(this.#entropy(), host),
        shm: async ({ bytes }) => new ShmBackend(bytes),
        template: async ({ greeting }) => new TemplateBackend(greeting),
      },
      dataPlane: new DataPlane({
        places: 1,
        open: () => {
          throw new VmsgError('unavailable', 'no threads here');
        },
      }),
      clock: process.clock,
      scheduler: process.scheduler,
      xsm: () => ({ mode: 'unknown', reason: 'no Xen here' }),
      makeUpstream: () => {
        throw new VmsgError('unavailable', 'no other bridges here');
      },
      makeBus: (spec, emit) => {
        const bus = buses.find((candidate) => candidate.name === spec.bus)!;
        const { clock, scheduler, random } = process;
        return new BusRuntime({
          bus: spec.bus,
          domid: spec.domid,
          maxMessageSize: spec.maxMessageSizeBytes,
          dialect: dialectD5,
          transport: new SimTransport(loop, process, bus.socket),
          store: new SimStore(bus.files, process),
          clock,
          scheduler,
          random,
          emit,
        });
      },
    });
  }

  #entropy(): EntropySource {
    const { process } = this;
    const loop = this.#loop;
    const handle = process.hold('entropy');
    return {
      fill: (target, done) => {
        process.touch();
        const finish = (): void => {
          if (loop.random.chance(this.entropyErrorRate)) done(new Error('injected'), 0);
          else {
            const bytes = 1 + loop.random.below(target.length);
            for (let i = 0; i < bytes; i++) target[i] = 1 + loop.random.below(255);
            done(null, bytes);
          }
        };
        if (loop.random.chance(0.5)) finish();
        else loop.at(process, loop.random.below(3), finish);
      },
      close: async () => handle.close(),
    };
  }

  #onEvent(event: LaneEvent): void {
    this.process.touch();
    if (event.type === 'bus-connected') {
      const bus = this.#buses.find((candidate) => candidate.name === event.bus)!;
      this.#loop.check(
        event.epoch > bus.lastEpoch,
        `epoch of ${event.bus} went from ${bus.lastEpoch} to ${event.epoch}`,
      );
      bus.lastEpoch = event.epoch;
      bus.numbersOfEpoch.clear();
      for (const number of this.#attached.get(bus)?.values() ?? []) bus.numbersOfEpoch.add(number);
    }
    if (event.type !== 'device-status') this.#loop.log(`${this.process.name}: ${describe(event)}`);
  }

  /** Opens the buses with what is attached to them, then lets guests in; mostly in this order. */
  async start(): Promise<void> {
    for (const bus of this.#buses) {
      bus.numbersOfEpoch.clear();
      bus.numbers.clear();
      await this.#call(() => this.#core.call('openBus', busSpec(bus)));
    }
    const { random } = this.#loop;
    for (const bus of this.#buses) {
      const attach = [...bus.wanted.values()].map((spec) => this.attach(bus, spec));
      if (random.chance(0.9)) await Promise.all(attach);
      await this.#call(() => this.#core.call('listenBus', { bus: bus.name }));
      await Promise.all(attach);
    }
    this.isUp = true;
  }

  async attach(bus: SimBus, spec: LaneAttachSpec): Promise<void> {
    bus.wanted.set(spec.attachment, spec);
    const attached = await this.#call(() => this.#core.call('attach', spec));
    if (attached === undefined) return;
    const { deviceNumber } = attached;
    const fresh = spec.deviceNumber !== undefined || !bus.numbersOfEpoch.has(deviceNumber);
    this.#loop.check(fresh || !this.isUp, `device number ${deviceNumber} of ${bus.name} was used in this epoch`);
    bus.numbers.set(deviceNumber, spec.attachment);
    bus.numbersOfEpoch.add(deviceNumber);
    this.#attached.set(bus, (this.#attached.get(bus) ?? new Map()).set(spec.attachment, deviceNumber));
  }

  async detach(bus: SimBus, attachment: string): Promise<void> {
    bus.wanted.delete(attachment);
    this.#attached.get(bus)?.delete(attachment);
    for (const [number, name] of bus.numbers) if (name === attachment) bus.numbers.delete(number);
    await this.#call(() => this.#core.call('detach', { bus: bus.name, attachment }));
  }

  inspect(): Promise<LaneSnapshot | undefined> {
    return this.#call(() => this.#core.call('inspect', {}));
  }

  /** Orderly: lets requests finish, releases everything. */
  async shutdown(): Promise<void> {
    this.isUp = false;
    await this.#call(() => this.#core.call('shutdown', {}));
    if (!this.process.alive) return;
    for (const [kind, count] of this.process.held) {
      this.#loop.check(count === 0, `${count} ${kind} open after the service has shut down`);
    }
    this.process.die();
  }

  /** A call that fails is a violation, unless the service was killed meanwhile. */
  async #call<T>(run: () => Promise<T>): Promise<T | undefined> {
    if (!this.process.alive) return undefined;
    this.calls += 1;
    try {
      return await run();
    } catch (error) {
      if (this.process.alive) this.#loop.fail(`a lane call failed: ${error instanceof Error ? error.stack : error}`);
      return undefined;
    } finally {
      this.calls -= 1;
    }
  }
}

const busSpec = (bus: SimBus) => ({
  bus: bus.name,
  transport: 'loopback' as const,
  role: 'driver' as const,
  domid: 1,
  socketPath: bus.name,
  socketMode: 0o600,
  admittedUids: [0],
  maxMessageSizeBytes: bus.maxMessageSize,
  ringMaxBytes: limits.ringMaxBytes,
  recoveryDir: bus.name,
});

const describe = (event: LaneEvent): string =>
  JSON.stringify(event, (_key, value) => (typeof value === 'bigint' ? Number(value) : value));
