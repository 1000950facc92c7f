import type { DeviceLink, ServedDevice } from '../../device/endpoint.ts';
import type { Clock } from '../../kit/clock.ts';
import type { ErrnoName } from '../../kit/errno.ts';
import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import { feature } from '../../virtio/features.ts';
import type { TransportEvent, TransportRequest, TransportResponse } from '../../virtio-msg/transport-messages.ts';
import type { MemoryRelay } from './memory-relay.ts';
import type { MemoryOwner, RemoteEvents, RemoteResult } from './peer.ts';
import { checkFree, type RemoteBus } from './remote-bus.ts';

const resetPollMs = 20;
const noData = { offset: 0, length: 0, data: new Uint8Array(0) };

interface Connection {
  readonly link: DeviceLink;
  readonly relay: MemoryRelay;
}

export interface RemoteDeviceHooks {
  /** Whose memory the device uses. */
  readonly owner: MemoryOwner;
  onStatus(status: number, reason: string | null): void;
  onGone(reason: string): void;
}

/** A device that another guest or bridge serves: messages are relayed, memory is passed on. */
export class RemoteDevice implements ServedDevice, RemoteEvents {
  readonly deviceType: number;
  readonly queueCount: number;
  readonly sharedMemory = [];
  readonly recovery = 'reset';
  readonly dataPath = 'relayed';
  /** Data does not pass here. */
  readonly work = null;
  readonly #bus: RemoteBus;
  readonly #number: number;
  readonly #clock: Clock;
  readonly #hooks: RemoteDeviceHooks;
  readonly #waiting = new Map<number, TransportRequest>();
  #connection: Connection | undefined;
  #status = 0;
  #order: Promise<void> = Promise.resolve();

  private constructor(
    bus: RemoteBus,
    number: number,
    info: { type: number; queues: number },
    clock: Clock,
    hooks: RemoteDeviceHooks,
  ) {
    this.#bus = bus;
    this.#number = number;
    this.deviceType = info.type;
    this.queueCount = info.queues;
    this.#clock = clock;
    this.#hooks = hooks;
    bus.claim(number, this);
  }

  /** @throws VmsgError unavailable, backend-busy */
  static async open(bus: RemoteBus, number: number, clock: Clock, hooks: RemoteDeviceHooks): Promise<RemoteDevice> {
    checkFree(bus, number);
    const result = await new Promise<RemoteResult<TransportResponse>>((resolve) => {
      bus.request(number, { kind: 'request', name: 'GET_DEVICE_INFO', body: {} }, resolve);
    });
    if (typeof result === 'string' || result.name !== 'GET_DEVICE_INFO') {
      throw new VmsgError('unavailable', `device ${number} did not describe itself (${String(result)})`);
    }
    // It may have gone, or been taken, while it was asked.
    checkFree(bus, number);
    const queues = Math.min(result.body.maxVirtqueues, limits.queuesPerDevice);
    return new RemoteDevice(bus, number, { type: result.body.deviceId, queues }, clock, hooks);
  }

  get status(): number {
    return this.#status;
  }

  get reason(): string | null {
    return null;
  }

  queues(): [] {
    return [];
  }

