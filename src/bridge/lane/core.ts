import { VmsgError } from '../../kit/errors.ts';
import type { Backend } from '../../ports/backend.ts';
import { type BackendFactories, type BackendFactory, LateBackendHost } from '../backend/factory.ts';
import type { BusRuntime } from '../bus/runtime.ts';
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
  readonly makeBus: (spec: LaneBusSpec, emit: (event: LaneEvent) => void) => BusRuntime;
  readonly emit: (event: LaneEvent) => void;
}

type Handlers = {
  [N in LaneCommandName]: (argument: LaneCommands[N]['argument']) => Promise<LaneCommands[N]['result']>;
};

/** What a lane does, wherever it runs: carries out commands on its buses. */
export class LaneCore {
  readonly #o: LaneCoreOptions;
  readonly #buses = new Map<string, BusRuntime>();
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

  #bus(bus: string): BusRuntime {
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
    this.#bus(spec.bus);
    const host = new LateBackendHost();
    const open = this.#o.backends[spec.backend.type] as BackendFactory;
    const backend: Backend = await open(spec.backend as LaneBackendSpec as never, host);
    try {
      // The bus may have gone while the backend was opened.
      return this.#bus(spec.bus).attach(spec, backend, (device) => host.bind(device));
    } catch (error) {
      await backend.close();
      throw error;
    }
  }

  async #detach(bus: string, attachment: string): Promise<null> {
    await this.#bus(bus).detach(attachment);
    return null;
  }

  async #inspect(): Promise<LaneSnapshot> {
    return { buses: [...this.#buses.values()].map((bus) => bus.snapshot()) };
  }

  async #shutdown(): Promise<null> {
    const buses = [...this.#buses.values()];
    await Promise.all(buses.map((bus) => bus.suspend()));
    await Promise.all(buses.map((bus) => bus.close(false)));
    this.#buses.clear();
    return null;
  }
}
