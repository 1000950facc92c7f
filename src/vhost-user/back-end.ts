import { BoundedQueue } from '../kit/bounded-queue.ts';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { Closable } from '../kit/scope.ts';
import { isEventfd } from '../libc/eventfd.ts';
import type { ForeignFd } from '../libc/fd.ts';
import { isUnixSocket } from '../libc/unix-socket.ts';
import { FeatureSet } from '../virtio/features.ts';
import { ringLayout } from '../virtio/geometry.ts';
import { Malformed } from '../wire/layout.ts';
import type { MessageChannel } from './channel.ts';
import {
  featuresFromU64,
  featuresToU64,
  PROTOCOL_FEATURES_BIT,
  protocolFeature,
  usedProtocolFeatures,
} from './features.ts';
import { GuestMemory } from './guest-memory.ts';
import { InflightFile } from './inflight-file.ts';
import {
  type BodyOf,
  backEndRequests,
  decodePayload,
  encodeMessage,
  type FrontEndRequest,
  frontEndRequestOf,
  type MessageSpec,
  requestName,
} from './messages.ts';
import { empty, FLAG_REPLY, number, VRING_INDEX_MASK, VRING_NO_FD } from './payloads.ts';
import { decodeRegions } from './regions.ts';
import type { OpenChannel, ServedDevice } from './served-device.ts';
import { type QueueFdName, QueueState } from './served-queue.ts';
import { closeAll, type Message } from './stream.ts';

interface Answer {
  readonly body: object;
  readonly fds?: readonly number[];
  /** Gives back what was needed to send it. */
  readonly sent?: () => void;
}

/** A request that cannot be carried out, told by a non-zero acknowledgement, or by the end where there is none. */
class Refusal {
  readonly reason: string;
  constructor(reason: string) {
    this.reason = reason;
  }
}

type Outcome = Answer | Refusal | undefined;

const numberAnswer = (value: bigint): Answer => ({ body: { value } });

const fdNames = { SET_VRING_KICK: 'kick', SET_VRING_CALL: 'call', SET_VRING_ERR: 'error' } as const;

type Handlers = { readonly [N in FrontEndRequest]: (body: BodyOf<N>, fds: ForeignFd[]) => Outcome | Promise<Outcome> };

/**
 * The side of a vhost-user connection that has the device. The front-end is not trusted: whatever breaks the protocol
 * ends the connection, what cannot be done is refused. Requests are carried out one after the other.
 */
export class BackEnd implements Closable {
  readonly #channel: MessageChannel;
  readonly #device: ServedDevice;
  readonly #openChannel: OpenChannel;
  readonly #memory = new GuestMemory();
  readonly #queues: readonly QueueState[];
  readonly #waiting = new BoundedQueue<Message>(limits.vhostUserPendingRequests);
  #requests: MessageChannel | undefined;
  #inflight: InflightFile | undefined;
  #features = FeatureSet.empty;
  #protocol = FeatureSet.empty;
  #status = 0;
  #busy = false;
  #ended: string | undefined;