  connect(link: DeviceLink): void {
    if (this.#bus.full) {
      // Not from within: a bus is telling all of its devices.
      void this.#order.then(() => this.#hooks.onGone('the serving side keeps the memory of too many drivers'));
      return;
    }
    const connection = { link, relay: this.#bus.share(link.memory, this.#hooks.owner) };
    this.#connection = connection;
    this.#order = this.#order.then(() => this.#begin(connection.relay));
  }

  /** Requests that come meanwhile follow in order. */
  async #begin(relay: MemoryRelay): Promise<void> {
    await relay.ready;
    if (this.#bus.peer.byPeer) await this.#bus.bind(this.#number, relay.peer);
  }

  onRequest(request: TransportRequest, token: number): void {
    const connection = this.#connection;
    if (connection === undefined) return;
    if (this.#waiting.size >= limits.devicePendingRequests) {
      connection.link.fail(token, request.name, 'EBUSY');
      return;
    }
    this.#waiting.set(token, request);
    void this.#order.then(() => {
      if (this.#connection !== connection) return;
      this.#bus.request(this.#number, request, (result) => {
        if (this.#connection !== connection || !this.#waiting.delete(token)) return;
        this.#answer(connection.link, request, token, result);
      });
    });
  }

  #answer(link: DeviceLink, request: TransportRequest, token: number, result: RemoteResult<TransportResponse>): void {
    if (typeof result === 'string') {
      link.fail(token, request.name, result);
      return;
    }
    if (result.name === 'GET_DEVICE_STATUS' || result.name === 'SET_DEVICE_STATUS')
      this.#noteStatus(result.body.status);
    const response = this.#adapted(link, result);
    if (this.#bus.peer.lengthOf(response) > link.maxMessageSize) link.fail(token, request.name, 'EMSGSIZE');
    else link.respond(token, response);
  }

  /** Takes out what this path cannot carry. */
  #adapted(link: DeviceLink, response: TransportResponse): TransportResponse {
    if (response.name === 'GET_SHM') {
      // Its memory belongs to the far side's address space.
      return { ...response, body: { index: response.body.index, reserved: 0, length: 0n, address: 0n } };
    }
    if (response.name !== 'GET_DEVICE_FEATURES' || !link.outOfBandKicks) return response;
    const { blockIndex, blocks } = response.body;
    const at = Math.floor(feature.NOTIFICATION_DATA / 32) - blockIndex;
    const mask = ~(1 << (feature.NOTIFICATION_DATA % 32));
    return {
      ...response,
      body: { ...response.body, blocks: blocks.map((word, i) => (i === at ? (word & mask) >>> 0 : word)) },
    };
  }

  #noteStatus(status: number): void {
    if (status === this.#status) return;
    this.#status = status;
    this.#hooks.onStatus(status, null);
  }

  onAvailable(queue: number, next: number): void {
    const connection = this.#connection;
    if (connection === undefined) return;
    const event = { kind: 'event', name: 'EVENT_AVAIL', body: { index: queue, next } } as const;
    this.#bus.sendEvent(this.#number, event);
  }

  onEvent(event: TransportEvent): void {
    const link = this.#connection?.link;
    if (link === undefined) return;
    if (event.name === 'EVENT_USED') {
      if (event.body.index < this.queueCount) link.used(event.body.index);
    } else if (event.name === 'EVENT_CONFIG') {
      this.#noteStatus(event.body.status);
      const fits = this.#bus.peer.lengthOf(event) <= link.maxMessageSize;
      link.event(fits ? event : { ...event, body: { ...event.body, ...noData } });
    }
  }

  onGone(reason: string): void {
    this.#hooks.onGone(reason);
  }

  onRevoked(): void {
    // Leases on the driver's memory are the far side's; it answers REGION_DEL.
  }

  failRequests(errno: ErrnoName): void {
    const link = this.#connection?.link;
    for (const [token, request] of this.#waiting) link?.fail(token, request.name, errno);
    this.#waiting.clear();
  }

  /** The far side completes what it has; the driver is told by the removal that follows. */
  suspend(done: () => void): void {
    done();
  }

  disconnect(done: () => void): void {
    const connection = this.#connection;
    this.#connection = undefined;
    this.#waiting.clear();
    if (connection === undefined) {
      void this.#order.then(done);
      return;
    }
    // Resets the device, then takes the memory back: until then the far side may still write it.
    const reset = this.#order.then(() => this.#resetRemote());
    this.#order = connection.relay.release(reset, () => this.#unbind()).then(() => this.#noteStatus(0));
    void this.#order.then(done);
  }

  async #unbind(): Promise<void> {
    const claimant = this.#bus.claimant(this.#number);
    // Whoever uses the device by now binds it to other memory.
    const unused = claimant === undefined || (claimant === this && this.#connection === undefined);
    if (this.#bus.peer.byPeer && unused) await this.#bus.bind(this.#number, 0);
  }

  async #resetRemote(): Promise<void> {
    let status = await this.#askStatus({ kind: 'request', name: 'SET_DEVICE_STATUS', body: { status: 0 } });
    const triesMax = Math.floor(limits.resetTimeoutMs / resetPollMs);
    for (let tries = 0; status !== 0 && status !== undefined && tries < triesMax; tries++) {
      await new Promise<void>((resolve) => {
        this.#clock.after(resetPollMs, resolve);
      });
      status = await this.#askStatus({ kind: 'request', name: 'GET_DEVICE_STATUS', body: {} });
    }
  }

  /** undefined: the far side does not answer, so there is nothing to wait for. */
  #askStatus(request: TransportRequest): Promise<number | undefined> {
    return new Promise((resolve) => {
      this.#bus.request(this.#number, request, (result) => {
        resolve(typeof result === 'string' ? undefined : (result.body as { status: number }).status);
      });
    });
  }

  /** Gives the device of the far side up. */
  close(): void {
    this.#bus.release(this.#number, this);
  }
}
