import { newCounters } from '../device/channel.ts';
import { FlightRecorder } from '../device/flight-recorder.ts';
import { DeviceHost } from '../device/host.ts';
import { deviceModel } from '../device/model.ts';
import { BusSession } from '../device/session.ts';
import { type Clock, systemClock } from '../kit/clock.ts';
import { errno } from '../kit/errno.ts';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import { type Scheduler, systemScheduler } from '../kit/scheduler.ts';
import { LoopPoller, type Poller } from '../libc/poll.ts';
import type { Backend } from '../ports/backend.ts';
import type { GuestConnection } from '../ports/bus.ts';
import type { Hypervisor } from '../ports/hypervisor.ts';
import { dialectD5 } from '../virtio-msg/dialect.ts';
import { XenHypervisor } from '../xen/hypervisor.ts';
import { type DeviceAccess, loopbackDeviceAccess } from './device-connection.ts';
import { Emitter } from './emitter.ts';
import type { XenOptions } from './xen-access.ts';
import { XenDeviceAccess } from './xen-device.ts';

interface DeviceServerParts {
  /** Connect again when the connection is lost, for at most `totalMs`; drivers see their devices leave and come. */
  readonly reconnect?: { readonly totalMs: number };
  readonly clock?: Clock;
  readonly poller?: Poller;
  readonly scheduler?: Scheduler;
}

/** Where the bus is, whose role is `device`. */
export type DeviceServerOptions = DeviceServerParts &
  (
    | {
        /** Path of a loopback bus. */
        readonly path: string;
        /** Largest message this guest handles, bytes; 264 by default. */
        readonly maxMessageSize?: number;
        readonly xen?: undefined;
      }
    | {
        /** A bus of this Xen domain. */
        readonly xen: Omit<XenOptions, 'memory' | 'persistent' | 'queueNotify'>;
        readonly path?: undefined;
        /** Another one than this machine's, for tests. */
        readonly hypervisor?: Hypervisor;
      }
  );

export interface DeviceServerEvents {
  /** Connected again after a loss. */
  reconnected: { readonly epoch: bigint };
  /** The connection is gone for good. */
  lost: VmsgError;
  /** Something that a driver shares cannot be used: what, why, and what to check. */
  diagnosed: { readonly text: string };
}

interface Served {
  readonly host: DeviceHost;
  readonly backend: Backend;
  /** Memory peer whose driver uses the device; 0: nobody. */
  peer: number;
}

const retryMs = 100;

/**
 * Serves virtio devices from a guest process: the drivers are guests of other buses, and the bridge relays messages
 * and passes their memory on. Each device is a `Backend`: it describes itself and completes requests. Made by
 * `serveDevices`.
 */
export class DeviceServer extends Emitter<DeviceServerEvents> {
  readonly #o: DeviceServerOptions;
  readonly #access: DeviceAccess;
  readonly #clock: Clock;
  readonly #scheduler: Scheduler;
  readonly #devices = new Map<number, Served>();
  readonly #hosts = new Map<number, DeviceHost>();
  #session: BusSession | undefined;
  #closed = false;

  private constructor(options: DeviceServerOptions) {
    super();
    this.#o = options;
    this.#clock = options.clock ?? systemClock;
    this.#scheduler = options.scheduler ?? systemScheduler;
    this.#access = accessOf(options, this.#clock, options.poller ?? new LoopPoller());
  }

  /** Rejects as `connect` does. */
  static async open(options: DeviceServerOptions): Promise<DeviceServer> {
    const server = new DeviceServer(options);
    try {
      await server.#connect();
      return server;
    } catch (error) {
      server.#access.close();
      throw error;
    }
  }

