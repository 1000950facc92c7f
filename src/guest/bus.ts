import { type Clock, systemClock } from '../kit/clock.ts';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { Fd } from '../libc/fd.ts';
import {
  type BusEvent,
  deviceAdded,
  deviceRemoved,
  queueNotifyCall,
  queueNotifyKick,
  queueNotifyProgram,
} from '../virtio-msg/bus-messages.ts';
import type { CanonicalMessage } from '../virtio-msg/dialect.ts';
import { type MessageHeader, typeBus } from '../virtio-msg/header.ts';
import type { TransportEvent } from '../virtio-msg/transport-messages.ts';
import type { BusAccess, QueueSignal } from './access.ts';
import { BusMemories, type MemoryUse } from './bus-memories.ts';
import type { Attachment, BusEvents, BusOptions, BusStatistics, DeviceHooks, Phase } from './bus-types.ts';
import { listDevices } from './device-list.ts';
import { Emitter } from './emitter.ts';
import { serviceError } from './errno.ts';
import { Link, type LinkCounters } from './link.ts';
import { LoopbackAccess } from './loopback-access.ts';
import type { GuestMemory } from './memory.ts';
import { Reconnector } from './reconnect.ts';
import {
  type BusRequestBody,
  type BusRequestName,
  type BusResponseBody,
  failedTarget,
  type OnReplace,
  RequestTable,
  type Target,
  type TransportRequestBody,
  type TransportRequestName,
  type TransportResponseBody,
} from './requests.ts';
import type { GuestTransport, TransportFactory, TransportTerms } from './transport.ts';

/**
 * A virtio-msg bus as its driver side sees it. Made by `connect`.
 *
 * All failures are `VmsgError`: 'timeout' no answer in time, 'bus-lost' the connection ended, 'not-found' no such
 * device, 'unavailable' the service could not serve the request now, 'protocol-violation' an answer that
 * contradicts its request, 'limit-reached' too many requests without an answer.
 */
export class GuestBus extends Emitter<BusEvents> {
  readonly clock: Clock;
  readonly #access: BusAccess;
  readonly #memories: BusMemories;
  readonly #requests: RequestTable;
  readonly #devices = new Map<number, DeviceHooks>();
  readonly #counters: LinkCounters = { messagesIn: 0, messagesOut: 0, malformed: 0, dropped: 0 };
  readonly #reconnector: Reconnector | undefined;
  #state: 'connected' | 'reconnecting' | 'closed' = 'connected';
  #link: Link;
  #doorbells = { in: 0, out: 0 };
  #reconnects = 0;
  /** Device numbers known to exist, once the list was read. */
  #known: Set<number> | undefined;
  /** Things are handed over one request at a time, so that few wait at the service. */
  #offerTurn: Promise<unknown> = Promise.resolve();
  #pings = 0;

  private constructor(transport: GuestTransport, access: BusAccess, options: BusOptions) {
    super();
    this.#access = access;
    this.clock = options.clock ?? systemClock;
    this.#requests = new RequestTable(this.clock, options.requestTimeoutMs ?? limits.guestRequestTimeoutMs);
    this.#link = this.#makeLink(transport);
    const announcer = {
      add: (body: (transport: GuestTransport) => BusRequestBody<'REGION_ADD'>, phase: Phase) =>
        this.#offer('REGION_ADD', body, phase),
      remove: (region: { peer: number; area: number }) =>
        this.busRequest('REGION_DEL', { ...region, reserved: 0 }, 'reject'),
    };
    this.#memories = new BusMemories(access, announcer, options.memoryBytes || undefined);
    if (access.grants !== undefined) access.grants.release = (first, count) => this.#releaseGrants(first, count);
    const { reconnect = false } = options;
    if (reconnect !== false) {
      const totalMs = reconnect === true ? limits.guestReconnectDefaultMs : reconnect.totalMs;
      this.#reconnector = new Reconnector(access.connect, this.clock, totalMs);
    }
  }

