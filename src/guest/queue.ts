import { BoundedQueue } from '../kit/bounded-queue.ts';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import { type Scheduler, systemScheduler } from '../kit/scheduler.ts';
import { feature } from '../virtio/features.ts';
import { type BufferRange, type DriverQueue, type IndirectTable, QueueFault } from '../virtio/queue.ts';
import type { GuestBuffer } from './buffer.ts';
import type { Notifier } from './notifier.ts';

/** What the driver asks for when it agrees on features. A device that does not offer it goes without. */
export interface RingOptions {
  /** Packed rings (RING_PACKED), which take any number of entries; split ones by default. */
  readonly packed?: boolean;
  /** The device completes chains in the order in which it got them (IN_ORDER). */
  readonly inOrder?: boolean;
}

export interface QueueOptions {
  /** Entries, a power of two unless the rings are packed; 128 by default, less when the device has less. */
  readonly size?: number;
  /**
   * 'messages': EVENT_AVAIL and EVENT_USED. 'own': a way of this queue's own, which does not pass through the rings of the
   * bus: an eventfd and a socket, on Xen an event channel. 'auto' (the default): where another program works on the
   * queue, a way of its own to that program; else messages. 'descriptors' is an older name of 'own'.
   */
  readonly notify?: 'auto' | 'messages' | 'own' | 'descriptors';
}

/** Buffers of a chain with an indirect table, at most. */
export const indirectEntries = 8;

interface Pending {
  readonly table: IndirectTable | undefined;
  readonly resolve: (writtenBytes: number) => void;
  readonly reject: (error: Error) => void;
}

interface Waiter extends Omit<Pending, 'table'> {
  readonly readable: readonly BufferRange[];
  readonly writable: readonly BufferRange[];
}

export interface VirtQueueParts {
  readonly index: number;
  readonly rings: DriverQueue;
  readonly notifier: Notifier;
  /** Tables for chains of several buffers; none when indirect descriptors were not agreed. */
  readonly tables: IndirectTable[];
  /** Ring memory and tables. */
  readonly buffers: readonly GuestBuffer[];
  readonly scheduler?: Scheduler;
}

/** A virtqueue from the driver's side: one promise a request, in any number; a full queue makes them wait in order. */
export class VirtQueue {
  readonly index: number;
  /** Entries. */
  readonly size: number;
  readonly #rings: DriverQueue;
  readonly #notifier: Notifier;
  readonly #notificationData: boolean;
  readonly #scheduler: Scheduler;
  readonly #onFault: (error: VmsgError) => void;
  readonly #buffers: readonly GuestBuffer[];
  readonly #tables: IndirectTable[];
  /** By token: head descriptor or buffer id. */
  readonly #pending: Array<Pending | undefined>;
  readonly #waiters = new BoundedQueue<Waiter>(limits.guestQueueWaiters);
  #inFlight = 0;
  #kickPlanned = false;
  #drainPlanned = false;
  #ended: Error | undefined;

  constructor(parts: VirtQueueParts, onFault: (error: VmsgError) => void) {
    this.index = parts.index;
    this.size = parts.rings.size;
    this.#rings = parts.rings;
    this.#notifier = parts.notifier;
    this.#notificationData = parts.rings.setup.features.has(feature.NOTIFICATION_DATA);
    this.#scheduler = parts.scheduler ?? systemScheduler;
    this.#onFault = onFault;
    this.#buffers = parts.buffers;
    this.#tables = parts.tables;
    this.#pending = new Array<Pending | undefined>(this.size);
    this.#notifier.start(() => this.onUsed());
  }

  /** Requests that the device has. */
  get inFlight(): number {
    return this.#inFlight;
  }