  async #connect(): Promise<bigint> {
    const connection = await this.#access.connect({
      onLost: (reason) => this.#onLost(reason),
      diagnosed: (text) => this.emit('diagnosed', { text }),
    });
    this.#begin(connection);
    return connection.admission.epoch;
  }

  #begin(connection: GuestConnection): void {
    const session = new BusSession({
      connection,
      dialect: dialectD5,
      devices: this.#hosts,
      clock: this.#clock,
      scheduler: this.#scheduler,
      counters: newCounters(),
      recorder: new FlightRecorder(this.#clock, limits.flightRecords),
      onBind: (device, peer) => this.#bind(device, peer),
      onBroken: (reason) => {
        connection.close();
        this.#onLost(reason);
      },
    });
    this.#session = session;
    for (const [number, { host }] of this.#devices) host.connect(session.link(number, host), false);
    session.start();
  }

  /** The driver of a device changes. @returns 0 or an errno */
  #bind(device: number, peer: number): number {
    const served = this.#devices.get(device);
    const session = this.#session;
    if (served === undefined || session === undefined) return errno.ENODEV;
    if (peer !== 0 && session.memory.areasOf(peer) === undefined) return errno.ENOSPC;
    this.#unbind(served);
    served.peer = peer;
    // Also without a driver: the device describes itself to the bridge.
    served.host.connect(session.link(device, served.host, peer), false);
    return 0;
  }

  #unbind(served: Served): void {
    const { peer } = served;
    served.peer = 0;
    served.host.disconnect(() => {});
    const inUse = [...this.#devices.values()].some((other) => other.peer === peer);
    if (!inUse) this.#session?.memory.dropPeer(peer);
  }

  /**
   * Offers a device. Attachments name its number.
   * @param number the lowest free one by default. @throws VmsgError device-number-taken
   */
  addDevice(backend: Backend, number?: number): number {
    let at = number ?? 0;
    if (number === undefined) while (this.#devices.has(at)) at += 1;
    if (this.#devices.has(at)) throw new VmsgError('device-number-taken', `device number ${at} is taken`);
    const model = deviceModel(backend.description, limits.messageSizeMaxBytes);
    const { scheduler, clock } = { scheduler: this.#scheduler, clock: this.#clock };
    const host = new DeviceHost({ model, backend, scheduler, clock, recovery: undefined, onStatus: () => {} });
    this.#devices.set(at, { host, backend, peer: 0 });
    this.#hosts.set(at, host);
    if (this.#session !== undefined) {
      host.connect(this.#session.link(at, host), false);
      this.#session.deviceAdded(at);
    }
    return at;
  }

  /** Takes a device away from its driver, lets its requests end, closes its backend. */
  async removeDevice(number: number): Promise<void> {
    const served = this.#devices.get(number);
    if (served === undefined) return;
    await new Promise<void>((resolve) => served.host.suspend(resolve));
    this.#devices.delete(number);
    this.#hosts.delete(number);
    this.#session?.deviceRemoved(number);
    await new Promise<void>((resolve) => served.host.disconnect(resolve));
    await served.backend.close();
  }

  #onLost(reason: string): void {
    const session = this.#session;
    if (session === undefined) return;
    for (const served of this.#devices.values()) this.#unbind(served);
    this.#session = undefined;
    session.close();
    if (this.#closed) return;
    void this.#reconnect(new VmsgError('bus-lost', reason));
  }

  async #reconnect(cause: VmsgError): Promise<void> {
    const { reconnect } = this.#o;
    const end = this.#clock.nowMs() + (reconnect?.totalMs ?? 0);
    while (!this.#closed && reconnect !== undefined && this.#clock.nowMs() < end) {
      try {
        const epoch = await this.#connect();
        if (this.#closed) this.#onLost('closed');
        else this.emit('reconnected', { epoch });
        return;
      } catch {
        // Not there yet, or still busy with the connection that was lost.
        await new Promise<void>((resolve) => {
          this.#clock.after(retryMs, resolve);
        });
      }
    }
    if (!this.#closed) this.emit('lost', cause);
  }

  /** Ends the connection and closes every backend. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#onLost('closed');
    const served = [...this.#devices.values()];
    this.#devices.clear();
    this.#hosts.clear();
    await Promise.all(served.map(({ backend }) => backend.close()));
    this.#access.close();
  }
}

function accessOf(options: DeviceServerOptions, clock: Clock, poller: Poller): DeviceAccess {
  if (options.xen !== undefined) {
    return new XenDeviceAccess(options.hypervisor ?? new XenHypervisor(poller), clock, options.xen);
  }
  const { path, maxMessageSize = limits.messageSizeMaxBytes } = options;
  return loopbackDeviceAccess({ path, maxMessageSize, clock, poller });
}

/** Connects to a bus of role `device` and serves devices on it. Rejects as `connect` does. */
export const serveDevices = (options: DeviceServerOptions): Promise<DeviceServer> => DeviceServer.open(options);
