import { errno } from '../../src/kit/errno.ts';
import { limits } from '../../src/kit/limits.ts';
import type { Admission } from '../../src/ports/bus.ts';
import { type BusEvent, type BusRequest, busRequests, deviceAdded } from '../../src/virtio-msg/bus-messages.ts';
import { type CanonicalMessage, dialectD5, headerFault } from '../../src/virtio-msg/dialect.ts';
import { headerBytes, type MessageHeader, messageHeader, typeBus } from '../../src/virtio-msg/header.ts';
import { RingConsumer, RingProducer, ringBytesFor, slotBytes } from '../../src/virtio-msg/ring.ts';
import { type TransportRequest, transportRequests } from '../../src/virtio-msg/transport-messages.ts';
import { type Decoded, decode, Malformed } from '../../src/wire/layout.ts';
import type { SimLoop, SimProcess } from './sim-loop.ts';
import { type SimOutcome, SimRegions } from './sim-regions.ts';
import type { SimReference } from './sim-resources.ts';
import type { SimBus } from './sim-service.ts';
import type { SimCaller, SimConnection, SimNoise, SimRings } from './sim-transport.ts';

type Request = TransportRequest | BusRequest;

interface Pending {
  readonly device: number;
  readonly message: Request;
  readonly resolve: (outcome: SimOutcome) => void;
  token: number;
  deadline: { cancelled: boolean };
}

/** What a guest tells the driver of one device. */
export interface SimDeviceDriver {
  /** What stood behind the device number when it was found. */
  readonly identity: string | undefined;
  used(queue: number): void;
  configEvent(status: number): void;
  removed(): void;
  /** A new connection: `kept` when the service may have kept the device. */
  reconnected(kept: boolean): Promise<void>;
  preempt(): void;
}

export interface SimGuestOptions {
  readonly bus: SimBus;
  readonly noise: SimNoise;
  /** What stands behind a device number at present. */
  readonly identify: (deviceNumber: number) => string | undefined;
  /** Makes the driver of a device that was found. */
  readonly probe: (guest: SimGuest, deviceNumber: number) => SimDeviceDriver;
}

/** One life of a guest: a well-behaved virtio-msg driver side without its device drivers. */
export class SimGuest implements SimCaller {
  readonly process: SimProcess;
  readonly loop: SimLoop;
  readonly maxMessageSize: number;
  readonly regions = new SimRegions(this);
  readonly drivers = new Map<number, SimDeviceDriver>();
  /** Messages may get lost: silence is then no violation. */
  readonly noisy: boolean;
  leaving = false;
  /** What else it does while the service is in the middle of something. */
  onPreempt: (() => void) | undefined;
  /** Reads nothing until then. */
  deafUntilMs = 0;
  readonly #o: SimGuestOptions;
  readonly #pending = new Map<number, Pending>();
  readonly #givenUp = new Map<number, Pending>();
  /** Requests without a response on a connection that is gone. */
  readonly #held: Pending[] = [];
  readonly #outbox: Uint8Array[] = [];
  readonly #frame: Uint8Array;
  #connection: SimConnection | undefined;
  #connecting = false;
  #adopting = false;
  /** A new connection does not know the regions yet. */
  #isAnnouncing = false;
  #admission: Admission | undefined;
  #producer: RingProducer | undefined;
  #consumer: RingConsumer | undefined;
  #nextToken = 1;
  /** Requests answered, for the statistics of a run. */
  answered = 0;

  constructor(loop: SimLoop, name: string, options: SimGuestOptions) {
    this.loop = loop;
    this.#o = options;
    this.process = loop.process(name);
    this.noisy = options.noise.drop > 0 || options.noise.corrupt > 0;
    const sizes = [limits.messageSizeMinBytes, 60, options.bus.maxMessageSize];
    this.maxMessageSize = Math.min(options.bus.maxMessageSize, loop.random.pick(sizes));
    this.#frame = new Uint8Array(slotBytes(this.maxMessageSize));
    this.#connect();
  }

  get references(): Map<number, SimReference> {
    return this.regions.references;
  }