  /** Opens a bus over any transport; `connect` does so over the loopback bus and over Xen. */
  static async open(way: TransportFactory | BusAccess, options: BusOptions = {}): Promise<GuestBus> {
    const access = typeof way === 'function' ? new LoopbackAccess(way) : way;
    let bus: GuestBus | undefined;
    try {
      bus = new GuestBus(await access.connect(undefined), access, options);
      bus.#link.start();
      const bytes = options.memoryBytes ?? (access.grants === undefined ? limits.guestMemoryDefaultBytes : 0);
      if (bytes > 0) await bus.memory.addRegion(bytes);
      return bus;
    } catch (error) {
      bus?.close();
      access.close();
      throw error;
    }
  }

  /** The memory that devices of this bus can be pointed to. */
  get memory(): GuestMemory {
    return this.#memories.main;
  }

  /** The memory for one device: a device that another domain serves itself has memory of its own. */
  memoryFor(device: number): Promise<MemoryUse> {
    return this.#memories.use(device);
  }

  /** Terms of the present connection, or of the last one. */
  get terms(): TransportTerms {
    return this.#link.transport.terms;
  }

  get state(): 'connected' | 'reconnecting' | 'closed' {
    return this.#state;
  }

  get statistics(): BusStatistics {
    const { counters } = this.#link.transport;
    return {
      ...this.#counters,
      doorbellsIn: this.#doorbells.in + counters.doorbellsIn,
      doorbellsOut: this.#doorbells.out + counters.doorbellsOut,
      reconnects: this.#reconnects,
    };
  }

  /** Numbers of the devices that are present, ascending. From then on losses and arrivals are told by events. */
  async devices(): Promise<number[]> {
    const found = await listDevices(this.terms.maxMessageSize, (body) => this.busRequest('GET_DEVICES', body));
    this.#known = new Set(found);
    return found;
  }

  /** Asks the service for a sign of life. @returns milliseconds until it came */
  async ping(): Promise<number> {
    this.#pings = (this.#pings + 1) >>> 0;
    const data = this.#pings;
    const start = this.clock.nowMs();
    const response = await this.busRequest('PING', { data });
    if (response.data !== data) throw new VmsgError('protocol-violation', 'PING: the answer has other data');
    return this.clock.nowMs() - start;
  }

  /** Sends a request to a device and waits for its response. Repeated when the bus reconnects and resumes. */
  request<N extends TransportRequestName>(
    device: number,
    name: N,
    body: TransportRequestBody<N>,
  ): Promise<TransportResponseBody<N>> {
    const message = { kind: 'request', name, body } as never;
    return this.#exchange(device, message, 'repeat', 'normal') as Promise<TransportResponseBody<N>>;
  }

  /** Sends a request to the bus itself. */
  busRequest<N extends BusRequestName>(
    name: N,
    body: BusRequestBody<N>,
    onReplace: OnReplace = 'repeat',
    phase: Phase = 'normal',
  ): Promise<BusResponseBody<N>> {
    const message = { kind: 'request', name, body } as never;
    return this.#exchange('bus', message, onReplace, phase) as Promise<BusResponseBody<N>>;
  }