  /** @param channel is started here, and closed in the end */
  constructor(channel: MessageChannel, device: ServedDevice, openChannel: OpenChannel) {
    this.#channel = channel;
    this.#device = device;
    this.#openChannel = openChannel;
    this.#queues = Array.from({ length: device.queues }, (_, index) => new QueueState(index));
    channel.start({ received: (message) => this.#onMessage(message), ended: (reason) => this.#end(reason) });
  }

  /** Tells the front-end that the configuration space has changed, where it wants to know. */
  configChanged(): void {
    const message = encodeMessage(backEndRequests.CONFIG_CHANGE_MSG.id, 0, empty, {});
    if (this.#protocol.has(protocolFeature.CONFIG)) this.#requests?.send(message);
  }

  #onMessage(message: Message): void {
    if (!this.#waiting.push(message)) {
      closeAll(message.fds);
      this.#end('the front-end sent too many requests at once');
    } else if (!this.#busy) void this.#serveAll();
  }

  async #serveAll(): Promise<void> {
    this.#busy = true;
    for (
      let next = this.#waiting.shift();
      next !== undefined && this.#ended === undefined;
      next = this.#waiting.shift()
    ) {
      const fds = [...next.fds];
      try {
        const wrong = await this.#serve(next, fds);
        if (wrong !== undefined) this.#end(wrong);
      } catch (error) {
        if (!(error instanceof VmsgError)) throw error;
        this.#end(error.message);
      } finally {
        // What a handler has taken is no longer in the list.
        closeAll(fds);
      }
    }
    this.#busy = false;
    if (this.#ended !== undefined) await this.#finish(this.#ended);
  }

  /** @returns why the connection ends */
  async #serve(message: Message, fds: ForeignFd[]): Promise<string | undefined> {
    const known = frontEndRequestOf(message.request);
    if (known === undefined || message.reply) return `the front-end sent ${requestName(message.request)}`;
    const { name, spec } = known;
    if (spec.needs !== undefined && !this.#protocol.has(protocolFeature[spec.needs])) {
      return `the front-end sent ${name} without ${spec.needs}`;
    }
    if (fds.length > spec.fds) return `the front-end sent ${fds.length} descriptors with ${name}`;
    const body = decodePayload(spec.payload, message.payload);
    if (body instanceof Malformed) return `the front-end sent ${name} with a wrong length: ${body.reason}`;
    const handler = (this.#handlers as Partial<Record<string, (body: never, fds: ForeignFd[]) => Outcome>>)[name];
    const outcome = await (handler ?? (() => new Refusal('not served')))(body as never, fds);
    try {
      return this.#ended !== undefined ? undefined : this.#answer(name, spec, message.needReply, outcome);
    } finally {
      if (outcome !== undefined && !(outcome instanceof Refusal)) outcome.sent?.();
    }
  }

  #answer(name: string, spec: MessageSpec, needReply: boolean, outcome: Outcome): string | undefined {
    let answer = outcome instanceof Refusal ? undefined : outcome;
    let reply = spec.reply;
    if (reply === undefined && needReply && this.#protocol.has(protocolFeature.REPLY_ACK)) {
      reply = number;
      answer = numberAnswer(outcome instanceof Refusal ? 1n : 0n);
    }
    if (outcome instanceof Refusal && answer === undefined) return `the front-end sent ${name}: ${outcome.reason}`;
    if (reply === undefined || answer === undefined) return undefined;
    const bytes = encodeMessage(spec.id, FLAG_REPLY, reply, answer.body as never);
    const sent = this.#channel.send(bytes, answer.fds);
    return sent === 'sent' ? undefined : 'the front-end does not read its answers';
  }

  readonly #handlers: Handlers = {
    GET_FEATURES: () => numberAnswer(featuresToU64(this.#device.features.with(PROTOCOL_FEATURES_BIT))),
    SET_FEATURES: ({ value }) => {
      const features = featuresFromU64(value);
      const offered = this.#device.features.with(PROTOCOL_FEATURES_BIT);
      if (!features.isSubsetOf(offered)) return new Refusal('features that were not offered');
      if (this.#queues.some((queue) => queue.running)) return new Refusal('features of running queues');
      this.#features = features;
      return undefined;
    },
    SET_OWNER: () => undefined,
    GET_PROTOCOL_FEATURES: () => numberAnswer(featuresToU64(usedProtocolFeatures)),
    SET_PROTOCOL_FEATURES: ({ value }) => {
      const features = featuresFromU64(value);
      if (!features.isSubsetOf(usedProtocolFeatures)) return new Refusal('protocol features that were not offered');
      this.#protocol = features;
      return undefined;
    },
    GET_QUEUE_NUM: () => numberAnswer(BigInt(this.#queues.length)),
    GET_MAX_MEM_SLOTS: () => numberAnswer(BigInt(limits.vhostUserMemSlotsMax)),
    SET_MEM_TABLE: ({ regions }, fds) => this.#setMemoryTable(regions, fds),
    ADD_MEM_REG: ({ region }, fds) => this.#addRegion(region, fds),
    REM_MEM_REG: ({ region }) =>
      this.#paused(() => (this.#memory.remove(decodeRegions(region)[0]!) ? undefined : new Refusal('no such region'))),
    SET_VRING_NUM: ({ index, num }) =>
      this.#change(index, (queue) => {
        queue.size = num;
      }),
    SET_VRING_BASE: ({ index, num }) =>
      this.#change(index, (queue) => {
        queue.base = num;
      }),
    SET_VRING_ADDR: ({ index, descriptor, available, used }) =>
      this.#change(index, (queue) => {
        queue.addresses = { desc: descriptor, driver: available, device: used };
      }),
    SET_VRING_KICK: ({ value }, fds) => this.#setQueueFd('SET_VRING_KICK', value, fds),
    SET_VRING_CALL: ({ value }, fds) => this.#setQueueFd('SET_VRING_CALL', value, fds),
    SET_VRING_ERR: ({ value }, fds) => this.#setQueueFd('SET_VRING_ERR', value, fds),
    SET_VRING_ENABLE: ({ index, num }) => this.#enable(index, num),
    GET_VRING_BASE: ({ index }) => this.#stop(index),
    GET_CONFIG: ({ offset, size }) => {
      const content = this.#device.config();
      if (offset + size > content.length) return { body: { offset, size: 0, flags: 0, content: new Uint8Array(0) } };
      return { body: { offset, size, flags: 0, content: content.slice(offset, offset + size) } };
    },
    SET_CONFIG: ({ offset, flags, content }) =>
      offset + content.length <= this.#device.config().length &&
      flags <= 1 &&
      this.#device.writeConfig(offset, content, flags === 1)
        ? undefined
        : new Refusal('no such change of the configuration'),
    SET_BACKEND_REQ_FD: (_, fds) => this.#takeChannel(fds),
    GET_INFLIGHT_FD: ({ queues, queueSize }) => this.#createInflight(queues, queueSize),
    SET_INFLIGHT_FD: (area, fds) => {
      const [fd] = fds;
      if (fd === undefined) return new Refusal('no descriptor');
      const file = InflightFile.open(area, ringLayout(this.#features), fd);
      return typeof file === 'string' ? new Refusal(file) : this.#useInflight(file);
    },
    RESET_DEVICE: () => this.#reset(),
    SET_STATUS: async ({ value }) => {
      this.#status = Number(value & 0xffn);
      return this.#status === 0 ? await this.#reset() : undefined;
    },
    GET_STATUS: () => numberAnswer(BigInt(this.#status)),
  };

  #setMemoryTable(bytes: Uint8Array, fds: ForeignFd[]): Promise<Outcome> {
    return this.#paused(() => {
      const regions = decodeRegions(bytes);
      if (regions.length !== fds.length) return new Refusal(`${regions.length} regions, ${fds.length} descriptors`);
      this.#memory.removeAll();
      for (const [index, region] of regions.entries()) {
        const wrong = this.#memory.add(region, fds[index]!);
        if (wrong !== undefined) return new Refusal(wrong);
      }
      return undefined;
    });
  }

  #addRegion(bytes: Uint8Array, fds: ForeignFd[]): Outcome {
    const [fd] = fds;
    if (fd === undefined) return new Refusal('no descriptor');
    if (this.#memory.count === limits.vhostUserMemSlotsMax) return new Refusal('no memory slot is free');
    const wrong = this.#memory.add(decodeRegions(bytes)[0]!, fd);
    return wrong === undefined ? undefined : new Refusal(wrong);
  }

  /** Something about a queue that must not change while it runs. */
  #change(index: number, change: (queue: QueueState) => void): Outcome {
    const queue = this.#queues[index];
    if (queue === undefined) return new Refusal(`queue ${index}`);
    if (queue.running) return new Refusal(`queue ${index} runs`);
    change(queue);
    return undefined;
  }

