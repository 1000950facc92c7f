import type { RingBackend } from '../../device/queue-engine.ts';
import type { Clock, Timer } from '../../kit/clock.ts';
import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import type { Scheduler } from '../../kit/scheduler.ts';
import type { Backend } from '../../ports/backend.ts';
import type { XsmVerdict } from '../../xen/xsm.ts';
import {
  type BackendFactories,
  type BackendFactory,
  LateBackendHost,
  type LocalBackendType,
} from '../backend/factory.ts';
import type { DirectWay } from '../backend/vhost-user/data-path.ts';
import { DeviceBus } from '../bus/device-bus.ts';
import { BusRuntime } from '../bus/runtime.ts';
import type { DataPlane } from '../data-plane/data-plane.ts';
import type { RemoteBus } from '../remote/remote-bus.ts';
import type { Upstream } from '../remote/upstream.ts';
import { chooseDataPath } from '../shadow/data-path.ts';
import { openShadow } from '../shadow/open-shadow.ts';
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
  readonly dataPlane: DataPlane;
  /** Releases what buses share; called after the last of them is closed, and the data plane. */
  readonly close?: () => void;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  /** Which security module Xen runs. */
  readonly xsm: () => XsmVerdict;
}

interface OpenBus {
  readonly spec: LaneBusSpec;
  readonly runtime: BusRuntime | DeviceBus;
  /** Runs while guests are not let in because devices are missing. */
  hold: Timer | undefined;
  /** Attachments whose vhost-user back-ends get copies: why. */
  readonly noDirectWay: Map<string, string>;
}

type ServedSpec = Extract<LaneBackendSpec, { type: 'guest' }>;

type Handlers = {
  [N in LaneCommandName]: (argument: LaneCommands[N]['argument']) => Promise<LaneCommands[N]['result']>;
};

