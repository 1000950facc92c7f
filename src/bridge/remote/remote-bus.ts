import type { SharedMemory } from '../../device/shared-memory.ts';
import { listDevices } from '../../guest/device-list.ts';
import type { Clock, Timer } from '../../kit/clock.ts';
import { errno, wireErrno } from '../../kit/errno.ts';
import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import { errnoName } from '../../libc/errno.ts';
import {
  type BusEvent,
  type BusRequest,
  type BusResponse,
  type busRequests,
  deviceAdded,
  deviceRemoved,
} from '../../virtio-msg/bus-messages.ts';
import type { CanonicalMessage } from '../../virtio-msg/dialect.ts';
import type { MessageHeader } from '../../virtio-msg/header.ts';
import type { TransportEvent, TransportRequest, TransportResponse } from '../../virtio-msg/transport-messages.ts';
import { MemoryRelay } from './memory-relay.ts';
import type { MemoryOwner, MemoryPath, RemoteEvents, RemotePeer, RemoteResult, StuckShare } from './peer.ts';

interface Waiting {
  readonly device: number;
  readonly name: string;
  readonly done: (result: RemoteResult<CanonicalMessage>) => void;
  readonly timer: Timer;
}

/** The far side may let I/O end first. */
const removalTimeoutMs = limits.regionRemovalTimeoutMs + limits.requestTimeoutMs;
const tokenMax = 0xffff;

/** What a remote bus tells its owner. */
export interface RemoteBusHooks {
  /** A device came or went. */
  onDevices(): void;
  /** The far side keeps memory for too long; or, after that, has given it back. */
  onStuck?(share: StuckShare, stuck: boolean): void;
}

/** Whether a device can be taken. @throws VmsgError unavailable, backend-busy */
export function checkFree(bus: RemoteBus, number: number): void {
  if (!bus.has(number)) throw new VmsgError('unavailable', `the serving side has no device ${number}`);
  if (bus.full) throw new VmsgError('unavailable', 'the serving side keeps the memory of too many drivers');
  if (bus.claimant(number) !== undefined) {
    throw new VmsgError('backend-busy', `device ${number} of the serving side is attached already`);
  }
}

/**
 * The driver side of a connection whose far side serves devices: a guest of role `device`, or another bridge.
 * Correlates responses, knows which devices are there, passes memory on.
 */
export class RemoteBus implements MemoryPath {
  readonly peer: RemotePeer;
  readonly #clock: Clock;
  readonly #hooks: RemoteBusHooks;
  readonly #waiting = new Map<number, Waiting>();
  readonly #present = new Set<number>();
  readonly #devices = new Map<number, RemoteEvents>();
  readonly #relays = new Map<SharedMemory, MemoryRelay>();
  /** Also those that the far side has not given back yet. */
  readonly #allRelays = new Set<MemoryRelay>();
  #lastToken = 0;
  #nextPeer = 1;
  /** Where one driver follows the other, the next one waits for the end of the one before. */
  #released: Promise<void> = Promise.resolve();
  #closed = false;

  constructor(peer: RemotePeer, clock: Clock, hooks: RemoteBusHooks) {
    this.peer = peer;
    this.#clock = clock;
    this.#hooks = hooks;
  }

  get closed(): boolean {
    return this.#closed;
  }

  has(device: number): boolean {
    return this.#present.has(device);
  }

  /** Device numbers of the far side. */
  get devices(): ReadonlySet<number> {
    return this.#present;
  }

  /** Reads the list of devices; from then on events keep it. A side whose list makes no sense has its events only. */
  async enumerate(): Promise<void> {
    const ask = async (window: Parameters<Parameters<typeof listDevices>[1]>[0]) => {
      const answer = await this.busRequest('GET_DEVICES', window);
      if (typeof answer === 'string') throw new VmsgError('unavailable', `GET_DEVICES failed with ${answer}`);
      return answer;
    };
    const listed = await listDevices(this.peer.maxMessageSize, ask).catch(() => []);
    for (const device of listed) this.#addPresent(device);
  }

  #addPresent(device: number): void {
    if (!this.#closed && this.#present.size < limits.devicesPerBus) this.#present.add(device);
  }

  /** Registers the stand-in of a device. */
  claim(device: number, events: RemoteEvents): void {
    this.#devices.set(device, events);
  }

