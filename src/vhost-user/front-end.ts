import { assert } from '../kit/assert.ts';
import type { Clock } from '../kit/clock.ts';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { Closable } from '../kit/scope.ts';
import type { ForeignFd } from '../libc/fd.ts';
import { FeatureSet } from '../virtio/features.ts';
import { Malformed } from '../wire/layout.ts';
import { type BackEndRequestEvents, BackEndRequests } from './back-end-requests.ts';
import type { MessageChannel } from './channel.ts';
import { featuresFromU64, featuresToU64, protocolFeature } from './features.ts';
import {
  type BodyOf,
  decodePayload,
  encodeMessage,
  type FrontEndRequest,
  frontEndRequests,
  type MessageSpec,
  type ReplyOf,
} from './messages.ts';
import { FLAG_NEED_REPLY, number, VRING_NO_FD } from './payloads.ts';
import { type RegionDescription, singleOf, tableOf } from './regions.ts';
import { Requester } from './requester.ts';
import type { Message } from './stream.ts';

export interface FrontEndEvents extends BackEndRequestEvents {
  /** The connection has ended; everything that waited was rejected with this. Not told after `close`. */
  closed(error: VmsgError): void;
}

/** User addresses of the three areas of a queue. */
export interface QueueAddresses {
  readonly desc: bigint;
  readonly driver: bigint;
  readonly device: bigint;
}

/** An in-flight log as it travels: `mmapSize` bytes from `mmapOffset` on in a file. */
export interface InflightArea {
  readonly mmapSize: bigint;
  readonly mmapOffset: bigint;
  readonly queues: number;
  /** Entries of each queue. */
  readonly queueSize: number;
}

interface Answer<N extends FrontEndRequest> {
  readonly body: ReplyOf<N>;
  readonly fds: readonly ForeignFd[];
}

interface Extras {
  readonly fds?: readonly number[];
  readonly timeoutMs?: number;
}

const none = {};

/**
 * The side of a vhost-user connection that has the driver: one promise a request, in the words of the protocol. The
 * order in which requests make sense is the caller's business. Requests are sent at once and answered in order. With
 * REPLY_ACK each one is acknowledged; without it those whose effect must be known are followed by GET_FEATURES,
 * which every back-end answers.
 *
 * All methods reject with a VmsgError: 'backend-refused' when the back-end says no, which leaves the connection as it
 * is; else what has ended the connection: 'backend-lost', 'protocol-violation', 'timeout' or 'system-call'.
 */
export class FrontEnd implements Closable {
  readonly #requester: Requester;
  readonly #events: FrontEndEvents;
  readonly #timeoutMs: number;
  #backEndRequests: BackEndRequests | undefined;
  #protocol = FeatureSet.empty;

