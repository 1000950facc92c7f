import type { Clock, Timer } from '../kit/clock.ts';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { BusRequest, busRequests } from '../virtio-msg/bus-messages.ts';
import { type CanonicalMessage, dialectD5 } from '../virtio-msg/dialect.ts';
import { typeBus } from '../virtio-msg/header.ts';
import type { TransportRequest, transportRequests } from '../virtio-msg/transport-messages.ts';
import type { Decoded } from '../wire/layout.ts';

export type TransportRequestName = keyof typeof transportRequests & string;
export type TransportRequestBody<N extends TransportRequestName> = Decoded<(typeof transportRequests)[N]['request']>;
export type TransportResponseBody<N extends TransportRequestName> = Decoded<(typeof transportRequests)[N]['response']>;
export type BusRequestName = keyof typeof busRequests & string;
export type BusRequestBody<N extends BusRequestName> = Decoded<(typeof busRequests)[N]['request']>;
export type BusResponseBody<N extends BusRequestName> = Decoded<(typeof busRequests)[N]['response']>;

/** What carries requests to devices: a bus, or what stands for one. */
export interface DeviceRequests {
  readonly terms: { readonly maxMessageSize: number; readonly transportFeatures: number };
  request<N extends TransportRequestName>(
    device: number,
    name: N,
    body: TransportRequestBody<N>,
  ): Promise<TransportResponseBody<N>>;
}

/** Where a request goes: a device number, or the bus itself. */
export type Target = number | 'bus';

/** What to do with a request that has no response when the connection is replaced by one that resumes. */
export type OnReplace = 'repeat' | 'reject';

interface Pending {
  readonly target: Target;
  readonly name: string;
  readonly frame: Uint8Array;
  readonly onReplace: OnReplace;
  readonly resolve: (body: never) => void;
  readonly reject: (error: Error) => void;
  timer: Timer | undefined;
}

export interface IssuedRequest {
  readonly frame: Uint8Array;
  readonly response: Promise<unknown>;
}

const keyOf = (target: Target, token: number): number => (target === 'bus' ? 0x1_0000_0000 : target * 0x1_0000) + token;

/**
 * Requests without a response. A token is unique over the whole bus and never 0; it comes around again after
 * 65534 others, so a response that is late by less than that finds nobody. Sans-IO: the caller moves the frames.
 */
export class RequestTable {
  readonly #clock: Clock;
  readonly #timeoutMs: number;
  readonly #pending = new Map<number, Pending>();
  readonly #perTarget = new Map<Target, number>();
  #lastToken = 0;
  #suspended = false;

  constructor(clock: Clock, timeoutMs: number) {
    this.#clock = clock;
    this.#timeoutMs = timeoutMs;
  }

  /**
   * Registers a request whose time runs from now, or from `resume` when suspended. The caller sends the frame.
   * @throws VmsgError 'limit-reached' when too many wait, or the message is too large for the bus
   */
  issue(target: Target, message: BusRequest | TransportRequest, maxSize: number, onReplace: OnReplace): IssuedRequest {
    const open = this.#perTarget.get(target) ?? 0;
    if (this.#pending.size >= limits.guestPendingRequests || open >= limits.devicePendingRequests) {
      throw new VmsgError('limit-reached', `${message.name}: too many requests without a response`);
    }
    const length = dialectD5.encodedLength(message);
    if (length > maxSize) {
      throw new VmsgError('limit-reached', `${message.name}: ${length} bytes, the bus carries ${maxSize}`);
    }
    const token = this.#nextToken();
    const frame = new Uint8Array(length);
    dialectD5.encode(message, target === 'bus' ? 0 : target, token, frame);
    const response = new Promise<never>((resolve, reject) => {
      const pending: Pending = { target, name: message.name, frame, onReplace, resolve, reject, timer: undefined };
      this.#pending.set(keyOf(target, token), pending);
      this.#perTarget.set(target, open + 1);
      if (!this.#suspended || onReplace === 'reject') this.#startTimer(keyOf(target, token), pending);
    });
    return { frame, response };
  }

  #nextToken(): number {
    // Tokens in use are at most guestPendingRequests, so a free one is near.
    const used = new Set([...this.#pending.keys()].map((key) => key % 0x1_0000));
    do this.#lastToken = this.#lastToken === 0xffff ? 1 : this.#lastToken + 1;
    while (used.has(this.#lastToken));
    return this.#lastToken;
  }

  #startTimer(key: number, pending: Pending): void {
    pending.timer = this.#clock.after(this.#timeoutMs, () => {
      const to = pending.target === 'bus' ? 'the bus' : `device ${pending.target}`;
      this.#take(key)?.reject(new VmsgError('timeout', `${pending.name}: no answer from ${to}`));
    });
  }

  #take(key: number): Pending | undefined {
    const pending = this.#pending.get(key);
    if (pending === undefined) return undefined;
    this.#pending.delete(key);
    pending.timer?.cancel();
    const open = (this.#perTarget.get(pending.target) ?? 1) - 1;
    if (open === 0) this.#perTarget.delete(pending.target);
    else this.#perTarget.set(pending.target, open);
    return pending;
  }

  /** @returns false when no such request waits: the response is late, repeated or forged */
  settle(target: Target, token: number, message: CanonicalMessage & { kind: 'response' }): boolean {
    const key = keyOf(target, token);
    if (this.#pending.get(key)?.name !== message.name) return false;
    this.#take(key)?.resolve(message.body as never);
    return true;
  }

  /** The bus says that a request has no answer (FAILURE). @returns false when no such request waits */
  fail(target: Target, token: number, id: number, error: (name: string) => Error): boolean {
    const key = keyOf(target, token);
    const pending = this.#pending.get(key);
    if (pending === undefined || pending.frame[1] !== id) return false;
    this.#take(key)?.reject(error(pending.name));
    return true;
  }

  /** Ends every request, or those of one target. */
  rejectAll(error: Error, target?: Target): void {
    for (const [key, pending] of [...this.#pending]) {
      if (target === undefined || pending.target === target) this.#take(key)?.reject(error);
    }
  }

  /** The connection is gone: time stands still; what must not be repeated ends. */
  suspend(error: Error): void {
    this.#suspended = true;
    for (const [key, pending] of [...this.#pending]) {
      pending.timer?.cancel();
      if (pending.onReplace === 'reject') this.#take(key)?.reject(error);
    }
  }

  /** A new connection resumes. @returns the frames to send again, in their order */
  resume(): Uint8Array[] {
    this.#suspended = false;
    for (const [key, pending] of this.#pending) {
      pending.timer?.cancel();
      this.#startTimer(key, pending);
    }
    return [...this.#pending.values()].map((pending) => pending.frame);
  }
}

/** The target of a FAILURE, from the type byte of the request that failed. */
export const failedTarget = (type: number, device: number): Target => (type & typeBus ? 'bus' : device);
