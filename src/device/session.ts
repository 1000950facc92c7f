import type { Clock } from '../kit/clock.ts';
import { type ErrnoName, errno } from '../kit/errno.ts';
import { VmsgError } from '../kit/errors.ts';
import type { Scheduler } from '../kit/scheduler.ts';
import { Mapping } from '../libc/mapping.ts';
import type { GrantSnapshot, GuestConnection } from '../ports/bus.ts';
import {
  type BusEvent,
  type BusRequest,
  deviceAdded,
  deviceRemoved,
  queueNotifyCall,
  queueNotifyKick,
  queueNotifyProgram,
} from '../virtio-msg/bus-messages.ts';
import type { BusMessage, Dialect, TransportMessage } from '../virtio-msg/dialect.ts';
import { headerBytes, type MessageHeader } from '../virtio-msg/header.ts';
import { type TransportRequest, transportRequests } from '../virtio-msg/transport-messages.ts';
import { Channel, type ChannelCounters, type ChannelHandler, type ChannelSnapshot } from './channel.ts';
import { devicesWindow } from './devices-window.ts';
import type { DeviceEndpoint, DeviceLink } from './endpoint.ts';
import type { FlightRecorder } from './flight-recorder.ts';
import { QueueSignals } from './queue-signals.ts';
import { SharedMemory } from './shared-memory.ts';

const queueNotifyFlags = queueNotifyKick | queueNotifyCall | queueNotifyProgram;

export interface SessionOptions {
  readonly connection: GuestConnection;
  readonly dialect: Dialect;
  readonly devices: ReadonlyMap<number, DeviceEndpoint>;
  /** On the side of a guest that serves devices: binds a device to the memory of a peer. @returns 0 or an errno */
  readonly onBind?: (device: number, peer: number) => number;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly counters: ChannelCounters;
  readonly recorder: FlightRecorder;
  /** The connection cannot go on. */
  readonly onBroken: (reason: string) => void;
}

/** One epoch of a bus with a guest: routes messages, answers bus messages, owns the guest's regions and signals. */
export class BusSession implements ChannelHandler {
  readonly memory: SharedMemory;
  readonly #o: SessionOptions;
  readonly #channel: Channel;
  readonly #signals: QueueSignals;

