import { assert } from '../../kit/assert.ts';
import { BoundedQueue } from '../../kit/bounded-queue.ts';
import { limits } from '../../kit/limits.ts';
import type { BackendRequest } from '../../ports/backend.ts';
import { descBytes } from '../../virtio/chain.ts';
import type { BufferRange, IndirectTable } from '../../virtio/queue.ts';
import { scatter } from '../backend/parts.ts';
import type { BounceSlot, BounceSpace } from './bounce-space.ts';
import type { ShadowRing } from './shadow-ring.ts';

/** A request that the serving side has. */
interface Running {
  /** Gone when it was released: the serving side still has the slot. */
  request: BackendRequest | undefined;
  readonly slot: BounceSlot;
  /** Where the writable part starts in the slot. */
  readonly writableAt: number;
}

/** The way to the serving side, while it is set up. */
export interface ShadowPath {
  readonly ring: ShadowRing;
  readonly space: BounceSpace;
  /** INDIRECT_DESC was agreed. */
  readonly indirect: boolean;
  /** A chain has one buffer of each direction at most. */
  readonly oneBuffer: boolean;
}

/** Requests of one virtqueue: they wait in order for the serving side and for memory, then are copied there and back. */
export class ShadowQueue {
  readonly index: number;
  readonly #waiting = new BoundedQueue<BackendRequest>(limits.shadowInFlightRequests);
  readonly #running = new Set<Running>();
  /** A slot was freed: others may have waited for it. */
  readonly #onFreed: () => void;
  #path: ShadowPath | undefined;
  /** The serving side will be reset: what comes now is for the time after that. */
  #held = true;

  constructor(index: number, onFreed: () => void) {
    this.index = index;
    this.#onFreed = onFreed;
  }

  /** Slots that the serving side has. */
  get running(): number {
    return this.#running.size;
  }