  /** @param channel is started here, and closed in the end */
  constructor(
    channel: MessageChannel,
    clock: Clock,
    events: FrontEndEvents,
    timeoutMs: number = limits.vhostUserRequestTimeoutMs,
  ) {
    this.#events = events;
    this.#timeoutMs = timeoutMs;
    this.#requester = new Requester(channel, clock, (error) => {
      this.#backEndRequests?.close();
      events.closed(error);
    });
  }

  /** The protocol features that were negotiated. */
  get protocolFeatures(): FeatureSet {
    return this.#protocol;
  }

  /** Why the connection has ended. */
  get ended(): VmsgError | undefined {
    return this.#requester.ended;
  }

  async getFeatures(): Promise<FeatureSet> {
    return featuresFromU64((await this.#request('GET_FEATURES', none)).body.value);
  }

  async setFeatures(features: FeatureSet): Promise<void> {
    await this.#request('SET_FEATURES', { value: featuresToU64(features) });
  }

  async getProtocolFeatures(): Promise<FeatureSet> {
    return featuresFromU64((await this.#request('GET_PROTOCOL_FEATURES', none)).body.value);
  }

  async setProtocolFeatures(features: FeatureSet): Promise<void> {
    const sent = this.#request('SET_PROTOCOL_FEATURES', { value: featuresToU64(features) });
    this.#protocol = features;
    await sent;
  }

  async setOwner(): Promise<void> {
    await this.#request('SET_OWNER', none);
  }

  /** The whole memory, in place of what was there. @param fds one a region */
  async setMemoryTable(regions: readonly RegionDescription[], fds: readonly number[]): Promise<void> {
    assert(regions.length <= limits.vhostUserTableRegions && fds.length === regions.length, 'a table with its files');
    await this.#request('SET_MEM_TABLE', tableOf(regions, this.#xen), { fds });
  }

  async addRegion(region: RegionDescription, fd: number): Promise<void> {
    await this.#request('ADD_MEM_REG', singleOf(region, this.#xen), { fds: [fd] });
  }

  async removeRegion(region: RegionDescription): Promise<void> {
    await this.#request('REM_MEM_REG', singleOf(region, this.#xen));
  }

  async getMaxMemSlots(): Promise<bigint> {
    return (await this.#request('GET_MAX_MEM_SLOTS', none)).body.value;
  }

  async getQueueCount(): Promise<bigint> {
    return (await this.#request('GET_QUEUE_NUM', none)).body.value;
  }

  async setQueueSize(index: number, num: number): Promise<void> {
    await this.#request('SET_VRING_NUM', { index, num });
  }

  async setQueueBase(index: number, num: number): Promise<void> {
    await this.#request('SET_VRING_BASE', { index, num });
  }

  /** Stops the queue. @returns where it would continue: 16 bits of a split queue, both indices of a packed one */
  async getQueueBase(index: number): Promise<number> {
    const timeoutMs = limits.vhostUserStopTimeoutMs;
    const { body } = await this.#request('GET_VRING_BASE', { index, num: 0 }, { timeoutMs });
    if (body.index === index) return body.num;
    throw this.#violation(`the back-end answered GET_VRING_BASE of queue ${index} with queue ${body.index}`);
  }

  async setQueueAddresses(index: number, { desc, driver, device }: QueueAddresses): Promise<void> {
    const body = { index, flags: 0, descriptor: desc, used: device, available: driver, log: 0n };
    await this.#request('SET_VRING_ADDR', body);
  }

  /** @param fd an eventfd; without one the back-end is to poll */
  setKick(index: number, fd: number | undefined): Promise<void> {
    return this.#setQueueFd('SET_VRING_KICK', index, fd);
  }

  /** @param fd an eventfd; without one the driver polls */
  setCall(index: number, fd: number | undefined): Promise<void> {
    return this.#setQueueFd('SET_VRING_CALL', index, fd);
  }

  setError(index: number, fd: number | undefined): Promise<void> {
    return this.#setQueueFd('SET_VRING_ERR', index, fd);
  }

  async #setQueueFd(
    name: 'SET_VRING_KICK' | 'SET_VRING_CALL' | 'SET_VRING_ERR',
    index: number,
    fd: number | undefined,
  ) {
    const value = BigInt(index) | (fd === undefined ? VRING_NO_FD : 0n);
    await this.#request(name, { value }, { fds: fd === undefined ? [] : [fd] });
  }

  async setQueueEnabled(index: number, enabled: boolean): Promise<void> {
    await this.#request('SET_VRING_ENABLE', { index, num: enabled ? 1 : 0 });
  }

  /**
   * Gives the back-end a channel for its own requests.
   * @param theirs the descriptor of its end; stays the caller's. @param ours is closed in the end
   */
  async setBackEndChannel(theirs: number, ours: MessageChannel): Promise<void> {
    assert(this.#backEndRequests === undefined, 'one channel for requests of the back-end');
    if (this.ended !== undefined) {
      ours.close();
      throw this.ended;
    }
    try {
      this.#backEndRequests = new BackEndRequests(ours, this.#protocol, this.#events, (reason) =>
        this.#violation(reason),
      );
    } catch (error) {
      ours.close();
      throw error;
    }
    await this.#request('SET_BACKEND_REQ_FD', none, { fds: [theirs] });
  }

  /** @returns exactly `size` bytes. Some back-ends take every offset for 0 */
  async getConfig(offset: number, size: number): Promise<Uint8Array> {
    assert(size <= limits.vhostUserConfigMaxBytes, `${size} bytes of configuration`);
    const question = { offset, size, flags: 0, content: new Uint8Array(size) };
    const { body } = await this.#request('GET_CONFIG', question);
    if (body.size === 0 && size > 0) {
      throw new VmsgError('backend-refused', `the back-end has no ${size} bytes of configuration at ${offset}`);
    }
    if (body.size === size && body.offset === offset) return body.content;
    const got = `${body.size} bytes of configuration at ${body.offset}`;
    throw this.#violation(`the back-end answered with ${got}, asked for ${size} at ${offset}`);
  }

  /** @param restored the content comes from before a migration or restart, so that read-only fields may be written */
  async setConfig(offset: number, content: Uint8Array, restored = false): Promise<void> {
    assert(content.length <= limits.vhostUserConfigMaxBytes, `${content.length} bytes of configuration`);
    await this.#request('SET_CONFIG', { offset, size: content.length, flags: restored ? 1 : 0, content });
  }

  /** Asks the back-end for an in-flight log. @returns the log and its file, the caller's */
  async getInflight(
    queues: number,
    queueSize: number,
  ): Promise<{ readonly area: InflightArea; readonly fd: ForeignFd }> {
    const question = { mmapSize: 0n, mmapOffset: 0n, queues, queueSize, padding: 0 };
    const { body, fds } = await this.#request('GET_INFLIGHT_FD', question);
    const [fd] = fds;
    if (fd === undefined) throw new VmsgError('backend-refused', 'the back-end gave no in-flight log');
    const { mmapSize, mmapOffset } = body;
    return { area: { mmapSize, mmapOffset, queues, queueSize }, fd };
  }

  async setInflight(area: InflightArea, fd: number): Promise<void> {
    await this.#request('SET_INFLIGHT_FD', { ...area, padding: 0 }, { fds: [fd] });
  }

  async resetDevice(): Promise<void> {
    await this.#request('RESET_DEVICE', none, { timeoutMs: limits.vhostUserStopTimeoutMs });
  }

  async setStatus(status: number): Promise<void> {
    await this.#request('SET_STATUS', { value: BigInt(status) });
  }

  async getStatus(): Promise<number> {
    return Number((await this.#request('GET_STATUS', none)).body.value & 0xffn);
  }

  get #xen(): boolean {
    return this.#protocol.has(protocolFeature.XEN_MMAP);
  }

  async #request<N extends FrontEndRequest>(name: N, body: BodyOf<N>, extras: Extras = {}): Promise<Answer<N>> {
    const spec: MessageSpec = frontEndRequests[name];
    assert(spec.needs === undefined || this.#protocol.has(protocolFeature[spec.needs]), `${name} was negotiated`);
    const { fds = [], timeoutMs = this.#timeoutMs } = extras;
    const acknowledged = spec.reply === undefined && this.#protocol.has(protocolFeature.REPLY_ACK);
    const flags = acknowledged ? FLAG_NEED_REPLY : 0;
    const bytes = encodeMessage(spec.id, flags, this.#xen ? spec.xenPayload : spec.payload, body);
    const question = { id: spec.id, bytes, fds, maxFds: spec.replyFds, timeoutMs };
    if (spec.reply !== undefined) return this.#requester.ask(question, (message) => answerOf<N>(name, spec, message));
    if (acknowledged) {
      const result = await this.#requester.ask(question, (message) => numberOf(name, message));
      if (result !== 0n) throw new VmsgError('backend-refused', `the back-end refused ${name} with ${result}`);
    } else {
      this.#requester.tell(bytes, fds);
      if (spec.awaited) await this.getFeatures();
    }
    return { body: undefined as ReplyOf<N>, fds: [] };
  }

  #violation(reason: string): VmsgError {
    if (this.ended !== undefined) return this.ended;
    const error = new VmsgError('protocol-violation', reason);
    this.#end(error);
    this.#events.closed(error);
    return error;
  }

  #end(error: VmsgError): void {
    this.#requester.end(error);
    this.#backEndRequests?.close();
  }

  /** What waits is rejected. Idempotent. */
  close(): void {
    this.#end(new VmsgError('backend-lost', 'this side has closed the connection'));
  }
}

function numberOf(name: string, message: Message): { readonly value: bigint } | string {
  const body = decodePayload(number, message.payload);
  if (body instanceof Malformed) return `the back-end acknowledged ${name} with ${message.payload.length} bytes`;
  return { value: body.value };
}

/** A back-end refuses GET_CONFIG with an answer that has no payload at all, or no content. */
const noConfig = { offset: 0, size: 0, flags: 0, content: new Uint8Array(0) };

function answerOf<N extends FrontEndRequest>(
  name: N,
  spec: MessageSpec,
  message: Message,
): { readonly value: Answer<N> } | string {
  const { payload, fds } = message;
  if (name === 'GET_CONFIG' && payload.length === 0) return { value: { body: noConfig as unknown as ReplyOf<N>, fds } };
  const body = decodePayload(spec.reply!, payload);
  if (body instanceof Malformed) return `the back-end answered ${name} wrongly: ${body.reason}`;
  return { value: { body: body as ReplyOf<N>, fds } };
}