  /**
   * Gives the device a chain of buffers. They belong to the device until the promise settles.
   * @returns bytes that the device wrote to the writable part, as it says
   * @throws VmsgError 'limit-reached' when too many requests wait already; else what ended the queue
   */
  submit(readable: readonly BufferRange[], writable: readonly BufferRange[]): Promise<number> {
    return new Promise<number>((resolve, reject) => {
      const count = readable.length + writable.length;
      if (this.#ended !== undefined) reject(this.#ended);
      else if (count === 0 || count > this.size)
        reject(new VmsgError('invalid-request', `a chain of ${count} buffers`));
      else if (this.#waiters.length > 0 || !this.#add({ readable, writable, resolve, reject })) {
        if (this.#waiters.push({ readable, writable, resolve, reject })) return;
        reject(new VmsgError('limit-reached', `${limits.guestQueueWaiters} requests wait for queue ${this.index}`));
      }
    });
  }

  #add(request: Waiter): boolean {
    const { readable, writable, resolve, reject } = request;
    const count = readable.length + writable.length;
    const table = count > 1 && count <= indirectEntries ? this.#tables.pop() : undefined;
    const token = this.#rings.add(readable, writable, table === undefined ? {} : { indirect: table });
    if (token === undefined) {
      if (table !== undefined) this.#tables.push(table);
      return false;
    }
    this.#pending[token] = { table, resolve, reject };
    this.#inFlight += 1;
    this.#planKick();
    return true;
  }

  /** One kick for all requests of this turn. */
  #planKick(): void {
    if (this.#kickPlanned) return;
    this.#kickPlanned = true;
    this.#scheduler.soon(() => {
      this.#kickPlanned = false;
      if (this.#ended === undefined && this.#rings.kick()) this.#kick();
    });
  }

  #kick(): void {
    this.#notifier.kick(this.#notificationData ? this.#rings.notificationData : 0);
  }

  /** Takes completed requests, a bounded number, and lets waiting ones in. */
  onUsed(): void {
    if (this.#ended !== undefined || this.#drainPlanned) return;
    for (let left = limits.queueBatchChains; left > 0; left--) {
      const used = this.#rings.next();
      if (used instanceof QueueFault) {
        this.#fail(used);
        return;
      }
      if (used !== undefined) this.#complete(used.token, used.writtenBytes);
      else if (!this.#rings.enableInterrupts()) {
        this.#admit();
        return;
      }
    }
    this.#admit();
    this.#drainPlanned = true;
    this.#scheduler.later(() => {
      this.#drainPlanned = false;
      this.onUsed();
    });
  }

  #complete(token: number, writtenBytes: number): void {
    const pending = this.#pending[token];
    if (pending === undefined) return;
    this.#pending[token] = undefined;
    this.#inFlight -= 1;
    if (pending.table !== undefined) this.#tables.push(pending.table);
    pending.resolve(writtenBytes);
  }

  #admit(): void {
    for (let waiter = this.#waiters.peek(); waiter !== undefined; waiter = this.#waiters.peek()) {
      if (!this.#add(waiter)) return;
      this.#waiters.shift();
    }
  }

  #fail(fault: QueueFault): void {
    const what = `the device broke queue ${this.index}: ${fault.reason}, ${fault.detail}`;
    this.#onFault(new VmsgError('device-failed', what));
  }

  /** A new connection resumes: hands its signal over again. */
  rewire(): Promise<void> {
    return this.#notifier.wire('resume');
  }

  /** The device works again: it is notified of everything, for an earlier notification may be lost. */
  resumed(): void {
    if (this.#ended !== undefined) return;
    this.#rings.kick();
    this.#kick();
    this.onUsed();
  }

  /** Ends every request, waiting ones too. */
  end(error: Error): void {
    if (this.#ended !== undefined) return;
    this.#ended = error;
    for (const [token, pending] of this.#pending.entries()) {
      this.#pending[token] = undefined;
      pending?.reject(error);
    }
    this.#inFlight = 0;
    for (let waiter = this.#waiters.shift(); waiter !== undefined; waiter = this.#waiters.shift()) waiter.reject(error);
  }

  /** @param quiet the device touches the memory no more, so that it may be used again. Idempotent */
  close(quiet: boolean): void {
    this.end(new VmsgError('bus-lost', `queue ${this.index} was closed`));
    this.#notifier.close();
    if (quiet) for (const buffer of this.#buffers) buffer.free();
  }
}
