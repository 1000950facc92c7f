import assert from 'node:assert/strict';
import { createEventfd } from '../../src/libc/eventfd.ts';
import { ForeignFd } from '../../src/libc/fd.ts';
import type { SendResult } from '../../src/libc/messenger.ts';
import type { ChannelEvents, MessageChannel } from '../../src/vhost-user/channel.ts';
import { type Message, MessageReader } from '../../src/vhost-user/stream.ts';
import { fromHex, toHex } from './golden.ts';

/** A message as 12 bytes of header and a payload, all in hex; made without the code under test. */
export function messageHex(id: number, flags: number, payloadHex = ''): string {
  const header = Buffer.alloc(12);
  header.writeUInt32LE(id, 0);
  header.writeUInt32LE(flags, 4);
  header.writeUInt32LE(payloadHex.length / 2, 8);
  return header.toString('hex') + payloadHex;
}

/** Flags of an answer. */
export const REPLY = 5;

/** A u64 in hex, little-endian. */
export function u64Hex(value: bigint): string {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(value);
  return bytes.toString('hex');
}

export const foreignFds = (count: number): ForeignFd[] =>
  Array.from({ length: count }, () => new ForeignFd(createEventfd().release()));

/** One end of a connection whose other end is the test. */
export class FakeChannel implements MessageChannel {
  /** What was sent and not looked at, in hex. */
  readonly sent: string[] = [];
  /** How many descriptors went along with each. */
  readonly sentFds: number[] = [];
  result: SendResult = 'sent';
  closed = false;
  /** Called for each message that is sent. */
  onSent: ((request: number, hex: string) => void) | undefined;
  readonly #reader = new MessageReader();
  #events: ChannelEvents | undefined;

  start(events: ChannelEvents): void {
    assert.equal(this.#events, undefined);
    this.#events = events;
  }

  send(message: Uint8Array, fds: readonly number[] = []): SendResult {
    if (this.result !== 'sent') return this.result;
    this.sent.push(toHex(message));
    this.sentFds.push(fds.length);
    this.onSent?.(Buffer.from(message).readUInt32LE(0), toHex(message));
    return 'sent';
  }

  /** The other end sends bytes in hex. */
  deliver(hex: string, fds: readonly ForeignFd[] = []): void {
    for (const message of this.#reader.push(fromHex(hex), fds)) this.#receive(message);
    if (this.#reader.fault !== undefined) this.end(`the other side sent ${this.#reader.fault}`, true);
  }

  #receive(message: Message): void {
    if (this.closed) for (const fd of message.fds) fd.close();
    else this.#events?.received(message);
  }

  /** The other end is gone. */
  end(reason: string, violation = false): void {
    if (this.closed) return;
    this.closed = true;
    this.#events?.ended(reason, violation);
  }

  close(): void {
    this.closed = true;
    this.#reader.close();
  }
}