  get hasConnection(): boolean {
    return this.#connection !== undefined;
  }

  get isConnected(): boolean {
    return this.#connection !== undefined && !this.#adopting;
  }

  /** Has a place on the bus, or is on the way to one. */
  get isPresent(): boolean {
    return this.#connection !== undefined || this.#connecting;
  }

  get pendingRequests(): number {
    return this.#pending.size;
  }

  identify(deviceNumber: number): string | undefined {
    return this.#o.identify(deviceNumber);
  }

  #connect(): void {
    if (this.#connecting || this.leaving || !this.process.alive) return;
    this.#connecting = true;
    const none = { epoch: 0n, token: new Uint8Array(16) };
    this.#o.bus.socket.connect(this, this.#admission ?? none, this.#o.noise);
  }

  refused(): void {
    this.#connecting = false;
    this.loop.at(this.process, 5 + this.loop.random.below(50), () => this.#connect());
  }

  welcomed(admission: Admission): SimRings {
    const { random } = this.loop;
    const slot = slotBytes(this.maxMessageSize);
    const sleepWords = random.chance(0.8);
    const ring = () => new Uint8Array(ringBytesFor(random.pick([1, 2, 3, 5, 16, 64]), slot));
    const [toService, toGuest] = [ring(), ring()];
    this.loop.check(admission.epoch > (this.#admission?.epoch ?? 0n), `${this.process.name}: the epoch did not rise`);
    this.#admission = admission;
    this.#producer = new RingProducer(toService, slot, sleepWords);
    this.#consumer = new RingConsumer(toGuest, slot, sleepWords);
    return { toService, toGuest, slotBytes: slot, sleepWords };
  }

  ready(connection: SimConnection): void {
    this.#connecting = false;
    this.#connection = connection;
    this.#outbox.length = 0;
    void this.#adopt(this.#admission!.resumed);
    this.#pump();
  }

  closed(): void {
    this.#connection = undefined;
    this.#connecting = false;
    this.#producer = undefined;
    this.#consumer = undefined;
    this.#connect();
  }

  /** docs/protocol/loopback.md, "Epochs and resuming". */
  async #adopt(resumed: boolean): Promise<void> {
    const connection = this.#connection;
    this.#adopting = true;
    this.#isAnnouncing = true;
    // The connection may be replaced before they are repeated: then the next one does it.
    for (const pending of this.#pending.values()) {
      pending.deadline.cancelled = true;
      this.#held.push(pending);
    }
    this.#pending.clear();
    this.#givenUp.clear();
    this.regions.renew();
    if (!resumed) for (const pending of this.#held.splice(0)) pending.resolve({ kind: 'lost' });
    await this.regions.announceAll();
    if (this.#connection !== connection) return;
    this.#isAnnouncing = false;
    for (const pending of this.#held.splice(0)) this.#repeat(pending);
    for (const [number, driver] of this.drivers) if (this.identify(number) !== driver.identity) this.#removed(number);
    await Promise.all([...this.drivers.values()].map((driver) => driver.reconnected(resumed)));
    if (this.#connection !== connection) return;
    this.#adopting = false;
    await this.#enumerate();
  }

  #repeat(pending: Pending): void {
    // Regions and signals were set anew for this connection.
    const { name } = pending.message;
    if (name in busRequests && name !== 'PING' && name !== 'GET_DEVICES') pending.resolve({ kind: 'lost' });
    else this.#issue(pending);
  }

  async #enumerate(): Promise<void> {
    const found = new Set<number>();
    let offset = 0;
    do {
      const count = this.loop.random.pick([8, 64, 256]);
      const outcome = await this.request(0, { kind: 'request', name: 'GET_DEVICES', body: { offset, count } });
      if (outcome.kind !== 'response') return;
      const window = outcome.body as { offset: number; count: number; nextOffset: number; bitmap: Uint8Array };
      for (let i = 0; i < window.count; i++) if (window.bitmap[i >>> 3]! & (1 << (i & 7))) found.add(window.offset + i);
      const rises = window.nextOffset === 0 || window.nextOffset > offset;
      this.loop.check(rises || this.noisy, 'the next window does not rise');
      if (!rises) return;
      offset = window.nextOffset;
    } while (offset !== 0);
    for (const number of found) this.#added(number);
  }

  #added(deviceNumber: number): void {
    const found = this.identify(deviceNumber);
    const known = this.drivers.get(deviceNumber);
    if (known !== undefined && known.identity !== found) this.#removed(deviceNumber);
    // Gone again, or found on a connection that is gone: the next one will tell.
    if (this.leaving || found === undefined || this.drivers.has(deviceNumber)) return;
    this.drivers.set(deviceNumber, this.#o.probe(this, deviceNumber));
  }

  #removed(deviceNumber: number): void {
    const driver = this.drivers.get(deviceNumber);
    this.drivers.delete(deviceNumber);
    for (const pending of [...this.#pending.values()]) {
      if (!(pending.message.name in busRequests) && pending.device === deviceNumber) this.#giveUp(pending);
    }
    driver?.removed();
  }

  request(device: number, message: Request): Promise<SimOutcome> {
    return new Promise((resolve) => {
      const pending = { device, message, resolve, token: 0, deadline: { cancelled: true } };
      if (this.#connection === undefined) resolve({ kind: 'lost' });
      else if (this.#isAnnouncing && !(message.name in busRequests)) this.#held.push(pending);
      else this.#issue(pending);
    });
  }

  #issue(pending: Pending): void {
    while (this.#pending.has(this.#nextToken) || this.#givenUp.has(this.#nextToken))
      this.#nextToken = (this.#nextToken + 1) & 0xffff;
    pending.token = this.#nextToken;
    this.#nextToken = (this.#nextToken + 1) & 0xffff;
    this.#pending.set(pending.token, pending);
    pending.deadline = this.loop.at(this.process, limits.guestRequestTimeoutMs, () => this.#expired(pending));
    this.#send(pending.message, pending.device, pending.token);
  }

  #expired(pending: Pending): void {
    if (this.#pending.get(pending.token) !== pending) return;
    if (!this.noisy && this.isConnected && this.deafUntilMs < this.loop.nowMs - limits.guestRequestTimeoutMs) {
      this.loop.fail(`${this.process.name}: no answer to ${pending.message.name} of device ${pending.device}`);
    }
    this.#giveUp(pending);
  }

  /** Its answer may still come, once. */
  #giveUp(pending: Pending): void {
    this.#givenUp.set(pending.token, pending);
    this.#finish(pending, { kind: 'lost' });
  }

  #finish(pending: Pending, outcome: SimOutcome): void {
    pending.deadline.cancelled = true;
    this.#pending.delete(pending.token);
    this.answered += 1;
    pending.resolve(outcome);
  }

  notify(device: number, queue: number): void {
    // The service could not reach the queue yet; each driver notifies when it resumes.
    if (this.#isAnnouncing) return;
    this.#send({ kind: 'event', name: 'EVENT_AVAIL', body: { index: queue, next: 0 } }, device, 0);
  }

  #send(message: CanonicalMessage, device: number, token: number): void {
    if (this.#connection === undefined) return;
    const size = dialectD5.encode(message, device, token, this.#frame);
    this.loop.check(size <= this.maxMessageSize, `${message.name} exceeds the maximum message size`);
    this.#outbox.push(this.#frame.slice(0, size));
    this.#flushOut();
  }

  #flushOut(): void {
    const producer = this.#producer;
    if (producer === undefined || this.#connection === undefined) return;
    for (;;) {
      let frame = this.#outbox[0];
      while (frame !== undefined && producer.push(frame) === 'pushed') {
        this.#outbox.shift();
        frame = this.#outbox[0];
      }
      if (producer.publish()) this.#connection?.ring();
      // The service may have made room between the look and the publication: then nobody rings.
      if (frame === undefined || producer.push(frame) !== 'pushed') return;
      this.#outbox.shift();
    }
  }

  doorbell(): void {
    // Those before READY are noticed with it.
    if (this.#connection === undefined) return;
    if (this.loop.nowMs < this.deafUntilMs) {
      this.loop.at(this.process, this.deafUntilMs - this.loop.nowMs, () => this.doorbell());
      return;
    }
    this.#flushOut();
    this.#pump();
  }

  /** Takes what is in the ring. */
  #pump(): void {
    const frame = new Uint8Array(slotBytes(this.maxMessageSize));
    for (;;) {
      const consumer = this.#consumer;
      if (consumer === undefined) return;
      const outcome = consumer.pop(frame);
      if (outcome === 'message') this.#dispatch(frame);
      else {
        this.loop.check(outcome === 'empty', `${this.process.name}: the service broke the ring`);
        if (consumer.release()) this.#connection?.ring();
        if (outcome !== 'empty' || consumer.sleep()) return;
      }
    }
  }

  preempt(): void {
    if (this.#connection === undefined || this.loop.nowMs < this.deafUntilMs) return;
    if (this.loop.random.chance(0.5)) this.#pump();
    for (const driver of this.drivers.values()) driver.preempt();
    this.onPreempt?.();
  }

  #dispatch(frame: Uint8Array): void {
    const header = decode(messageHeader, frame, 0, headerBytes) as Decoded<typeof messageHeader>;
    const fault = headerFault(header, frame.length, this.maxMessageSize);
    const message = fault === undefined ? dialectD5.decode(frame, header) : new Malformed(fault);
    if (message instanceof Malformed) {
      this.loop.check(this.noisy, `${this.process.name} got a malformed message: ${message.reason}`);
      return;
    }
    if (message.kind === 'request') this.#odd(`request ${message.name}`);
    else if (message.kind === 'response') this.#onResponse(message.name, header, message.body as never);
    else if (header.type & typeBus) this.#onBusEvent(message as BusEvent);
    else {
      const driver = this.drivers.get(header.deviceNumber);
      if (message.name === 'EVENT_USED') driver?.used(message.body.index);
      else if (message.name === 'EVENT_CONFIG') driver?.configEvent(message.body.status);
    }
  }

  #odd(what: string): void {
    this.loop.check(this.noisy, `${this.process.name} got a ${what} that nobody asked for`);
  }

  /** The request that a message answers; one that was given up is answered without further notice. */
  #answeredBy(
    token: number,
    device: number,
    what: string,
    matches: (name: Request['name']) => boolean,
  ): Pending | undefined {
    const pending = this.#pending.get(token) ?? this.#givenUp.get(token);
    if (pending === undefined || pending.device !== device || !matches(pending.message.name)) {
      this.#odd(`${what} of device ${device} with token ${token}`);
      return undefined;
    }
    return this.#givenUp.delete(token) ? undefined : pending;
  }

  #onResponse(name: string, header: MessageHeader, body: Record<string, unknown>): void {
    const pending = this.#answeredBy(header.token, header.deviceNumber, `response ${name}`, (asked) => asked === name);
    if (pending !== undefined) this.#finish(pending, { kind: 'response', body });
  }

  #onBusEvent(event: BusEvent): void {
    if (event.name === 'EVENT_DEVICE') {
      this.loop.log(
        `${this.process.name}: device ${event.body.device} ${event.body.state === deviceAdded ? 'added' : 'removed'}`,
      );
      if (event.body.state === deviceAdded) this.#added(event.body.device);
      else this.#removed(event.body.device);
      return;
    }
    const { device, token, id } = event.body;
    const rows = { ...transportRequests, ...busRequests };
    const pending = this.#answeredBy(token, device, 'FAILURE', (asked) => rows[asked].id === id);
    if (pending !== undefined) this.#finish(pending, { kind: 'failure', errno: event.body.errno });
    // It went while nobody was connected.
    if (event.body.errno === errno.ENODEV && this.drivers.has(device)) this.#removed(device);
  }

  /** Ends this life: as a program that exits, or by a kill. */
  leave(): void {
    this.leaving = true;
    this.process.die();
  }
}
