import type { Closable } from '../kit/scope.ts';
import type { SendResult } from '../libc/messenger.ts';
import type { Message } from './stream.ts';

export interface ChannelEvents {
  /** The message and its descriptors are the receiver's. */
  received(message: Message): void;
  /**
   * The last event, and not told after `close`.
   * @param reason what happened, for a person. @param violation the other side broke the protocol
   */
  ended(reason: string, violation: boolean): void;
}

/** Carries messages both ways, in order. */
export interface MessageChannel extends Closable {
  /** To be called once; events come after it. */
  start(events: ChannelEvents): void;
  /**
   * @param fds stay the caller's, who may close them at once
   * @returns 'full': not taken, for the other side has not read what was sent before; 'gone': nobody will ever read it
   * @throws SystemCallError for descriptors that are none, or when this process is out of them
   */
  send(message: Uint8Array, fds?: readonly number[]): SendResult;
}
