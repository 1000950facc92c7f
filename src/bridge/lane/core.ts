import { VmsgError } from '../../kit/errors.ts';
import type { Backend } from '../../ports/backend.ts';
import {
  type BackendFactories,
  type BackendFactory,
  LateBackendHost,
  type LocalBackendType,
} from '../backend/factory.ts';
import { DeviceBus } from '../bus/device-bus.ts';
import { BusRuntime } from '../bus/runtime.ts';
import type { RemoteBus } from '../remote/remote-bus.ts';
import type { Upstream } from '../remote/upstream.ts';
import type {
  AttachedDevice,
  LaneAttachSpec,
  LaneBackendSpec,
  LaneBusSpec,
  LaneCommandName,
  LaneCommands,
  LaneEvent,
  LaneSnapshot,
} from './protocol.ts';

export interface LaneCoreOptions {
  readonly backends: BackendFactories;
  /** Builds a bus with its transport and recovery store. @throws VmsgError */
  readonly makeBus: (spec: LaneBusSpec, emit: (event: LaneEvent) => void) => BusRuntime | DeviceBus;
  /** A connection, made when needed, to a bus of another bridge. */
  readonly makeUpstream: (socket: string) => Upstream;
  readonly emit: (event: LaneEvent) => void;
}

type Handlers = {
  [N in LaneCommandName]: (argument: LaneCommands[N]['argument']) => Promise<LaneCommands[N]['result']>;
};

/** What a lane does, wherever it runs: carries out commands on its buses. */
export class LaneCore {
  readonly #o: LaneCoreOptions;
  readonly #buses = new Map<string, BusRuntime | DeviceBus>();
  readonly #upstreams = new Map<string, Upstream>();
  readonly #handlers: Handlers = {
    openBus: (spec) => this.#openBus(spec),
    listenBus: ({ bus }) => this.#listenBus(bus),
    closeBus: ({ bus }) => this.#closeBus(bus),
    attach: (spec) => this.#attach(spec),
    detach: ({ bus, attachment }) => this.#detach(bus, attachment),
    inspect: () => this.#inspect(),
    records: async ({ bus }) => this.#bus(bus).records(),
    shutdown: () => this.#shutdown(),
  };

  constructor(options: LaneCoreOptions) {
    this.#o = options;
  }

  call<N extends LaneCommandName>(name: N, argument: LaneCommands[N]['argument']): Promise<LaneCommands[N]['result']> {
    return this.#handlers[name](argument);
  }

  #driverBus(bus: string): BusRuntime {
    const runtime = this.#bus(bus);
    if (runtime instanceof BusRuntime) return runtime;
    throw new VmsgError('invalid-request', `the guest of bus ${bus} serves devices; it cannot use one`);
  }

  #bus(bus: string): BusRuntime | DeviceBus {
    const runtime = this.#buses.get(bus);
    if (runtime === undefined) throw new VmsgError('not-found', `the lane has no bus ${bus}`);
    return runtime;
  }

  async #openBus(spec: LaneBusSpec): Promise<null> {
    if (this.#buses.has(spec.bus)) throw new VmsgError('in-use', `the lane has a bus ${spec.bus} already`);
    this.#buses.set(spec.bus, this.#o.makeBus(spec, this.#o.emit));
    return null;
  }

  async #listenBus(bus: string): Promise<null> {
    this.#bus(bus).listen();
    return null;
  }

  async #closeBus(bus: string): Promise<null> {
    const runtime = this.#bus(bus);
    this.#buses.delete(bus);
    await runtime.close(true);
    return null;
  }

  async #attach(spec: LaneAttachSpec): Promise<AttachedDevice> {
    const { backend } = spec;
    const bus = this.#driverBus(spec.bus);
    if (backend.type === 'guest')
      return await bus.attachRemote(spec, this.#servingBus(backend.bus), backend.deviceNumber);
    if (backend.type === 'bridge') {
      const upstream = this.#upstream(backend.socket);
      const remote = await upstream.remote();
      if (!upstream.takeFor(spec.bus, remote)) {
        throw new VmsgError('backend-busy', `the bus at ${backend.socket} serves another bus of this bridge`);
      }
      return await bus.attachRemote(spec, remote, backend.deviceNumber);
    }
    return await this.#attachLocal(spec, backend);
  }

  #servingBus(bus: string): RemoteBus {
    const runtime = this.#bus(bus);
    if (!(runtime instanceof DeviceBus))
      throw new VmsgError('invalid-request', `the guest of bus ${bus} serves no devices`);
    if (runtime.remote === undefined) throw new VmsgError('unavailable', `bus ${bus} has no guest now`);
    return runtime.remote;
  }

  #upstream(socket: string): Upstream {
    const known = this.#upstreams.get(socket);
    if (known !== undefined) return known;
    const upstream = this.#o.makeUpstream(socket);
    this.#upstreams.set(socket, upstream);
    return upstream;
  }

  async #attachLocal(
    spec: LaneAttachSpec,
    backendSpec: Extract<LaneBackendSpec, { type: LocalBackendType }>,
  ): Promise<AttachedDevice> {
    const host = new LateBackendHost();
    const open = this.#o.backends[backendSpec.type] as BackendFactory;
    const backend: Backend = await open(backendSpec as never, host);
    try {
      // The bus may have gone while the backend was opened.
      return this.#driverBus(spec.bus).attach(spec, backend, (device) => host.bind(device));
    } catch (error) {
      await backend.close();
      throw error;
    }
  }

  async #detach(bus: string, attachment: string): Promise<null> {
    await this.#driverBus(bus).detach(attachment);
    return null;
  }

  async #inspect(): Promise<LaneSnapshot> {
    return { buses: [...this.#buses.values()].map((bus) => bus.snapshot()) };
  }

  async #shutdown(): Promise<null> {
    const buses = [...this.#buses.values()];
    await Promise.all(buses.map((bus) => bus.suspend()));
    await Promise.all(buses.map((bus) => bus.close(false)));
    await Promise.all([...this.#upstreams.values()].map((upstream) => upstream.close()));
    this.#upstreams.clear();
    this.#buses.clear();
    return null;
  }
}