  async #setQueueFd(name: keyof typeof fdNames, value: bigint, fds: ForeignFd[]): Promise<Outcome> {
    const queue = this.#queues[Number(value & VRING_INDEX_MASK)];
    const expected = (value & VRING_NO_FD) === 0n ? 1 : 0;
    if (value > (VRING_INDEX_MASK | VRING_NO_FD) || queue === undefined) return new Refusal(`queue ${value}`);
    if (fds.length !== expected) return new Refusal(`${fds.length} descriptors, ${expected} announced`);
    if (fds[0] !== undefined && !isEventfd(fds[0].number)) return new Refusal('not an eventfd');
    const fd: QueueFdName = fdNames[name];
    return await this.#paused(() => {
      queue.setFd(fd, fds.shift());
      return fd === 'kick' ? this.#run(queue) : undefined;
    });
  }

  async #enable(index: number, num: number): Promise<Outcome> {
    const queue = this.#queues[index];
    if (queue === undefined || num > 1) return new Refusal(`queue ${index}, ${num}`);
    queue.enabled = num === 1;
    if (!queue.enabled) await this.#halt(queue);
    return this.#run(queue);
  }

  async #stop(index: number): Promise<Outcome> {
    const queue = this.#queues[index];
    if (queue === undefined) return new Refusal(`queue ${index}`);
    await this.#halt(queue);
    queue.forgetFds();
    return { body: { index, num: queue.base } };
  }

  /** Starts a queue that is ready and enabled; without protocol features all are. */
  #run(queue: QueueState): Outcome {
    const enabled = queue.enabled || !this.#features.has(PROTOCOL_FEATURES_BIT);
    if (queue.running || !enabled || !queue.kicked || this.#ended !== undefined) return undefined;
    const features = this.#features.minus(FeatureSet.of(PROTOCOL_FEATURES_BIT));
    const log = this.#inflight?.logOf(queue.index, queue.size, ringLayout(features));
    const served = queue.served(this.#memory, features, log);
    if (typeof served === 'string') return new Refusal(served);
    const refused = this.#device.startQueue(served, this.#memory);
    if (refused !== undefined) return new Refusal(refused);
    queue.running = true;
    return undefined;
  }

  async #halt(queue: QueueState): Promise<void> {
    if (!queue.running) return;
    queue.running = false;
    queue.base = await this.#device.stopQueue(queue.index);
  }

  /** Changes what running queues use: they stop for it, and go on where that is still possible. */
  async #paused(change: () => Outcome): Promise<Outcome> {
    const running = this.#queues.filter((queue) => queue.running);
    for (const queue of running) await this.#halt(queue);
    if (this.#ended !== undefined) return undefined;
    let outcome = change();
    for (const queue of running) outcome ??= this.#run(queue);
    return outcome;
  }

  #takeChannel(fds: ForeignFd[]): Outcome {
    const [fd] = fds;
    if (fd === undefined || !isUnixSocket(fd.number, 'stream')) return new Refusal('not a stream socket');
    this.#requests?.close();
    fds.shift();
    this.#requests = this.#openChannel(fd);
    // Answers to what needs none are not looked at.
    this.#requests.start({ received: (message) => closeAll(message.fds), ended: () => {} });
    return undefined;
  }

  #createInflight(queues: number, queueSize: number): Outcome {
    const created = InflightFile.create(queues, queueSize, ringLayout(this.#features));
    if (typeof created === 'string') return new Refusal(created);
    const refusal = this.#useInflight(created.file);
    if (refusal !== undefined) {
      created.fd.close();
      return refusal;
    }
    const body = { ...created.file.area, padding: 0 };
    return { body, fds: [created.fd.number], sent: () => created.fd.close() };
  }

  #useInflight(file: InflightFile): Refusal | undefined {
    if (this.#queues.some((queue) => queue.running)) {
      file.close();
      return new Refusal('queues run');
    }
    this.#inflight?.close();
    this.#inflight = file;
    return undefined;
  }

  async #reset(): Promise<undefined> {
    for (const queue of this.#queues) {
      await this.#halt(queue);
      queue.close();
    }
    this.#status = 0;
    this.#features = FeatureSet.empty;
    this.#device.reset();
  }

  #end(reason: string): void {
    if (this.#ended !== undefined) return;
    this.#ended = reason;
    this.#channel.close();
    this.#requests?.close();
    for (let next = this.#waiting.shift(); next !== undefined; next = this.#waiting.shift()) closeAll(next.fds);
    // A request that is being carried out comes to its end first.
    if (!this.#busy) void this.#finish(reason);
  }

  async #finish(reason: string): Promise<void> {
    for (const queue of this.#queues) {
      await this.#halt(queue);
      queue.close();
    }
    this.#memory.close();
    this.#inflight?.close();
    this.#device.ended(reason);
  }

  /** The device is told that the front-end has ended. Idempotent. */
  close(): void {
    this.#end('this side has closed the connection');
  }
}
