import type { SendResult } from '../../src/libc/messenger.ts';
import type { ChannelEvents, MessageChannel } from '../../src/vhost-user/channel.ts';
import { featuresFromU64, featuresToU64 } from '../../src/vhost-user/features.ts';
import { encodeMessage, frontEndRequests, requestName } from '../../src/vhost-user/messages.ts';
import { FLAG_REPLY, messageHeader, number } from '../../src/vhost-user/payloads.ts';
import { closeAll, type Message } from '../../src/vhost-user/stream.ts';
import { FeatureSet } from '../../src/virtio/features.ts';
import { RamDisk } from './vhost-user-ram-disk.ts';

/** What a back-end does with requests, by their names, in place of what it should. */
export interface Habits {
  /** Every request, in order. */
  readonly log: string[];
  readonly refuse: Set<string>;
  /** Never answered. */
  readonly ignore: Set<string>;
  /** Looked at no earlier; nothing else is asked meanwhile. */
  readonly delay: Map<string, Promise<void>>;
  /** Answered with bytes that are no message. */
  readonly babble: Set<string>;
  /** Protocol features that it does not have. */
  without: FeatureSet;
}

export const goodHabits = (): Habits => ({
  log: [],
  refuse: new Set(),
  ignore: new Set(),
  delay: new Map(),
  babble: new Set(),
  without: FeatureSet.empty,
});

const nonsense = new Uint8Array(64).fill(0x5a);

/** A channel of a back-end with habits. */
export class HabitChannel implements MessageChannel {
  readonly #inner: MessageChannel;
  readonly #habits: Habits;

  constructor(inner: MessageChannel, habits: Habits) {
    this.#inner = inner;
    this.#habits = habits;
  }

  start(events: ChannelEvents): void {
    this.#inner.start({
      received: (message) => {
        if (this.#isKept(message)) return;
        const delay = this.#habits.delay.get(requestName(message.request));
        if (delay === undefined) events.received(message);
        else void delay.then(() => events.received(message));
      },
      ended: (reason, violation) => events.ended(reason, violation),
    });
  }

  #isKept(message: Message): boolean {
    const { log, refuse, ignore, babble } = this.#habits;
    const name = requestName(message.request);
    log.push(name);
    if (refuse.has(name)) this.#inner.send(encodeMessage(message.request, FLAG_REPLY, number, { value: 1n }));
    else if (babble.has(name)) this.#inner.send(nonsense);
    else if (!ignore.has(name)) return false;
    closeAll(message.fds);
    return true;
  }

  send(message: Uint8Array, fds: readonly number[] = []): SendResult {
    const view = new DataView(message.buffer, message.byteOffset, message.length);
    if (view.getUint32(0, true) === frontEndRequests.GET_PROTOCOL_FEATURES.id) {
      const offered = featuresFromU64(view.getBigUint64(messageHeader.size, true)).minus(this.#habits.without);
      view.setBigUint64(messageHeader.size, featuresToU64(offered), true);
    }
    return this.#inner.send(message, fds);
  }

  close(): void {
    this.#inner.close();
  }
}

/** A disk that does not look at its queues while it is lazy, and may take more than it completes. */
export class LazyDisk extends RamDisk {
  lazy = false;
  /** Requests that it says to have taken when a queue stops, besides those that it completed. */
  surplus = 0;
  starts = 0;
  /** A queue stops no earlier. */
  mayStop: Promise<void> = Promise.resolve();

  override startQueue(...queue: Parameters<RamDisk['startQueue']>): string | undefined {
    this.starts += 1;
    return this.lazy ? undefined : super.startQueue(...queue);
  }

  override async stopQueue(index: number): Promise<number> {
    await this.mayStop;
    const taken = this.running.includes(index) ? await super.stopQueue(index) : 0;
    return taken + this.surplus;
  }
}