/** What a lane does, wherever it runs: carries out commands on its buses. */
export class LaneCore {
  readonly #o: LaneCoreOptions;
  readonly #buses = new Map<string, OpenBus>();
  readonly #upstreams = new Map<string, Upstream>();
  readonly #handlers: Handlers = {
    openBus: (spec) => this.#openBus(spec),
    listenBus: ({ bus }) => this.#listenBus(bus),
    closeBus: ({ bus }) => this.#closeBus(bus),
    attach: (spec) => this.#attach(spec),
    detach: ({ bus, attachment }) => this.#detach(bus, attachment),
    inspect: () => this.#inspect(),
    records: async ({ bus }) => this.#bus(bus).runtime.records(),
    shutdown: () => this.#shutdown(),
  };

  constructor(options: LaneCoreOptions) {
    this.#o = options;
  }

  call<N extends LaneCommandName>(name: N, argument: LaneCommands[N]['argument']): Promise<LaneCommands[N]['result']> {
    return this.#handlers[name](argument);
  }

  #driverBus(bus: string): BusRuntime {
    const { runtime } = this.#bus(bus);
    if (runtime instanceof BusRuntime) return runtime;
    throw new VmsgError('invalid-request', `the guest of bus ${bus} serves devices; it cannot use one`);
  }

  #bus(bus: string): OpenBus {
    const open = this.#buses.get(bus);
    if (open === undefined) throw new VmsgError('not-found', `the lane has no bus ${bus}`);
    return open;
  }

  async #openBus(spec: LaneBusSpec): Promise<null> {
    if (this.#buses.has(spec.bus)) throw new VmsgError('in-use', `the lane has a bus ${spec.bus} already`);
    const noDirectWay = new Map<string, string>();
    const runtime = this.#o.makeBus(spec, (event) => {
      // Another guest may share its memory in another way.
      if (event.type === 'bus-disconnected') noDirectWay.clear();
      this.#o.emit(event);
    });
    this.#buses.set(spec.bus, { spec, runtime, hold: undefined, noDirectWay });
    return null;
  }

  /** A guest that resumes finds only the devices that are there then: those that come soon get a little time. */
  async #listenBus(bus: string): Promise<null> {
    const open = this.#bus(bus);
    const { runtime } = open;
    if (runtime instanceof DeviceBus || !runtime.expectsDevices) {
      runtime.listen();
      return null;
    }
    open.hold = this.#o.clock.after(limits.resumeHoldMs, () => {
      runtime.forgetMissing();
      this.#endHold(open, runtime);
    });
    return null;
  }

  #endHold(open: OpenBus, runtime: BusRuntime): void {
    if (open.hold === undefined || runtime.expectsDevices) return;
    open.hold.cancel();
    open.hold = undefined;
    runtime.listen();
  }

  async #closeBus(bus: string): Promise<null> {
    const open = this.#bus(bus);
    this.#buses.delete(bus);
    open.hold?.cancel();
    await open.runtime.close(true);
    return null;
  }

  async #attach(spec: LaneAttachSpec): Promise<AttachedDevice> {
    const { backend } = spec;
    const bus = this.#driverBus(spec.bus);
    if (backend.type === 'guest') return await this.#attachServed(spec, backend);
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

  async #attachServed(spec: LaneAttachSpec, backend: ServedSpec): Promise<AttachedDevice> {
    const open = this.#bus(spec.bus);
    const path = chooseDataPath(backend.dataPath ?? 'auto', open.spec, this.#bus(backend.bus).spec, this.#o.xsm);
    const bus = this.#driverBus(spec.bus);
    if (path.dataPath === 'relayed') {
      return await bus.attachRemote(spec, this.#servingBus(backend.bus), backend.deviceNumber);
    }
    return await this.#attachShadow(spec, backend, path.reason);
  }

  async #attachShadow(
    spec: LaneAttachSpec,
    { bus: servingBus, deviceNumber }: ServedSpec,
    reason: string,
  ): Promise<AttachedDevice> {
    const { clock, scheduler } = this.#o;
    const host = this.#hostFor(spec);
    const backend = await openShadow(this.#servingBus(servingBus), deviceNumber, { reason, host, clock, scheduler });
    return await this.#enter(spec, backend, host);
  }

  #servingBus(bus: string): RemoteBus {
    const { runtime } = this.#bus(bus);
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
    const host = this.#hostFor(spec);
    const open = this.#o.backends[backendSpec.type] as BackendFactory;
    const { bus, attachment } = spec;
    const onReady = (): void => this.#o.emit({ type: 'attachment-ready', bus, attachment });
    const backend = await open(backendSpec as never, host, { onReady, directWay: this.#directWay(spec) });
    return await this.#enter(spec, backend, host);
  }

  #directWay({ bus, attachment }: LaneAttachSpec): DirectWay {
    const ruledOut = this.#bus(bus).noDirectWay;
    return { ruledOut: ruledOut.get(attachment), ruleOut: (why) => void ruledOut.set(attachment, why) };
  }

  #hostFor({ bus, attachment }: LaneAttachSpec): LateBackendHost {
    return new LateBackendHost((why) => {
      const runtime = this.#buses.get(bus)?.runtime;
      if (runtime instanceof BusRuntime) runtime.lost(attachment, why);
    });
  }

  async #enter(spec: LaneAttachSpec, backend: Backend | RingBackend, host: LateBackendHost): Promise<AttachedDevice> {
    try {
      // The bus may have gone while the backend was opened.
      const bus = this.#driverBus(spec.bus);
      const attached = bus.attach(spec, backend, (device) => host.bind(device));
      this.#endHold(this.#bus(spec.bus), bus);
      return attached;
    } catch (error) {
      await backend.close();
      throw error;
    }
  }

  async #detach(bus: string, attachment: string): Promise<null> {
    await this.#driverBus(bus).detach(attachment);
    this.#buses.get(bus)?.noDirectWay.delete(attachment);
    return null;
  }

  async #inspect(): Promise<LaneSnapshot> {
    const buses = [...this.#buses.values()].map(({ runtime }) => runtime.snapshot());
    return { buses, dataPlane: this.#o.dataPlane.snapshot() };
  }

  async #shutdown(): Promise<null> {
    for (const { hold } of this.#buses.values()) hold?.cancel();
    const buses = [...this.#buses.values()].map(({ runtime }) => runtime);
    await Promise.all(buses.map((bus) => bus.suspend()));
    // Those with drivers first: their devices are closed, not lost with the side that serves them.
    const order = [...buses].sort((a, b) => Number(a instanceof DeviceBus) - Number(b instanceof DeviceBus));
    await Promise.all(order.map((bus) => bus.close(false)));
    await Promise.all([...this.#upstreams.values()].map((upstream) => upstream.close()));
    this.#upstreams.clear();
    this.#buses.clear();
    await this.#o.dataPlane.close();
    this.#o.close?.();
    return null;
  }
}
