import { noCounts } from '../../src/bridge/data-plane/protocol.ts';
import type {
  BusSnapshot,
  DeviceSnapshot,
  Lane,
  LaneAttachSpec,
  LaneBusSpec,
  LaneCommandName,
  LaneCommands,
  LaneEvent,
} from '../../src/bridge/lane/protocol.ts';
import { newCounters } from '../../src/device/channel.ts';
import type { FlightRecord } from '../../src/device/flight-recorder.ts';
import { VmsgError } from '../../src/kit/errors.ts';

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

interface FakeBus {
  readonly spec: LaneBusSpec;
  readonly snapshot: Mutable<BusSnapshot>;
  readonly devices: Map<string, { readonly spec: LaneAttachSpec; readonly snapshot: Mutable<DeviceSnapshot> }>;
  records: FlightRecord[];
  nextNumber: number;
  listens: boolean;
}

const tick = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** A lane without channels: it keeps what it was told and refuses what a real one would refuse. */
export class FakeLane implements Lane {
  readonly buses = new Map<string, FakeBus>();
  readonly dataPlane = { joins: 0, ...noCounts() };
  readonly calls: { readonly name: LaneCommandName; readonly argument: unknown }[] = [];
  /** Commands that contradict the lane's state: the service must never send one. */
  readonly violations: string[] = [];
  /** What to answer to a command on a bus or an attachment, by `name id`, as long as it stands here. */
  readonly refusals = new Map<string, VmsgError>();
  readonly closed = { count: 0 };
  #listener: (event: LaneEvent) => void = () => {};
  readonly #held = new Map<string, Promise<void>>();

  onEvent(listener: (event: LaneEvent) => void): void {
    this.#listener = listener;
  }

  emit(event: LaneEvent): void {
    this.#listener(event);
  }

  close(): void {
    this.closed.count += 1;
  }

  /** Keeps the answer to every `name` back until the returned function is called. */
  hold(name: LaneCommandName): () => void {
    let release = () => {};
    this.#held.set(
      name,
      new Promise((resolve) => {
        release = () => {
          this.#held.delete(name);
          resolve();
        };
      }),
    );
    return () => release();
  }

  count(name: LaneCommandName): number {
    return this.calls.filter((call) => call.name === name).length;
  }

  device(bus: string, attachment: string): Mutable<DeviceSnapshot> | undefined {
    return this.buses.get(bus)?.devices.get(attachment)?.snapshot;
  }

  async call<N extends LaneCommandName>(
    name: N,
    argument: LaneCommands[N]['argument'],
  ): Promise<LaneCommands[N]['result']> {
    this.calls.push({ name, argument: structuredClone(argument) });
    await tick();
    await this.#held.get(name);
    const about = argument as { readonly bus?: string; readonly attachment?: string };
    const refusal = this.refusals.get(`${name} ${about.attachment ?? about.bus}`);
    if (refusal !== undefined) throw refusal;
    return this.#run(name, argument) as LaneCommands[N]['result'];
  }

  #run(name: LaneCommandName, argument: unknown): unknown {
    switch (name) {
      case 'openBus':
        return this.#openBus(argument as LaneBusSpec);
      case 'listenBus':
        return this.#listenBus(argument as LaneCommands['listenBus']['argument']);
      case 'closeBus':
        return this.#closeBus(argument as LaneCommands['closeBus']['argument']);
      case 'attach':
        return this.#attach(argument as LaneAttachSpec);
      case 'detach':
        return this.#detach(argument as LaneCommands['detach']['argument']);
      case 'inspect':
        return { buses: [...this.buses.values()].map((bus) => this.#inspect(bus)), dataPlane: { ...this.dataPlane } };
      case 'records':
        return this.buses.get((argument as LaneCommands['records']['argument']).bus)?.records ?? [];
      case 'shutdown':
        return null;
    }
  }

  #inspect(bus: FakeBus): BusSnapshot {
    return structuredClone({ ...bus.snapshot, devices: [...bus.devices.values()].map(({ snapshot }) => snapshot) });
  }

  #openBus(spec: LaneBusSpec): null {
    if (this.buses.has(spec.bus)) this.#violate(`openBus ${spec.bus} twice`);
    const counters = newCounters();
    const snapshot: BusSnapshot = {
      bus: spec.bus,
      state: 'listening',
      epoch: 0n,
      peer: null,
      counters,
      channel: null,
      shares: [],
      regions: 0,
      regionBytes: 0,
      regionsDraining: 0,
      grants: null,
      diagnosis: null,
      devices: [],
      stuck: [],
    };
    this.buses.set(spec.bus, { spec, snapshot, devices: new Map(), records: [], nextNumber: 0, listens: false });
    return null;
  }

  #listenBus({ bus }: { readonly bus: string }): null {
    const found = this.buses.get(bus);
    if (found === undefined) throw new VmsgError('not-found', `no bus ${bus}`);
    if (found.listens) this.#violate(`listenBus ${bus} twice`);
    found.listens = true;
    return null;
  }

  #closeBus({ bus }: { readonly bus: string }): null {
    const found = this.buses.get(bus);
    if (found === undefined) throw new VmsgError('not-found', `no bus ${bus}`);
    // The domain of a Xen bus may go at any time, and its devices go with it.
    if (found.devices.size > 0 && found.spec.transport !== 'xen') this.#violate(`closeBus ${bus} with devices`);
    this.buses.delete(bus);
    return null;
  }

  #attach(spec: LaneAttachSpec): { deviceNumber: number; deviceType: number } {
    const bus = this.buses.get(spec.bus);
    if (bus === undefined) return this.#violate(`attach ${spec.attachment} without its bus`);
    if (bus.devices.has(spec.attachment)) this.#violate(`attach ${spec.attachment} twice`);
    const taken = new Set([...bus.devices.values()].map(({ snapshot }) => snapshot.deviceNumber));
    while (taken.has(bus.nextNumber)) bus.nextNumber += 1;
    const deviceNumber = spec.deviceNumber ?? bus.nextNumber;
    if (taken.has(deviceNumber)) throw new VmsgError('device-number-taken', `${deviceNumber} is taken`);
    const deviceType = spec.backend.type === 'blk' ? 2 : 4;
    const device = {
      attachment: spec.attachment,
      deviceNumber,
      deviceType,
      status: 0,
      queues: [],
      requests: 0,
      bytes: 0,
      recovery: 'resume' as const,
      dataPath: 'direct' as const,
      dataPathReason: null,
    };
    bus.devices.set(spec.attachment, { spec, snapshot: { ...device, reason: null } });
    return { deviceNumber, deviceType };
  }

  #detach({ bus, attachment }: { readonly bus: string; readonly attachment: string }): null {
    if (this.buses.get(bus)?.devices.delete(attachment) !== true) {
      throw new VmsgError('not-found', `no attachment ${attachment}`);
    }
    return null;
  }

  #violate(what: string): never {
    this.violations.push(what);
    throw new VmsgError('internal', what);
  }
}