  /** Requests that were not released. */
  get requests(): number {
    let count = this.#waiting.length;
    for (const { request } of this.#running) if (request !== undefined) count += 1;
    return count;
  }

  add(request: BackendRequest): void {
    assert(this.#waiting.push(request), 'the queue runner bounds the requests of a queue');
    this.pump();
  }

  /** The serving side has the queue set up. */
  open(path: ShadowPath): void {
    assert(this.#running.size === 0, 'a queue opens without requests of another time');
    this.#path = path;
    this.#held = false;
    this.pump();
  }

  onUsed(): void {
    this.#path?.ring.onUsed();
  }

  /** Hands over what there is room for. */
  pump(): void {
    const path = this.#path;
    if (path === undefined || this.#held) return;
    for (let request = this.#waiting.peek(); request !== undefined; request = this.#waiting.peek()) {
      const shape = shapeOf(request, path);
      if (shape.bytes > 0 && !this.#submit(request, shape, path)) return;
      this.#waiting.shift();
      if (shape.bytes === 0) request.complete(0);
    }
  }

  #submit(request: BackendRequest, shape: Shape, { ring, space }: ShadowPath): boolean {
    if (!ring.hasRoom(shape.tableBytes > 0 ? 1 : shape.readable.length + shape.writable.length)) return false;
    const slot = space.take(this.index, shape.bytes);
    if (slot === undefined) return false;
    const running: Running = { request, slot, writableAt: shape.tableBytes + shape.readableBytes };
    const { readable, writable, table } = rangesOf(slot, shape);
    gather(request.readable, slot.bytes, shape.tableBytes);
    this.#running.add(running);
    ring.submit(readable, writable, table, (writtenBytes) => this.#completed(running, writtenBytes));
    return true;
  }

  #completed(running: Running, writtenBytes: number): void {
    const { request, slot, writableAt } = running;
    if (request !== undefined) {
      running.request = undefined;
      scatter(slot.bytes.subarray(writableAt, writableAt + writtenBytes), request.writable);
    }
    this.#running.delete(running);
    slot.free();
    request?.complete(writtenBytes);
    this.#onFreed();
  }

  /** Hands nothing over until the next `open`. */
  hold(): void {
    this.#held = true;
  }

  /** Gives back what the serving side has not got. */
  releaseWaiting(): void {
    this.#path?.space.leave(this.index);
    for (let request = this.#waiting.shift(); request !== undefined; request = this.#waiting.shift()) request.release();
  }

  /** Gives back everything. The serving side keeps the slots until `quiet`. */
  release(): void {
    this.releaseWaiting();
    this.#releaseRunning();
  }

  #recall(): void {
    const later: BackendRequest[] = [];
    for (let next = this.#waiting.shift(); next !== undefined; next = this.#waiting.shift()) later.push(next);
    for (const running of this.#running) {
      if (running.request !== undefined) this.#waiting.push(running.request);
      running.request = undefined;
    }
    for (const request of later) this.#waiting.push(request);
  }

  #releaseRunning(): void {
    for (const running of this.#running) {
      const { request } = running;
      running.request = undefined;
      request?.release();
    }
  }

  /**
   * The serving side has the queue in reset: what it had completed counts, the rest of what it had is given back. What
   * waits goes on waiting for `open`.
   * @param again what it had is not given back, but waits once more, before the rest
   */
  quiet(again = false): void {
    const path = this.#path;
    this.#path = undefined;
    path?.ring.end();
    path?.space.leave(this.index);
    if (again) this.#recall();
    else this.#releaseRunning();
    for (const { slot } of this.#running) slot.free();
    this.#running.clear();
  }

  /** The memory goes: gives back everything. */
  close(): void {
    this.release();
    this.#path?.ring.close();
    this.#path = undefined;
  }
}

/** How a request is laid out in a slot: indirect table, readable bytes, writable bytes. */
interface Shape {
  readonly tableBytes: number;
  readonly readableBytes: number;
  readonly bytes: number;
  /** Lengths of the descriptors. */
  readonly readable: readonly number[];
  readonly writable: readonly number[];
}

const lengthsOf = (parts: readonly Uint8Array[]): number[] => parts.map(({ length }) => length).filter((n) => n > 0);
const sum = (lengths: readonly number[]): number => lengths.reduce((total, length) => total + length, 0);

/** The driver's descriptors stay what they are, as far as the ring can take so many. */
function shapeOf(request: BackendRequest, { indirect, oneBuffer, ring }: ShadowPath): Shape {
  let readable = lengthsOf(request.readable);
  let writable = lengthsOf(request.writable);
  const readableBytes = sum(readable);
  const writableBytes = sum(writable);
  let count = readable.length + writable.length;
  if (oneBuffer || (!indirect && count > ring.size)) {
    readable = readableBytes > 0 ? [readableBytes] : [];
    writable = writableBytes > 0 ? [writableBytes] : [];
    count = readable.length + writable.length;
  }
  const tableBytes = indirect && count > 1 ? count * descBytes : 0;
  return { tableBytes, readableBytes, bytes: tableBytes + readableBytes + writableBytes, readable, writable };
}

/** Most bytes that a request needs of the bounce memory. */
export const bounceBytes = (request: BackendRequest): number =>
  (request.readable.length + request.writable.length) * descBytes + request.readableBytes + request.writableBytes;

function rangesOf(slot: BounceSlot, { tableBytes, readableBytes, readable, writable }: Shape) {
  const split = (lengths: readonly number[], from: number): BufferRange[] => {
    let at = from;
    return lengths.map((length) => {
      at += length;
      return slot.range(at - length, length);
    });
  };
  return {
    readable: split(readable, tableBytes),
    writable: split(writable, tableBytes + readableBytes),
    table: tableBytes === 0 ? undefined : tableOf(slot, tableBytes),
  };
}

function tableOf(slot: BounceSlot, tableBytes: number): IndirectTable {
  const { hi, lo } = slot.range(0, tableBytes);
  return { hi, lo, words: new Uint32Array(slot.bytes.buffer, slot.bytes.byteOffset, tableBytes / 4) };
}

function gather(parts: readonly Uint8Array[], target: Uint8Array, from: number): void {
  let at = from;
  for (const part of parts) {
    target.set(part, at);
    at += part.length;
  }
}