  /** Makes a signal the authoritative notification path of a queue (QUEUE_NOTIFY). */
  async queueNotify(device: number, queue: number, signal: QueueSignal, phase: Phase = 'normal'): Promise<void> {
    const flags = queueNotifyKick | queueNotifyCall | (signal.forProgram ? queueNotifyProgram : 0);
    const { errno } = await this.#offer(
      'QUEUE_NOTIFY',
      (transport) => ({ device, queue, flags, ...signal.offer(transport) }),
      phase,
    );
    if (errno !== 0) throw serviceError(`QUEUE_NOTIFY of queue ${queue}`, errno);
  }

  /** A signal for `queueNotify`; the caller closes it. */
  makeQueueSignal(forProgram: boolean): QueueSignal {
    return this.#access.makeQueueSignal(forProgram);
  }

  async #releaseGrants(first: number, count: number): Promise<void> {
    if (this.#state !== 'connected' || this.terms.persistentGrants !== true) return;
    const { errno } = await this.busRequest('GRANT_RELEASE', { first, count }, 'reject').catch((error: unknown) => {
      // A service that is gone has no mapping any more.
      if (error instanceof VmsgError && error.code === 'bus-lost') return { errno: 0 };
      throw error;
    });
    if (errno !== 0) throw serviceError(`GRANT_RELEASE of ${count} from ${first}`, errno);
  }

  /** Takes a descriptor that a response has named; the caller closes it. */
  takeDescriptor(index: number): Fd | undefined {
    return this.#link.transport.takeDescriptor(index);
  }

  #offer<N extends 'REGION_ADD' | 'QUEUE_NOTIFY'>(
    name: N,
    body: (transport: GuestTransport) => BusRequestBody<N>,
    phase: Phase,
  ): Promise<BusResponseBody<N>> {
    const send = async () => {
      this.#mustBeOpen();
      if (phase === 'normal' && this.#state !== 'connected') throw lostError('the bus is reconnecting');
      return this.busRequest(name, body(this.#link.transport), 'reject', phase);
    };
    const turn = this.#offerTurn.then(send, send);
    this.#offerTurn = turn.catch(() => undefined);
    return turn;
  }

  async #exchange(target: Target, message: never, onReplace: OnReplace, phase: Phase): Promise<unknown> {
    this.#mustBeOpen();
    const held = this.#state !== 'connected' && phase === 'normal';
    if (held && onReplace === 'reject') throw lostError('the bus is reconnecting');
    const { frame, response } = this.#requests.issue(target, message, this.terms.maxMessageSize, onReplace);
    // A frame that is held stays in the table; the resume sends it.
    if (!held) this.#link.send(frame);
    return response;
  }

  #mustBeOpen(): void {
    if (this.#state === 'closed') throw lostError('the bus is closed');
  }

  /** Tells a device that a queue has new buffers (EVENT_AVAIL). @param next 0 without NOTIFICATION_DATA */
  notify(device: number, queue: number, next = 0): void {
    // Nothing to keep while reconnecting: the resume notifies every queue.
    if (this.#state === 'connected') this.#link.notify(device, queue, next);
  }

  /** Routes the messages of a device to `hooks`. @throws VmsgError 'in-use' when the device is open already */
  attach(device: number, hooks: DeviceHooks): Attachment {
    this.#mustBeOpen();
    if (this.#devices.has(device)) throw new VmsgError('in-use', `device ${device} is open already`);
    const devices = this.#devices;
    devices.set(device, hooks);
    return {
      get active() {
        return devices.get(device) === hooks;
      },
      end() {
        if (this.active) devices.delete(device);
      },
    };
  }

  #makeLink(transport: GuestTransport): Link {
    const link: Link = new Link(
      transport,
      {
        onMessage: (header, message) => this.#onMessage(header, message),
        onUsed: (device, queue) => {
          const hooks = this.#devices.get(device);
          if (hooks === undefined) this.#counters.dropped += 1;
          else hooks.onUsed(queue);
        },
        onLost: (error) => {
          if (link === this.#link) this.#onLost(error);
        },
      },
      this.#counters,
    );
    return link;
  }

  #onMessage(header: MessageHeader, message: CanonicalMessage): void {
    const target: Target = header.type & typeBus ? 'bus' : header.deviceNumber;
    let taken = false;
    if (message.kind === 'response') taken = this.#requests.settle(target, header.token, message);
    else if (message.kind === 'event') taken = this.#onEvent(target, message);
    if (!taken) this.#counters.dropped += 1;
  }

  #onEvent(target: Target, message: BusEvent | TransportEvent): boolean {
    switch (message.name) {
      case 'EVENT_DEVICE':
        return this.#onDeviceEvent(message.body.device, message.body.state);
      case 'FAILURE': {
        const { device, token, id, type, errno } = message.body;
        const failed = failedTarget(type, device);
        const to = failed === 'bus' ? '' : ` of device ${failed}`;
        return this.#requests.fail(failed, token, id, (name) => serviceError(`${name}${to}`, errno));
      }
      case 'EVENT_CONFIG': {
        const hooks = target === 'bus' ? undefined : this.#devices.get(target);
        hooks?.onConfig(message.body);
        return hooks !== undefined;
      }
      case 'EVENT_USED':
      case 'EVENT_AVAIL':
        return false;
    }
  }

  #onDeviceEvent(device: number, state: number): boolean {
    if (state === deviceAdded) {
      this.#known?.add(device);
      this.emit('added', { device });
    } else if (state === deviceRemoved) {
      this.#forget(device);
    } else return false;
    return true;
  }

  #forget(device: number): void {
    this.#known?.delete(device);
    const error = new VmsgError('not-found', `device ${device} was removed`);
    const hooks = this.#devices.get(device);
    this.#devices.delete(device);
    this.#requests.rejectAll(error, device);
    hooks?.lost(error);
    this.emit('removed', { device });
  }

  #onLost(cause: Error): void {
    this.#link.transport.close();
    this.#requests.suspend(lostError(cause.message));
    // While reconnecting, the attempt sees its requests fail and goes on.
    if (this.#state !== 'connected') return;
    const reconnector = this.#reconnector;
    if (reconnector === undefined) {
      this.#end(lostError(cause.message));
      return;
    }
    this.#state = 'reconnecting';
    this.emit('reconnecting', { cause });
    const finished = reconnector.run(this.terms, (transport, resumed) => this.#adopt(transport, resumed));
    finished.catch((error: Error) => this.#end(lostError(error.message)));
  }

  /** Takes a new connection into use, in the order of docs/protocol/loopback.md, "Epochs and resuming". */
  async #adopt(transport: GuestTransport, resumed: boolean): Promise<void> {
    if (this.#state === 'closed') {
      transport.close();
      return;
    }
    this.#doorbells.in += this.#link.transport.counters.doorbellsIn;
    this.#doorbells.out += this.#link.transport.counters.doorbellsOut;
    this.#link = this.#makeLink(transport);
    this.#reconnects += 1;
    if (!resumed) this.#loseDevices(lostError('the service did not keep the devices'));
    this.#link.start();
    await this.#memories.announce();
    const devices = [...this.#devices.values()];
    for (const hooks of devices) await hooks.rewire();
    this.#state = 'connected';
    for (const frame of this.#requests.resume()) this.#link.send(frame);
    this.#memories.connected();
    this.emit('reconnected', { epoch: transport.terms.epoch, resumed });
    await Promise.all(devices.map((hooks) => hooks.resumed()));
    await this.#compareDevices();
  }

  /** Devices may have come and gone while nobody listened. */
  async #compareDevices(): Promise<void> {
    const before = this.#known;
    if (before === undefined) return;
    const now = await this.devices().catch(() => undefined);
    if (now === undefined) return;
    for (const device of before) if (!now.includes(device)) this.#forget(device);
    for (const device of now) if (!before.has(device)) this.emit('added', { device });
  }

  #loseDevices(error: VmsgError): void {
    const devices = [...this.#devices.values()];
    this.#devices.clear();
    this.#requests.rejectAll(error);
    for (const hooks of devices) hooks.lost(error);
  }

  #end(error: VmsgError): void {
    if (this.#state === 'closed') return;
    this.#state = 'closed';
    this.#link.transport.close();
    this.#loseDevices(error);
    this.#memories.lost(error);
    this.#access.close();
    this.emit('lost', error);
  }

  /** Ends the connection; the service resets the devices. Whatever waits ends with 'bus-lost'. Idempotent. */
  close(): void {
    if (this.#state !== 'closed') {
      this.#state = 'closed';
      this.#reconnector?.cancel();
      this.#link.transport.close();
      this.#loseDevices(lostError('the bus was closed'));
    }
    this.#memories.close();
    this.#access.close();
  }
}

const lostError = (why: string): VmsgError => new VmsgError('bus-lost', `the bus connection ended: ${why}`);
