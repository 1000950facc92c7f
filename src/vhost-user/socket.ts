import { BoundedQueue } from '../kit/bounded-queue.ts';
import { limits } from '../kit/limits.ts';
import type { Closable } from '../kit/scope.ts';
import { SystemCallError } from '../libc/errno.ts';
import { dupFd, Fd } from '../libc/fd.ts';
import { Messenger, type SendResult } from '../libc/messenger.ts';
import type { Poller, Watch } from '../libc/poll.ts';
import type { ChannelEvents, MessageChannel } from './channel.ts';
import { messageHeader } from './payloads.ts';
import { closeAll, type Message, MessageReader } from './stream.ts';

/** A message that the socket has not taken, or not wholly. */
interface Waiting {
  bytes: Uint8Array;
  /** Copies of the sender's descriptors; closed once they went along. */
  readonly fds: readonly Fd[];
}

interface End {
  readonly reason: string;
  readonly violation: boolean;
}

const gone: End = { reason: 'the other side has closed the connection', violation: false };

/** A messenger large enough for every message; one serves all sockets of a thread. */
export const openMessenger = (): Messenger =>
  new Messenger(messageHeader.size + limits.vhostUserPayloadMaxBytes, limits.vhostUserFdsPerMessage);

/** A connected stream socket. Never waits; what the other side does not read is queued, a bounded number of messages. */
export class SocketChannel implements MessageChannel, Closable {
  readonly #fd: Fd;
  readonly #messenger: Messenger;
  readonly #poller: Poller;
  readonly #reader = new MessageReader();
  readonly #queue = new BoundedQueue<Waiting>(limits.vhostUserSendQueueMessages);
  #events: ChannelEvents | undefined;
  #readWatch: Watch | undefined;
  #writeWatch: Watch | undefined;
  #closed = false;

  /**
   * @param fd a connected, non-blocking stream socket, the channel's from now on
   * @param messenger from `openMessenger`; stays the caller's
   */
  constructor(fd: Fd, messenger: Messenger, poller: Poller) {
    this.#fd = fd;
    this.#messenger = messenger;
    this.#poller = poller;
  }

  /** @throws SystemCallError */
  start(events: ChannelEvents): void {
    this.#events = events;
    this.#readWatch = this.#poller.watch(this.#fd.number, () => this.#onReadable());
  }

  /** @throws SystemCallError when the descriptors cannot be kept for later, or are none */
  send(message: Uint8Array, fds: readonly number[] = []): SendResult {
    if (this.#closed) return 'gone';
    if (this.#queue.length > 0) return this.#enqueue(message, fds);
    const taken = this.#messenger.sendSome(this.#fd.number, message, fds);
    if (taken === 'gone') return taken;
    if (taken === 'full') return this.#enqueue(message, fds);
    return taken === message.length ? 'sent' : this.#enqueue(message.subarray(taken), []);
  }

  #enqueue(message: Uint8Array, numbers: readonly number[]): SendResult {
    if (this.#queue.length === this.#queue.capacity) return 'full';
    const fds: Fd[] = [];
    try {
      for (const number of numbers) fds.push(new Fd(dupFd(number)));
    } catch (error) {
      for (const fd of fds) fd.close();
      throw error;
    }
    this.#queue.push({ bytes: message.slice(), fds });
    if (this.#writeWatch === undefined) {
      this.#writeWatch = this.#poller.watchWritable(this.#fd.number, () => this.#onWritable());
    } else this.#writeWatch.resume();
    return 'sent';
  }

  #onWritable(): void {
    for (let next = this.#queue.peek(); next !== undefined; next = this.#queue.peek()) {
      const numbers = next.fds.filter((fd) => !fd.closed).map((fd) => fd.number);
      const taken = this.#messenger.sendSome(this.#fd.number, next.bytes, numbers);
      // The end of the connection is told by the reading side, after what there is to read.
      if (taken === 'gone') this.#dropQueue();
      if (typeof taken !== 'number') break;
      for (const fd of next.fds) fd.close();
      if (taken < next.bytes.length) next.bytes = next.bytes.subarray(taken);
      else this.#queue.shift();
    }
    if (this.#queue.length === 0) this.#writeWatch?.pause();
  }

  #dropQueue(): void {
    for (let next = this.#queue.shift(); next !== undefined; next = this.#queue.shift()) {
      for (const fd of next.fds) fd.close();
    }
  }

  #onReadable(): void {
    for (let left = limits.vhostUserBatchMessages * 2; left > 0 && !this.#closed; left--) {
      const got = this.#receive();
      if (got === 'empty') return;
      if (!Array.isArray(got)) {
        this.#end(got);
        return;
      }
      for (const message of got) {
        // Whoever closed the channel meanwhile wants no more of it.
        if (this.#closed) closeAll(message.fds);
        else this.#events?.received(message);
      }
      if (this.#reader.fault !== undefined && !this.#closed) {
        this.#end({ reason: `the other side sent ${this.#reader.fault}`, violation: true });
      }
    }
  }

  /** @returns messages, 'empty', or why the connection ends */
  #receive(): Message[] | 'empty' | End {
    try {
      const got = this.#messenger.receive(this.#fd.number, this.#reader.wantedBytes);
      if (got === 'empty') return got;
      if (got === 'closed') {
        return this.#reader.idle ? gone : { reason: `${gone.reason} within a message`, violation: true };
      }
      const messages = this.#reader.push(got.bytes, got.fds);
      if (!got.truncated) return messages;
      for (const message of messages) closeAll(message.fds);
      return { reason: 'the other side sent more descriptors with one message than there may be', violation: true };
    } catch (error) {
      if (error instanceof SystemCallError) return { reason: error.message, violation: false };
      throw error;
    }
  }

  #end({ reason, violation }: End): void {
    const events = this.#events;
    this.close();
    events?.ended(reason, violation);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#events = undefined;
    this.#readWatch?.close();
    this.#writeWatch?.close();
    this.#reader.close();
    this.#dropQueue();
    this.#fd.close();
  }
}
