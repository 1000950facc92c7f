import assert from 'node:assert/strict';
import {
  asDomid,
  asGrantRef,
  type Domid,
  type EventChannel,
  type EventChannels,
  type GrantSharer,
  type Hypervisor,
  type SharedPages,
  type Xenstore,
} from '../../src/ports/hypervisor.ts';
import type { BusRequest, BusResponse } from '../../src/virtio-msg/bus-messages.ts';
import { type CanonicalMessage, dialectD5 } from '../../src/virtio-msg/dialect.ts';
import { headerSize } from '../../src/virtio-msg/header.ts';
import { RingConsumer, RingProducer } from '../../src/virtio-msg/ring.ts';
import type { TransportRequest, TransportResponse } from '../../src/virtio-msg/transport-messages.ts';
import { parseFrame, type Seen } from './bridge-bench.ts';
import type { FakeHypervisor } from './fake-xen.ts';

export type RequestName = (TransportRequest | BusRequest)['name'];
export type RequestBody<N> = Extract<TransportRequest | BusRequest, { name: N }>['body'];
export type ResponseBody<N> = Extract<TransportResponse | BusResponse, { name: N }>['body'];

const zero = asDomid(0)!;
const aliveGuest = 72;
const aliveService = 73;
const pageBytes = 4096;
const slot = 64;

export interface FrontendOptions {
  readonly index?: number;
  readonly toServicePages?: number;
  readonly toGuestPages?: number;
}

/** Granted pages of a frontend, with what has to be told about them. */
export interface Pool {
  readonly pages: SharedPages;
  readonly directory: SharedPages;
  readonly reference: number;
}

/** The nodes of an answer, as the frontend writes them; undefined leaves a node out. */
export type Answer = Record<string, string | undefined>;

/** The hypervisor as a process of one domain sees it. */
export type GuestProcess = Hypervisor & { readonly domid: Domid };

/**
 * The guest's side of a Xen bus, made by hand from docs/protocol/xen-bus.md: it can also do everything wrong. It looks
 * at xenstore only when told to.
 */
export class XenFrontend<P extends GuestProcess = FakeHypervisor> {
  readonly process: P;
  readonly xenstore: Xenstore;
  readonly sharer: GrantSharer;
  readonly channels: EventChannels;
  readonly path: string;
  readonly seen: Seen[] = [];
  /** Whether the ring has to take what `postRaw` is given. */
  strict = true;
  /** How often the bus's event channel rang. */
  events = 0;
  readonly #run: () => void;
  readonly #o: FrontendOptions;
  #channel: EventChannel | undefined;
  #toService: SharedPages | undefined;
  #toGuest: SharedPages | undefined;
  #producer: RingProducer | undefined;
  #consumer: RingConsumer | undefined;
  #token = 1;

  /** @param run lets everything happen that is due */
  constructor(process: P, run: () => void, options: FrontendOptions = {}) {
    this.process = process;
    this.#run = run;
    this.#o = options;
    this.xenstore = process.openXenstore();
    this.sharer = process.openGrantSharer();
    this.channels = process.openEventChannels();
    this.path = `/local/domain/${process.domid}/device/vmsg/${options.index ?? 0}`;
  }

  get domid(): Domid {
    return this.process.domid;
  }

  node(name: string): string | undefined {
    return this.xenstore.read(`${this.path}/${name}`);
  }

  backend(name: string): string | undefined {
    return this.xenstore.read(`${this.node('backend') ?? '/nowhere'}/${name}`);
  }

  get backendState(): number {
    return Number(this.backend('state'));
  }

  write(name: string, value: string | undefined): void {
    if (value === undefined) this.xenstore.remove(`${this.path}/${name}`);
    else this.xenstore.write(`${this.path}/${name}`, value);
  }

  /** Writes the state and lets the service see it. */
  setState(state: number): void {
    this.write('state', String(state));
    this.#run();
  }

  get alive(): { guest: number; service: number } {
    const { bytes } = this.#toService!;
    return { guest: bytes[aliveGuest]!, service: bytes[aliveService]! };
  }

  get port(): number {
    return this.#channel!.port;
  }

  /** The words of the ring to the service. */
  get words(): Uint32Array {
    const { buffer, byteOffset } = this.#toService!.bytes;
    return new Uint32Array(buffer, byteOffset, 32);
  }

  /** The words of the ring to the guest. */
  get guestWords(): Uint32Array {
    const { buffer, byteOffset } = this.#toGuest!.bytes;
    return new Uint32Array(buffer, byteOffset, 32);
  }

  set aliveGuest(value: number) {
    this.#toService!.bytes[aliveGuest] = value;
  }