  release(device: number, events: RemoteEvents): void {
    if (this.#devices.get(device) === events) this.#devices.delete(device);
  }

  /** The stand-in of a device. */
  claimant(device: number): RemoteEvents | undefined {
    return this.#devices.get(device);
  }

  /** The far side holds the memory of as many drivers as it may. */
  get full(): boolean {
    return this.#allRelays.size >= limits.peersPerBus;
  }

  /** What the far side has kept for too long. */
  stuck(): StuckShare[] {
    return [...this.#allRelays].flatMap(({ stuck }) => stuck ?? []);
  }

  /** A number for memory that the far side has not seen; 0 where there is only one driver, which is us. */
  nextPeer(): number {
    return this.peer.byPeer ? this.#nextPeer++ : 0;
  }

  /** Passes the memory of a driver on to the far side, for as long as one of its devices needs it. */
  share(memory: SharedMemory, owner: MemoryOwner): MemoryRelay {
    const known = this.#relays.get(memory);
    if (known !== undefined) return known.retain();
    const hooks = {
      onLeft: () => void this.#relays.delete(memory),
      onEnded: () => void this.#allRelays.delete(relay),
      onStuck: (share: StuckShare, stuck: boolean) => this.#hooks.onStuck?.(share, stuck),
    };
    const relay: MemoryRelay = new MemoryRelay(
      this,
      memory,
      owner,
      this.nextPeer(),
      this.#released,
      this.#clock,
      hooks,
    );
    if (!this.peer.byPeer) this.#released = relay.ended;
    this.#relays.set(memory, relay);
    this.#allRelays.add(relay);
    return relay;
  }

  /** Devices that have a stand-in here. */
  get claims(): number {
    return this.#devices.size;
  }

  async busRequest<N extends keyof typeof busRequests>(
    name: N,
    body: Extract<BusRequest, { name: N }>['body'],
    timeoutMs: number = limits.requestTimeoutMs,
  ): Promise<RemoteResult<Extract<BusResponse, { name: N }>['body']>> {
    const result = await new Promise<RemoteResult<CanonicalMessage>>((resolve) => {
      this.#request(0, { kind: 'request', name, body } as CanonicalMessage, timeoutMs, resolve);
    });
    return (typeof result === 'string' ? result : result.body) as never;
  }

  async addRegion(body: Extract<BusRequest, { name: 'REGION_ADD' }>['body']): Promise<number> {
    const result = await this.busRequest('REGION_ADD', body);
    return typeof result === 'string' ? errno[result] : result.errno;
  }

  /** Says whose memory a device uses, 0: nobody's. @returns 0 or an errno */
  async bind(device: number, peer: number): Promise<number> {
    const result = await this.busRequest('DEVICE_BIND', { device, reserved: 0, peer });
    return typeof result === 'string' ? errno[result] : result.errno;
  }

  async removeRegion(body: Extract<BusRequest, { name: 'REGION_DEL' }>['body']): Promise<number> {
    const result = await this.busRequest('REGION_DEL', body, removalTimeoutMs);
    return typeof result === 'string' ? errno[result] : result.errno;
  }

  /** Sends a request to a device. @param done called once */
  request(device: number, request: TransportRequest, done: (result: RemoteResult<TransportResponse>) => void): void {
    this.#request(device, request, limits.requestTimeoutMs, done as (result: RemoteResult<CanonicalMessage>) => void);
  }

  #request(device: number, message: CanonicalMessage, timeoutMs: number, done: Waiting['done']): void {
    if (this.#closed) {
      done('ENODEV');
      return;
    }
    if (this.peer.lengthOf(message) > this.peer.maxMessageSize) {
      done('EMSGSIZE');
      return;
    }
    if (this.#waiting.size >= limits.remoteRequests) {
      done('EBUSY');
      return;
    }
    const token = this.#freeToken();
    const timer = this.#clock.after(timeoutMs, () => this.#finish(token, 'ETIMEDOUT'));
    this.#waiting.set(token, { device, name: message.name, done, timer });
    this.peer.send(message, device, token);
  }

  /** Never 0; late responses of recent requests find no one. */
  #freeToken(): number {
    do this.#lastToken = this.#lastToken === tokenMax ? 1 : this.#lastToken + 1;
    while (this.#waiting.has(this.#lastToken));
    return this.#lastToken;
  }

  #finish(token: number, result: RemoteResult<CanonicalMessage>): void {
    const waiting = this.#waiting.get(token);
    if (waiting === undefined) return;
    this.#waiting.delete(token);
    waiting.timer.cancel();
    waiting.done(result);
  }

  sendEvent(device: number, event: TransportEvent): void {
    if (!this.#closed) this.peer.send(event, device, 0);
  }

  /** A message of the far side, well-formed. @returns false when nobody waits for it */
  onMessage(message: CanonicalMessage, header: MessageHeader): boolean {
    if (message.kind === 'response') {
      const waiting = this.#waiting.get(header.token);
      if (waiting?.name !== message.name || waiting.device !== header.deviceNumber) return false;
      this.#finish(header.token, message);
      return true;
    }
    if (message.kind !== 'event') return false;
    if (message.name === 'EVENT_DEVICE' || message.name === 'FAILURE') return this.#onBusEvent(message);
    const device = this.#devices.get(header.deviceNumber);
    device?.onEvent(message);
    return device !== undefined;
  }

  #onBusEvent(event: BusEvent): boolean {
    if (event.name === 'FAILURE') {
      this.#finish(event.body.token, wireErrno(errnoName(event.body.errno)));
      return true;
    }
    const { device, state } = event.body;
    if (state === deviceAdded) this.#addPresent(device);
    else if (state === deviceRemoved) {
      this.#present.delete(device);
      this.#devices.get(device)?.onGone(`device ${device} was removed by the side that serves it`);
    }
    this.#hooks.onDevices();
    return true;
  }

  /** The far side is gone. */
  close(reason: string): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const token of [...this.#waiting.keys()]) this.#finish(token, 'ENODEV');
    this.#present.clear();
    for (const device of [...this.#devices.values()]) device.onGone(reason);
    this.#devices.clear();
    for (const relay of this.#allRelays) relay.abandon();
  }
}
