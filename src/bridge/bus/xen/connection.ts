import { RingPort } from '../../../device/ring-port.ts';
import { XenResources } from '../../../device/xen-resources.ts';
import { assert } from '../../../kit/assert.ts';
import type { Clock } from '../../../kit/clock.ts';
import { limits } from '../../../kit/limits.ts';
import type { Pace } from '../../../kit/pace.ts';
import { Scope } from '../../../kit/scope.ts';
import type { Admission, BusPort, GuestConnection } from '../../../ports/bus.ts';
import {
  type Domid,
  type EventChannel,
  type EventChannels,
  type GrantMapper,
  grantPageBytes,
  HypervisorFault,
} from '../../../ports/hypervisor.ts';
import { RingConsumer, RingProducer, ringCapacity, slotBytes } from '../../../virtio-msg/ring.ts';
import { aliveByte } from '../../../virtio-msg/xen-bus.ts';
import type { FrontendAnswer } from './frontend.ts';

export interface XenConnectionOptions {
  readonly answer: FrontendAnswer;
  readonly domid: Domid;
  readonly grants: GrantMapper;
  readonly channels: EventChannels;
  readonly poolMaxBytes: number;
  readonly clock: Clock;
  readonly work: Pace;
  readonly diagnosed: (text: string) => void;
  /** All of it is released. The reason is the guest's doing; undefined when we closed. */
  readonly onClosed: (connection: XenConnection, reason: string | undefined) => void;
}

/** One guest on a Xen bus, from its answer to an offer to its end. */
export class XenConnection implements GuestConnection {
  readonly resources: XenResources;
  readonly #o: XenConnectionOptions;
  readonly #scope = new Scope();
  #page: Uint8Array = new Uint8Array(0);
  #port: BusPort | undefined;
  #admission: Admission | undefined;
  #listener: (() => void) | undefined;
  #closed = false;

  private constructor(options: XenConnectionOptions) {
    this.#o = options;
    const { grants: mapper, answer } = options;
    this.resources = this.#scope.own(new XenResources({ ...options, mapper, persistent: answer.persistent }));
  }

  /** Binds and maps what the guest has named. @returns why that is refused, as a sentence. @throws HypervisorError */
  static open(options: XenConnectionOptions): XenConnection | string {
    const connection = new XenConnection(options);
    let refused: string | undefined = 'the service failed';
    try {
      refused = connection.#open();
    } finally {
      if (refused !== undefined) connection.#release();
    }
    return refused ?? connection;
  }

  #open(): string | undefined {
    const { answer, domid, channels } = this.#o;
    const slot = slotBytes(answer.maxMessageSize);
    for (const { length } of [answer.toService, answer.toGuest]) {
      const small = ringCapacity(length * grantPageBytes, slot) < limits.ringSlotsMin;
      if (small) return `a ring of ${length} pages is too small for messages of ${answer.maxMessageSize} bytes`;
    }
    const channel = channels.bindInterdomain(domid, answer.port, () => this.#onEvent());
    if (channel instanceof HypervisorFault) {
      return `event channel port ${answer.port} of domain ${domid} cannot be bound: ${channel.call} gives ${channel.errno}`;
    }
    this.#scope.own(channel);
    const incoming = this.#map('ring-to-service-refs', answer.toService);
    if (typeof incoming === 'string') return incoming;
    const outgoing = this.#map('ring-to-guest-refs', answer.toGuest);
    if (typeof outgoing === 'string') return outgoing;
    // Last, so that the guest hears of our end before anything else is unmapped.
    const page = this.#mapAlive(channel);
    if (typeof page === 'string') return page;
    this.#page = page;
    if (Atomics.load(page, aliveByte.guest) !== 1) return 'the alive byte of the guest is not set';
    Atomics.store(page, aliveByte.service, 1);
    this.#port = new RingPort(
      slot,
      new RingConsumer(incoming, slot, answer.sleepWords),
      new RingProducer(outgoing, slot, answer.sleepWords),
      () => channel.notify(),
    );
    return undefined;
  }

  #map(node: string, references: Uint32Array): Uint8Array | string {
    const mapping = this.#o.grants.map(this.#o.domid, references, 'write');
    if (mapping instanceof HypervisorFault) return this.#unmappable(node, mapping);
    return this.#scope.own(mapping).bytes;
  }

  /** The first page of the ring once more, alone: only so will the kernel clear our alive byte when this process ends. */
  #mapAlive(channel: EventChannel): Uint8Array | string {
    const first = this.#o.answer.toService.subarray(0, 1);
    const notice = { byte: aliveByte.service, port: channel.port };
    const mapping = this.#o.grants.map(this.#o.domid, first, 'write', notice);
    if (mapping instanceof HypervisorFault) return this.#unmappable('ring-to-service-refs', mapping);
    return this.#scope.own(mapping).bytes;
  }

  #unmappable(node: string, { call, errno, domid }: HypervisorFault): string {
    return `${node} of domain ${domid} cannot be mapped: ${call} gives ${errno}; the pages have to be granted, for writing, to the domain of the service before the references are written`;
  }

  #onEvent(): void {
    if (this.#closed) return;
    if (Atomics.load(this.#page, aliveByte.guest) === 0) this.#end('the guest ended without closing the bus');
    else this.#listener?.();
  }

  admitted(admission: Admission): void {
    this.#admission = admission;
  }

  get port(): BusPort {
    assert(this.#port !== undefined, 'the connection is open');
    return this.#port;
  }

  get admission(): Admission {
    assert(this.#admission !== undefined, 'the guest was admitted');
    return this.#admission;
  }

  get maxMessageSize(): number {
    return this.#o.answer.maxMessageSize;
  }

  get outOfBandKicks(): boolean {
    return this.#o.answer.queueChannels;
  }

  onDoorbell(listener: () => void): void {
    this.#listener = listener;
  }

  #end(reason: string | undefined): void {
    if (this.#closed) return;
    this.#release();
    this.#o.onClosed(this, reason);
  }

  #release(): void {
    this.#closed = true;
    this.#listener = undefined;
    this.#page = new Uint8Array(0);
    this.#scope.close();
  }

  close(): void {
    this.#end(undefined);
  }
}