  constructor(options: SessionOptions) {
    this.#o = options;
    const { connection } = options;
    this.memory = new SharedMemory(connection.resources, options.clock, options.onBind !== undefined);
    this.#signals = new QueueSignals(connection.resources);
    const { port, maxMessageSize } = connection;
    this.#channel = new Channel(
      port,
      options.dialect,
      maxMessageSize,
      this,
      options.scheduler,
      options.counters,
      options.recorder,
    );
    connection.onDoorbell(() => {
      options.counters.doorbellsIn += 1;
      this.#channel.onDoorbell();
    });
  }

  /** Frames may have arrived before anyone listened. */
  start(): void {
    this.#channel.onDoorbell();
  }

  /** The way of one device to this guest. @param peer whose memory its addresses mean */
  link(deviceNumber: number, device: DeviceEndpoint, peer = 0): DeviceLink {
    const channel = this.#channel;
    const { connection } = this.#o;
    return {
      space: this.memory.spaceFor(peer, device),
      memory: this.memory,
      maxMessageSize: connection.maxMessageSize,
      outOfBandKicks: connection.outOfBandKicks,
      sharedMemory: this.#shareOf(device),
      respond: (token, response) => channel.send(response, deviceNumber, token),
      fail: (token, name, error) => this.#fail(deviceNumber, token, transportRequests[name].id, 0, error),
      event: (event) => channel.send(event, deviceNumber, 0),
      used: (queue) => {
        if (!this.#signals.call(deviceNumber, queue)) channel.sendUsed(deviceNumber, queue);
      },
    };
  }

  /** Gives the shared memory of a device bus addresses of this connection. */
  #shareOf(device: DeviceEndpoint): Map<number, bigint> {
    const addresses = new Map<number, bigint>();
    for (const { id, fd, length } of device.sharedMemory) {
      const memory = mapOwn(fd, length);
      const area = memory === undefined ? undefined : this.memory.addOwn(memory);
      // Without memory or an area id this guest sees a device without the region.
      if (area === undefined) memory?.close();
      else addresses.set(id, BigInt(area) << 48n);
    }
    return addresses;
  }

  channelSnapshot(): ChannelSnapshot {
    return this.#channel.snapshot();
  }

  /** Grants mapped on demand; null where the bus has none. */
  grants(): GrantSnapshot | null {
    return this.#o.connection.resources.grants?.snapshot() ?? null;
  }

  deviceAdded(deviceNumber: number): void {
    this.#sendBusEvent({ kind: 'event', name: 'EVENT_DEVICE', body: { device: deviceNumber, state: deviceAdded } });
  }

  deviceRemoved(deviceNumber: number): void {
    this.#signals.clearDevice(deviceNumber);
    this.#sendBusEvent({ kind: 'event', name: 'EVENT_DEVICE', body: { device: deviceNumber, state: deviceRemoved } });
  }

  deviceReset(deviceNumber: number): void {
    this.#signals.clearDevice(deviceNumber);
  }

  available(deviceNumber: number, queue: number, next: number): void {
    const host = this.#o.devices.get(deviceNumber);
    // One authoritative path a queue: an event beside the queue's own kick is not an occurrence.
    if (host === undefined || this.#signals.hasKick(deviceNumber, queue)) this.#o.counters.dropped += 1;
    else host.onAvailable(queue, next);
  }

  transportMessage(message: TransportMessage, header: MessageHeader): void {
    if (message.kind !== 'request') {
      // A driver sends requests and EVENT_AVAIL, which took the short way.
      this.#o.counters.dropped += 1;
      return;
    }
    const host = this.#o.devices.get(header.deviceNumber);
    if (host === undefined) this.#fail(header.deviceNumber, header.token, header.id, header.type, 'ENODEV');
    else host.onRequest(message as TransportRequest, header.token);
  }

  busMessage(message: BusMessage, header: MessageHeader): void {
    if (message.kind === 'request') this.#onBusRequest(message, header.token);
    else this.#o.counters.dropped += 1;
  }

  broken(reason: string): void {
    this.#o.onBroken(reason);
  }

  #onBusRequest(request: BusRequest, token: number): void {
    switch (request.name) {
      case 'GET_DEVICES': {
        const bitmapBytesMax = this.#o.connection.maxMessageSize - headerBytes - 6;
        const body = devicesWindow(this.#o.devices, request.body.offset, request.body.count, bitmapBytesMax);
        this.#channel.send({ kind: 'response', name: 'GET_DEVICES', body }, 0, token);
        return;
      }
      case 'PING':
        this.#channel.send({ kind: 'response', name: 'PING', body: request.body }, 0, token);
        return;
      case 'REGION_ADD':
        this.memory.add(request.body, (result) => this.#sendResult('REGION_ADD', token, result));
        this.#o.connection.resources.discard(request.body.reference);
        return;
      case 'REGION_DEL':
        this.memory.remove(request.body, (result) => this.#sendResult('REGION_DEL', token, result));
        return;
      case 'QUEUE_NOTIFY':
        this.#answerSignals(token, this.#setSignals(request.body));
        if (request.body.flags & queueNotifyKick) this.#o.connection.resources.discard(request.body.kick);
        if (request.body.flags & queueNotifyCall) this.#o.connection.resources.discard(request.body.call);
        return;
      case 'DEVICE_BIND': {
        const { device, peer } = request.body;
        const known = this.#o.devices.has(device);
        const result = known ? (this.#o.onBind?.(device, peer) ?? errno.EOPNOTSUPP) : errno.ENODEV;
        this.#sendResult('DEVICE_BIND', token, result);
        return;
      }
      case 'GRANT_RELEASE': {
        const { first, count } = request.body;
        const answer = (result: number): void =>
          this.#channel.send(
            { kind: 'response', name: 'GRANT_RELEASE', body: { errno: result, first, count } },
            0,
            token,
          );
        const { grants } = this.#o.connection.resources;
        if (grants === undefined) answer(errno.EOPNOTSUPP);
        else grants.release(first, count, answer);
        return;
      }
      case 'SHM_OPEN':
        this.#channel.send({ kind: 'response', name: 'SHM_OPEN', body: this.#openShared(request.body) }, 0, token);
        return;
    }
  }

  #openShared(body: Extract<BusRequest, { name: 'SHM_OPEN' }>['body']) {
    const failed = (error: ErrnoName) => ({ errno: errno[error], reference: 0, length: 0n });
    const device = this.#o.devices.get(body.device);
    if (device === undefined) return failed('ENODEV');
    const memory = device.sharedMemory.find(({ id }) => id === body.index);
    if (memory === undefined) return failed('ENOENT');
    const reference = this.#o.connection.resources.give(memory.fd);
    if (typeof reference === 'string') return failed(reference);
    return { errno: 0, reference, length: BigInt(memory.length) };
  }

  #answerSignals(token: number, result: number | Promise<number>): void {
    const answer = (errno: number): void => this.#sendResult('QUEUE_NOTIFY', token, errno);
    if (typeof result === 'number') answer(result);
    else void result.then(answer);
  }

  #setSignals(body: Extract<BusRequest, { name: 'QUEUE_NOTIFY' }>['body']): number | Promise<number> {
    if (!this.#o.connection.outOfBandKicks) return errno.EOPNOTSUPP;
    const host = this.#o.devices.get(body.device);
    if (host === undefined) return errno.ENODEV;
    if (body.queue >= host.queueCount || (body.flags & ~queueNotifyFlags) !== 0) return errno.EINVAL;
    if ((body.flags & queueNotifyProgram) === 0) return this.#signals.set(body, () => host.onAvailable(body.queue, 0));
    if (!host.hasProgram) return errno.EPERM;
    return body.flags === queueNotifyProgram ? 0 : this.#signals.setForProgram(body, host);
  }

  #sendResult(name: 'REGION_ADD' | 'REGION_DEL' | 'QUEUE_NOTIFY' | 'DEVICE_BIND', token: number, result: number): void {
    this.#channel.send({ kind: 'response', name, body: { errno: result } }, 0, token);
  }

  #fail(device: number, token: number, id: number, type: number, error: ErrnoName): void {
    this.#o.counters.failures += 1;
    const body = { device, token, id, type, reserved: 0, errno: errno[error] };
    this.#sendBusEvent({ kind: 'event', name: 'FAILURE', body });
  }

  #sendBusEvent(event: BusEvent): void {
    this.#channel.send(event, 0, 0);
  }

  /** Ends the epoch: no more messages; regions go with their last lease. */
  close(): void {
    this.#channel.close();
    this.#signals.clear();
    this.memory.clear();
    this.#o.connection.close();
  }
}

function mapOwn(fd: number, length: number): Mapping | undefined {
  try {
    return Mapping.map(fd, 0, length, { writable: true });
  } catch (error) {
    if (error instanceof VmsgError) return undefined;
    throw error;
  }
}
