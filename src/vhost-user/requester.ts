import { BoundedQueue } from '../kit/bounded-queue.ts';
import type { Clock, Timer } from '../kit/clock.ts';
import { type ErrorCode, VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { SendResult } from '../libc/messenger.ts';
import type { MessageChannel } from './channel.ts';
import { requestName } from './messages.ts';
import { closeAll, type Message } from './stream.ts';

/** What a message must be to be an answer, and whom it is for. */
interface Expected {
  readonly id: number;
  readonly maxFds: number;
  /** @returns why the message is no such answer */
  readonly take: (message: Message) => string | undefined;
  readonly reject: (error: VmsgError) => void;
  readonly timer: Timer;
}

export interface Question {
  readonly id: number;
  readonly bytes: Uint8Array;
  readonly fds: readonly number[];
  /** Descriptors of the answer, at most. */
  readonly maxFds: number;
  readonly timeoutMs: number;
}

/**
 * Questions and answers on one channel. Answers come in the order of the questions, so any number may be under way;
 * each is waited for a bounded time. Whatever is not the next answer ends the connection.
 */
export class Requester {
  readonly #channel: MessageChannel;
  readonly #clock: Clock;
  readonly #onEnd: (error: VmsgError) => void;
  readonly #expected = new BoundedQueue<Expected>(limits.vhostUserPendingRequests);
  #ended: VmsgError | undefined;

  /** @param onEnd the connection has ended by itself; not told after `end` */
  constructor(channel: MessageChannel, clock: Clock, onEnd: (error: VmsgError) => void) {
    this.#channel = channel;
    this.#clock = clock;
    this.#onEnd = onEnd;
    channel.start({
      received: (message) => this.#onMessage(message),
      ended: (reason, violation) => this.#fail(violation ? 'protocol-violation' : 'backend-lost', reason),
    });
  }

  /** Why nothing can be asked any more. */
  get ended(): VmsgError | undefined {
    return this.#ended;
  }

  /** Sends what is not answered. @throws VmsgError why the connection has ended */
  tell(bytes: Uint8Array, fds: readonly number[]): void {
    if (this.#ended === undefined) this.#send(bytes, fds);
    if (this.#ended !== undefined) throw this.#ended;
  }

  /**
   * @param take gets the answer, whose descriptors are its own when it accepts; @returns the value, or in words why it
   *   is no answer to this
   */
  ask<T>(question: Question, take: (message: Message) => { readonly value: T } | string): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      if (this.#ended !== undefined) {
        reject(this.#ended);
        return;
      }
      const { id, timeoutMs, maxFds } = question;
      if (this.#expected.length === this.#expected.capacity) {
        reject(new VmsgError('limit-reached', `${this.#expected.capacity} requests wait for the back-end`));
        return;
      }
      const timer = this.#clock.after(timeoutMs, () =>
        this.#fail('timeout', `the back-end has not answered ${requestName(id)} in ${timeoutMs} ms`),
      );
      this.#expected.push({
        id,
        maxFds,
        take: (message) => {
          const taken = take(message);
          if (typeof taken === 'string') return taken;
          resolve(taken.value);
          return undefined;
        },
        reject,
        timer,
      });
      this.#send(question.bytes, question.fds);
    });
  }

  #send(bytes: Uint8Array, fds: readonly number[]): void {
    const result = this.#trySend(bytes, fds);
    if (result instanceof VmsgError) this.#fail(result.code, result.message);
    if (result === 'gone') this.#fail('backend-lost', 'the other side has closed the connection');
    if (result === 'full') this.#fail('backend-lost', 'the back-end does not read what it is sent');
  }

  #trySend(bytes: Uint8Array, fds: readonly number[]): SendResult | VmsgError {
    try {
      return this.#channel.send(bytes, fds);
    } catch (error) {
      if (error instanceof VmsgError) return error;
      throw error;
    }
  }

  #onMessage(message: Message): void {
    const next = this.#expected.peek();
    const wrong = this.#whyNot(message, next) ?? next?.take(message);
    if (wrong !== undefined) {
      closeAll(message.fds);
      this.#fail('protocol-violation', wrong);
      return;
    }
    next?.timer.cancel();
    this.#expected.shift();
  }

  #whyNot(message: Message, next: Expected | undefined): string | undefined {
    const name = requestName(message.request);
    if (!message.reply) return `the back-end sent ${name} where only answers go`;
    if (next === undefined) return `the back-end answered ${name}, which was not asked`;
    if (message.request !== next.id) return `the back-end answered ${name} in place of ${requestName(next.id)}`;
    if (message.fds.length > next.maxFds) {
      return `the back-end answered ${name} with ${message.fds.length} descriptors, at most ${next.maxFds} belong to it`;
    }
    return undefined;
  }

  #fail(code: ErrorCode, reason: string): void {
    if (this.#ended !== undefined) return;
    this.#finish(new VmsgError(code, reason));
    this.#onEnd(this.#ended!);
  }

  /** Ends the connection from this side. Idempotent. */
  end(error: VmsgError): void {
    if (this.#ended === undefined) this.#finish(error);
  }

  #finish(error: VmsgError): void {
    this.#ended = error;
    this.#channel.close();
    for (let each = this.#expected.shift(); each !== undefined; each = this.#expected.shift()) {
      each.timer.cancel();
      each.reject(error);
    }
  }
}