  /** Allocates the rings and the event channel once, and zeroes the headers. */
  prepare(sleepWords = true): void {
    const { toServicePages = 1, toGuestPages = 1 } = this.#o;
    this.#channel ??= this.channels.bindUnbound(zero, () => {
      this.events += 1;
    });
    if (this.#toService === undefined || this.#toGuest === undefined) {
      // Only a page that is shared alone can have a notice.
      const notice = toServicePages === 1 ? { byte: aliveGuest, port: this.#channel.port } : undefined;
      this.#toService = this.sharer.share(zero, toServicePages, notice);
      this.#toGuest = this.sharer.share(zero, toGuestPages);
    }
    for (const pages of [this.#toService, this.#toGuest]) pages.bytes.fill(0, 0, 128);
    this.aliveGuest = 1;
    this.#producer = new RingProducer(this.#toService.bytes, slot, sleepWords);
    this.#consumer = new RingConsumer(this.#toGuest.bytes, slot, sleepWords);
    this.seen.length = 0;
  }

  /** What a good guest answers to the offer of now. */
  answer(): Answer {
    const list = (pages: SharedPages): string => [...pages.references].join(' ');
    return {
      version: '1',
      dialect: '5',
      'max-message-size': '64',
      'ring-to-service-refs': list(this.#toService!),
      'ring-to-guest-refs': list(this.#toGuest!),
      'event-channel': String(this.#channel!.port),
      'feature-sleep-words': '1',
      'feature-queue-evtchn': '1',
      'feature-persistent': undefined,
      epoch: this.backend('epoch'),
      'resume-epoch': undefined,
      'resume-token': undefined,
    };
  }

  /** Answers, in one transaction, and lets the service see it. */
  submit(answer: Answer): void {
    this.xenstore.transaction((access) => {
      for (const [name, value] of Object.entries({ ...answer, state: '3' })) {
        if (value === undefined) access.remove(`${this.path}/${name}`);
        else access.write(`${this.path}/${name}`, value);
      }
    });
    this.#run();
  }

  /** From an offer to Connected. */
  connect(changes: Answer = {}): this {
    assert.equal(this.backendState, 2, 'the service offers the bus');
    const answer = { 'feature-sleep-words': '1', ...changes };
    this.prepare(answer['feature-sleep-words'] === '1');
    this.submit({ ...this.answer(), ...answer });
    assert.equal(this.backendState, 4, `connected, not refused: ${this.backend('error')}`);
    this.setState(4);
    return this;
  }

  /** What this epoch is resumed with later. */
  claim(): Answer {
    return { 'resume-epoch': this.backend('epoch'), 'resume-token': this.backend('token') };
  }

  ring(): void {
    this.#channel!.notify();
    this.#run();
  }

  post(message: CanonicalMessage, device = 0, token = 0): void {
    const frame = new Uint8Array(dialectD5.encodedLength(message));
    dialectD5.encode(message, device, token, frame);
    this.postRaw(frame);
  }

  postRaw(frame: Uint8Array): void {
    const isPushed = this.offer(frame);
    if (this.strict) assert.ok(isPushed, 'there is room in the ring');
  }

  /** @returns false when the ring is full */
  offer(frame: Uint8Array): boolean {
    const isPushed = this.#producer!.push(frame) === 'pushed';
    if (this.#producer!.publish()) this.#channel!.notify();
    this.#run();
    return isPushed;
  }

  /** Takes what is in the ring to the guest. */
  poll(): Seen[] {
    const frame = new Uint8Array(slot);
    while (this.#consumer!.pop(frame) === 'message') this.seen.push(parseFrame(frame.slice(0, headerSize(frame))));
    if (this.#consumer!.release()) this.#channel!.notify();
    this.#consumer!.sleep();
    return this.seen;
  }

  request<N extends RequestName>(name: N, body: RequestBody<N>, device = 0): number {
    this.#token = (this.#token + 1) & 0xffff;
    this.post({ kind: 'request', name, body } as unknown as CanonicalMessage, device, this.#token);
    return this.#token;
  }

  /** Takes the response to a request out of what was seen. */
  response<N extends RequestName>(name: N, token: number): ResponseBody<N> | undefined {
    const seen = this.poll();
    const at = seen.findIndex((message) => message.kind === 'response' && message.header.token === token);
    const [found] = at < 0 ? [] : seen.splice(at, 1);
    if (found !== undefined) assert.equal(found.name, name);
    return found?.body as ResponseBody<N> | undefined;
  }

  ask<N extends RequestName>(name: N, body: RequestBody<N>, device = 0): ResponseBody<N> {
    const response = this.response(name, this.request(name, body, device));
    assert.ok(response !== undefined, `${name} is answered`);
    return response;
  }

  takeEvents(name: string): Seen[] {
    const found = this.poll().filter((message) => message.kind === 'event' && message.name === name);
    for (const message of found) this.seen.splice(this.seen.indexOf(message), 1);
    return found;
  }

  /** Grants pages with their directory. */
  makePool(pages: number, domid: Domid = zero): Pool {
    const shared = this.sharer.share(domid, pages);
    const directory = this.sharer.share(domid, Math.ceil(pages / 1023));
    const words = new Uint32Array(directory.bytes.buffer, directory.bytes.byteOffset, directory.bytes.length / 4);
    for (const [i, reference] of shared.references.entries()) {
      words[Math.floor(i / 1023) * 1024 + 1 + (i % 1023)] = reference;
    }
    for (const [i, reference] of directory.references.entries()) if (i > 0) words[(i - 1) * 1024] = reference;
    return { pages: shared, directory, reference: directory.references[0]! };
  }

  addPool(area: number, pool: Pool, changes: Partial<RequestBody<'REGION_ADD'>> = {}): number {
    const { reference } = pool;
    const length = BigInt(pool.pages.references.length * pageBytes);
    const body = { peer: 0, area, flags: 0, reference, domain: 0, offset: 0n, length, ...changes };
    return this.ask('REGION_ADD', body).errno;
  }
}

/** Address of a byte behind a grant. */
export const grantAddress = (reference: number, offset = 0): bigint =>
  (1n << 63n) | (BigInt(asGrantRef(reference)!) << 12n) | BigInt(offset);
