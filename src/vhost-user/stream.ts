import { limits } from '../kit/limits.ts';
import type { ForeignFd } from '../libc/fd.ts';
import { decode, Malformed } from '../wire/layout.ts';
import { FLAG_NEED_REPLY, FLAG_REPLY, messageHeader, VERSION, VERSION_MASK } from './payloads.ts';

/** One message as it came; nothing in it has been judged but the header. */
export interface Message {
  readonly request: number;
  readonly reply: boolean;
  readonly needReply: boolean;
  /** A private copy. */
  readonly payload: Uint8Array;
  /** The receiver's to close. */
  readonly fds: readonly ForeignFd[];
}

export function closeAll(fds: Iterable<ForeignFd>): void {
  for (const fd of fds) fd.close();
}

interface Header {
  readonly request: number;
  readonly flags: number;
  readonly size: number;
}

const flagsMax = VERSION_MASK | FLAG_REPLY | FLAG_NEED_REPLY;

function headerOf(bytes: Uint8Array): Header | string {
  const header = decode(messageHeader, bytes, 0, bytes.length);
  if (header instanceof Malformed) return header.reason;
  if ((header.flags & VERSION_MASK) !== VERSION) return `a message of version ${header.flags & VERSION_MASK}`;
  if (header.flags > flagsMax) return `a message with the flags 0x${header.flags.toString(16)}`;
  if (header.size > limits.vhostUserPayloadMaxBytes) return `a message with ${header.size} bytes of payload`;
  return header;
}

/**
 * Makes messages of the bytes and descriptors of one stream, in whatever pieces they come. Descriptors belong to the
 * message whose header they came with: the first one of which the piece has header bytes. The first fault is final.
 */
export class MessageReader {
  readonly #header = new Uint8Array(messageHeader.size);
  #headerBytes = 0;
  #current: Header | undefined;
  #payload = new Uint8Array(0);
  #payloadBytes = 0;
  #fds: ForeignFd[] = [];
  #fault: string | undefined;

  /** Why nothing is read any more. */
  get fault(): string | undefined {
    return this.#fault;
  }

  /** Bytes up to the end of the header or payload at hand: a read of so many never mixes two messages. */
  get wantedBytes(): number {
    return this.#current === undefined
      ? this.#header.length - this.#headerBytes
      : this.#payload.length - this.#payloadBytes;
  }

  /** Whether the stream may end here without cutting a message. */
  get idle(): boolean {
    return this.#current === undefined && this.#headerBytes === 0;
  }

  /**
   * Takes one piece.
   * @param fds are the reader's from now on
   * @returns what is complete, the receiver's with its descriptors; also after a fault what came before it
   */
  push(bytes: Uint8Array, fds: readonly ForeignFd[] = []): Message[] {
    const messages: Message[] = [];
    let waiting = fds;
    for (let at = 0; at < bytes.length && this.#fault === undefined; ) {
      if (this.#current === undefined) {
        this.#takeFds(waiting);
        waiting = [];
      }
      at += this.#take(bytes.subarray(at), messages);
    }
    if (waiting.length > 0) {
      closeAll(waiting);
      this.#fail('descriptors that came without a header');
    }
    return messages;
  }

  /** The stream has ended or is given up. */
  close(): void {
    this.#fail('the stream is closed');
  }

  #takeFds(fds: readonly ForeignFd[]): void {
    const room = limits.vhostUserFdsPerMessage - this.#fds.length;
    this.#fds.push(...fds.slice(0, room));
    if (fds.length <= room) return;
    closeAll(fds.slice(room));
    this.#fail(`a message with more than ${limits.vhostUserFdsPerMessage} descriptors`);
  }

  /** @returns bytes taken */
  #take(bytes: Uint8Array, messages: Message[]): number {
    if (this.#fault !== undefined) return bytes.length;
    const part = bytes.subarray(0, this.wantedBytes);
    if (this.#current !== undefined) {
      this.#payload.set(part, this.#payloadBytes);
      this.#payloadBytes += part.length;
    } else {
      this.#header.set(part, this.#headerBytes);
      this.#headerBytes += part.length;
      if (this.#headerBytes === this.#header.length) this.#begin();
    }
    if (this.#current !== undefined && this.#payloadBytes === this.#payload.length)
      messages.push(this.#finish(this.#current));
    return part.length;
  }

  #begin(): void {
    const header = headerOf(this.#header);
    if (typeof header === 'string') {
      this.#fail(header);
      return;
    }
    this.#current = header;
    this.#payload = new Uint8Array(header.size);
    this.#payloadBytes = 0;
  }

  #finish(header: Header): Message {
    const message: Message = {
      request: header.request,
      reply: (header.flags & FLAG_REPLY) !== 0,
      needReply: (header.flags & FLAG_NEED_REPLY) !== 0,
      payload: this.#payload,
      fds: this.#fds,
    };
    this.#fds = [];
    this.#current = undefined;
    this.#headerBytes = 0;
    return message;
  }

  #fail(reason: string): void {
    this.#fault ??= reason;
    closeAll(this.#fds);
    this.#fds = [];
  }
}
