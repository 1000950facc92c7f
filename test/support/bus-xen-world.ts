import { XenTransport } from '../../src/bridge/bus/xen/transport.ts';
import { limits } from '../../src/kit/limits.ts';
import type { Closable } from '../../src/kit/scope.ts';
import type { Domid, Hypervisor, Xenstore } from '../../src/ports/hypervisor.ts';
import { dialectD5 } from '../../src/virtio-msg/dialect.ts';
import { backendPath, frontendPath } from '../../src/virtio-msg/xen-bus.ts';
import { type BusEnd, BusService, type Life } from './bus-service.ts';

/** The hypervisor as one process sees it. */
export interface XenProcess extends Hypervisor {
  /** What the kernel does when the process is killed: its mappings and shares end first, then all it has open. */
  kill(): void;
}

/** Where the two sides of a bus run: one machine, maybe one domain. */
export interface XenMachine extends Closable {
  readonly serviceDomid: Domid;
  readonly domid: Domid;
  /** Of the bus between them. */
  readonly index: number;
  process(domid: Domid): XenProcess;
  /** What is open on both sides, in words. */
  held(): string;
}

export interface XenBusOptions {
  readonly role?: 'driver' | 'device';
  readonly maxMessageSizeBytes?: number;
  readonly poolMaxBytes?: number;
}

/** A machine with Xen where the real service serves a disk (device 1) and entropy (device 2) to one domain. */
export class XenBusWorld<M extends XenMachine = XenMachine> {
  readonly machine: M;
  readonly service: BusService<XenTransport>;
  readonly #o: XenBusOptions;

  constructor(machine: M, options: XenBusOptions) {
    this.machine = machine;
    this.#o = options;
    const { maxMessageSizeBytes = 64 } = options;
    this.service = new BusService({
      domid: machine.domid,
      maxMessageSizeBytes,
      open: (life) => this.#open(life, maxMessageSizeBytes),
    });
  }

  #open({ clock }: Life, maxMessageSizeBytes: number): BusEnd<XenTransport> {
    const { role = 'driver', poolMaxBytes = limits.poolMaxBytes } = this.#o;
    const { serviceDomid, domid, index } = this.machine;
    const process = this.machine.process(serviceDomid);
    const transport = new XenTransport({
      grants: process.openGrantMapper(),
      channels: process.openEventChannels(),
      xenstore: process.openXenstore(),
      serviceDomid,
      domid,
      index,
      role,
      maxMessageSizeBytes,
      poolMaxBytes,
      revision: dialectD5.spec.revision,
      dialect: 5,
      clock,
    });
    return { transport, kill: () => process.kill(), close: () => process.kill() };
  }

  /** A process of the guest's domain. */
  process(): ReturnType<M['process']> {
    return this.machine.process(this.machine.domid) as ReturnType<M['process']>;
  }

  /** A node that the guest wrote. */
  node(name: string): string | undefined {
    return this.withStore((store) => store.read(`${this.#frontend}/${name}`));
  }

  /** State of the service's side. */
  get backendState(): string | undefined {
    return this.withStore((store) => store.read(`${this.#backend}/state`));
  }

  /** Writes or removes a node, as the domain of the service may. */
  setNode(name: string, value: string | undefined): void {
    this.#set(`${this.#frontend}/${name}`, value);
  }

  /** Writes or removes a node of the service. */
  setBackendNode(name: string, value: string | undefined): void {
    this.#set(`${this.#backend}/${name}`, value);
  }

  get #frontend(): string {
    return frontendPath(this.machine.domid, this.machine.index);
  }

  get #backend(): string {
    const { serviceDomid, domid, index } = this.machine;
    return backendPath(serviceDomid, domid, index);
  }

  #set(path: string, value: string | undefined): void {
    this.withStore((store) => (value === undefined ? store.remove(path) : store.write(path, value)));
  }

  withStore<T>(use: (store: Xenstore) => T): T {
    const store = this.machine.process(this.machine.serviceDomid).openXenstore();
    try {
      return use(store);
    } finally {
      store.close();
    }
  }
}
