import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { Closable } from '../kit/scope.ts';
import type { FeatureSet } from '../virtio/features.ts';
import { Malformed } from '../wire/layout.ts';
import type { MessageChannel } from './channel.ts';
import { protocolFeature } from './features.ts';
import {
  type BackEndRequest,
  backEndRequests,
  decodePayload,
  encodeMessage,
  type MessageSpec,
  namedBackEndRequests,
} from './messages.ts';
import { FLAG_REPLY, number } from './payloads.ts';
import { closeAll, type Message } from './stream.ts';

export interface BackEndRequestEvents {
  /** The configuration space has changed; may come any number of times for one change. */
  configChanged(): void;
  /** The driver has something to look at in this queue (INBAND_NOTIFICATIONS only). */
  queueCalled(index: number): void;
  /** The back-end says that this queue is broken (INBAND_NOTIFICATIONS only). */
  queueFailed(index: number): void;
}

const DONE = 0n;
const REFUSED = 1n;

const nameOf = new Map<number, BackEndRequest>(
  Object.entries(backEndRequests).map(([name, spec]) => [spec.id, name as BackEndRequest]),
);
const refusedIds: ReadonlySet<number> = new Set(Object.values(namedBackEndRequests));

/** Answers what the back-end asks on the channel that it was given for that. */
export class BackEndRequests implements Closable {
  readonly #channel: MessageChannel;
  readonly #negotiated: FeatureSet;
  readonly #events: BackEndRequestEvents;
  readonly #onViolation: (reason: string) => void;

  /** @param onViolation the back-end broke the protocol; told once, the channel is closed then */
  constructor(
    channel: MessageChannel,
    negotiated: FeatureSet,
    events: BackEndRequestEvents,
    onViolation: (reason: string) => void,
  ) {
    this.#channel = channel;
    this.#negotiated = negotiated;
    this.#events = events;
    this.#onViolation = onViolation;
    // A back-end may close this channel and go on; what it has to say of the whole connection comes on the other one.
    channel.start({ received: (message) => this.#onMessage(message), ended: () => {} });
  }

  #onMessage(message: Message): void {
    closeAll(message.fds);
    const outcome = this.#serve(message);
    if (typeof outcome === 'string') {
      this.close();
      this.#onViolation(outcome);
    } else if (message.needReply && this.#negotiated.has(protocolFeature.REPLY_ACK)) {
      const answer = encodeMessage(message.request, FLAG_REPLY, number, { value: outcome });
      if (!this.#sent(answer)) this.close();
    }
  }

  /** One that asks and does not read the answers is not worth more memory. */
  #sent(answer: Uint8Array): boolean {
    try {
      return this.#channel.send(answer) === 'sent';
    } catch (error) {
      if (error instanceof VmsgError) return false;
      throw error;
    }
  }

  /** @returns the answer, or what is wrong */
  #serve(message: Message): bigint | string {
    if (message.reply) return `the back-end answered request ${message.request} of its own channel`;
    const name = nameOf.get(message.request);
    if (name === undefined) {
      return refusedIds.has(message.request) ? REFUSED : `the back-end sent the unknown request ${message.request}`;
    }
    const spec: MessageSpec = backEndRequests[name];
    const body = decodePayload(spec.payload, message.payload);
    if (body instanceof Malformed) return `the back-end sent ${name} with a wrong length: ${body.reason}`;
    if (spec.needs !== undefined && !this.#negotiated.has(protocolFeature[spec.needs])) return REFUSED;
    if (name === 'CONFIG_CHANGE_MSG') this.#events.configChanged();
    else {
      const { index } = body as { readonly index: number };
      if (index >= limits.vhostUserQueuesMax) return `the back-end sent ${name} for queue ${index}`;
      if (name === 'VRING_CALL') this.#events.queueCalled(index);
      else this.#events.queueFailed(index);
    }
    return DONE;
  }

  close(): void {
    this.#channel.close();
  }
}
