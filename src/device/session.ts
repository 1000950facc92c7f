import type { Clock } from '../kit/clock.ts';
import { type ErrnoName, errno } from '../kit/errno.ts';
import { limits } from '../kit/limits.ts';
import type { Scheduler } from '../kit/scheduler.ts';
import type { GuestConnection } from '../ports/bus.ts';
import {
  type BusEvent,
  type BusRequest,
  deviceAdded,
  deviceRemoved,
  queueNotifyCall,
  queueNotifyKick,
  regionReadOnly,
} from '../virtio-msg/bus-messages.ts';
import type { BusMessage, Dialect, TransportMessage } from '../virtio-msg/dialect.ts';
import { headerBytes, type MessageHeader } from '../virtio-msg/header.ts';
import { type TransportRequest, transportRequests } from '../virtio-msg/transport-messages.ts';
import { AreaTable } from './area-table.ts';
import { Channel, type ChannelCounters, type ChannelHandler, type ChannelSnapshot } from './channel.ts';
import { devicesWindow } from './devices-window.ts';
import type { FlightRecorder } from './flight-recorder.ts';
import type { DeviceHost, DeviceLink } from './host.ts';
import { QueueSignals } from './queue-signals.ts';

export interface SessionOptions {
  readonly connection: GuestConnection;
  readonly dialect: Dialect;
  readonly devices: ReadonlyMap<number, DeviceHost>;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly counters: ChannelCounters;
  readonly recorder: FlightRecorder;
  /** The connection cannot go on. */
  readonly onBroken: (reason: string) => void;
}

/** One epoch of a bus with a guest: routes messages, answers bus messages, owns the guest's regions and signals. */
export class BusSession implements ChannelHandler {
  readonly areas: AreaTable;
  readonly #o: SessionOptions;
  readonly #channel: Channel;
  readonly #signals: QueueSignals;

  constructor(options: SessionOptions) {
    this.#o = options;
    const { connection } = options;
    this.areas = new AreaTable(options.clock);
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

  /** The way of one device to this guest. */
  link(deviceNumber: number, host: DeviceHost): DeviceLink {
    const channel = this.#channel;
    return {
      space: this.areas.spaceFor(host),
      maxMessageSize: this.#o.connection.maxMessageSize,
      respond: (token, response) => channel.send(response, deviceNumber, token),
      fail: (token, name, error) => this.#fail(deviceNumber, token, transportRequests[name].id, 0, error),
      event: (event) => channel.send(event, deviceNumber, 0),
      used: (queue) => {
        if (!this.#signals.call(deviceNumber, queue)) channel.sendUsed(deviceNumber, queue);
      },
    };
  }

  /** The message path, for people. */
  channelSnapshot(): ChannelSnapshot {
    const { dialect, connection } = this.#o;
    return {
      dialect: dialect.spec.name,
      maxMessageSizeBytes: connection.maxMessageSize,
      slotBytes: connection.port.slotBytes,
      backlogMessages: this.#channel.backlogLength,
    };
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

  available(deviceNumber: number, queue: number): void {
    const host = this.#o.devices.get(deviceNumber);
    // One authoritative path a queue: an event beside the queue's own kick is not an occurrence.
    if (host === undefined || this.#signals.hasKick(deviceNumber, queue)) this.#o.counters.dropped += 1;
    else host.onAvailable(queue);
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
        this.#sendResult('REGION_ADD', token, this.#addRegion(request.body));
        this.#o.connection.resources.discard(request.body.reference);
        return;
      case 'REGION_DEL':
        this.#removeRegion(request.body, token);
        return;
      case 'QUEUE_NOTIFY':
        this.#sendResult('QUEUE_NOTIFY', token, this.#setSignals(request.body));
        if (request.body.flags & queueNotifyKick) this.#o.connection.resources.discard(request.body.kick);
        if (request.body.flags & queueNotifyCall) this.#o.connection.resources.discard(request.body.call);
        return;
    }
  }

  #addRegion(body: Extract<BusRequest, { name: 'REGION_ADD' }>['body']): number {
    const { area, flags, offset, length } = body;
    const aligned = offset % 4096n === 0n && length % 4096n === 0n && offset < 1n << 52n;
    const wellFormed = body.peer === 0 && body.reserved === 0 && (flags & ~regionReadOnly) === 0 && aligned;
    if (!wellFormed || length > BigInt(limits.regionMaxBytes)) return errno.EINVAL;
    const refused = this.areas.check(area, Number(length));
    if (refused !== undefined) return errno[refused];
    const readOnly = (flags & regionReadOnly) !== 0;
    const backing = this.#o.connection.resources.openRegion(body.reference, offset, length, readOnly);
    if (typeof backing === 'string') return errno[backing];
    this.areas.add(area, backing, readOnly);
    return 0;
  }

  #removeRegion(body: Extract<BusRequest, { name: 'REGION_DEL' }>['body'], token: number): void {
    if (body.peer !== 0 || body.reserved !== 0) this.#sendResult('REGION_DEL', token, errno.EINVAL);
    else {
      this.areas.remove(body.area, (error) => {
        this.#sendResult('REGION_DEL', token, error === undefined ? 0 : errno[error]);
      });
    }
  }

  #setSignals(body: Extract<BusRequest, { name: 'QUEUE_NOTIFY' }>['body']): number {
    const host = this.#o.devices.get(body.device);
    if (host === undefined) return errno.ENODEV;
    if (body.queue >= host.queueCount || (body.flags & ~3) !== 0) return errno.EINVAL;
    return this.#signals.set(body, () => host.onAvailable(body.queue));
  }

  #sendResult(name: 'REGION_ADD' | 'REGION_DEL' | 'QUEUE_NOTIFY', token: number, result: number): void {
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
    this.areas.clear();
    this.#o.connection.close();
  }
}
