import type { EnabledQueue } from '../../../../device/queue-engine.ts';
import { VmsgError } from '../../../../kit/errors.ts';
import { Scope } from '../../../../kit/scope.ts';
import { createEventfd, drainEventfd, signalSharedEventfd } from '../../../../libc/eventfd.ts';
import type { Fd } from '../../../../libc/fd.ts';
import type { Poller } from '../../../../libc/poll.ts';
import type { SharedSignal } from '../../../../libc/signal-batch.ts';
import type { QueueDescriptors } from '../../../../ports/bus.ts';
import { type Access, type AddressSpace, TranslateFault } from '../../../../ports/memory.ts';
import type { QueueStart } from '../../../../vhost-user/device.ts';
import { ringAlign, ringBytes } from '../../../../virtio/geometry.ts';

export interface DirectQueueEvents {
  /** The program has completed requests, and the guest is not told by itself. */
  used(): void;
  /** The program says that the queue is broken. */
  broken(): void;
}

/** How it is woken and wakes. */
export interface WakingParts {
  readonly poller: Poller;
  readonly signals: SharedSignal;
}

/** Where the index of both rings of a split queue is, in 16-bit words (virtio 1.3, 2.7.6 and 2.7.8). */
const indexWord = 1;

/**
 * A started queue that another program works on: its rings, which stay mapped here as long as it is started, and what
 * both sides wake each other with. Only split rings.
 */
export class DirectQueue {
  readonly index: number;
  /** The program has it. */
  started = false;
  readonly #queue: EnabledQueue;
  readonly #available: Uint16Array;
  readonly #usedRing: Uint16Array;
  readonly #scope: Scope;
  readonly #kick: Fd;
  readonly #call: Fd;
  readonly #error: Fd;
  readonly #signals: SharedSignal;
  readonly #used: () => void;
  #descriptors: QueueDescriptors | undefined;

  private constructor(queue: EnabledQueue, rings: Rings, { poller, signals }: WakingParts, events: DirectQueueEvents) {
    this.index = queue.index;
    this.#queue = queue;
    this.#signals = signals;
    this.#available = rings.available;
    this.#usedRing = rings.used;
    this.#scope = rings.scope;
    this.#kick = this.#scope.own(createEventfd());
    this.#call = this.#scope.own(createEventfd());
    this.#error = this.#scope.own(createEventfd());
    const watch = (fd: Fd, signalled: () => void): void => {
      const onReadable = (): void => {
        if (drainEventfd(fd.number)) signalled();
      };
      this.#scope.own(poller.watch(fd.number, onReadable));
    };
    this.#used = () => events.used();
    watch(this.#call, this.#used);
    watch(this.#error, () => events.broken());
  }

  /** @returns a sentence when the rings are not in memory of the guest, or there are no descriptors left */
  static open(
    queue: EnabledQueue,
    space: AddressSpace,
    parts: WakingParts,
    events: DirectQueueEvents,
  ): DirectQueue | string {
    const rings = mapRings(queue, space);
    if (typeof rings === 'string') return rings;
    try {
      return new DirectQueue(queue, rings, parts, events);
    } catch (error) {
      rings.scope.close();
      if (error instanceof VmsgError) return error.message;
      throw error;
    }
  }

  /** Requests that the driver has made available and the program has not completed. */
  get inFlight(): number {
    return (this.#available[indexWord]! - this.usedIndex) & 0xffff;
  }

  /** What the program has completed, modulo 2^16. */
  get usedIndex(): number {
    return this.#usedRing[indexWord]!;
  }

  /** The guest's own descriptors, which go to the program with the next start; they stay the caller's. */
  set descriptors(descriptors: QueueDescriptors | undefined) {
    this.#descriptors = descriptors;
  }

  /** @param base where the program begins */
  startAt(base: number): QueueStart {
    const { size, descAddr: desc, driverAddr: driver, deviceAddr: device } = this.#queue;
    const { kick = this.#kick, call = this.#call } = this.#descriptors ?? {};
    const signals = { kick: kick.number, call: call.number, error: this.#error.number };
    return { index: this.index, size, base, desc, driver, device, ...signals };
  }

  kick(): void {
    if (this.#scope.closed) return;
    // The guest can fill its own, and clear O_NONBLOCK.
    if (this.#descriptors !== undefined) this.#signals.signal(this.#descriptors.kick.number);
    else signalSharedEventfd(this.#kick.number);
  }

  /** Either may have something to do. */
  notifyBoth(): void {
    this.kick();
    if (this.#scope.closed) return;
    if (this.#descriptors === undefined) this.#used();
    else this.#signals.signal(this.#descriptors.call.number);
  }

  /** Idempotent. */
  close(): void {
    this.#scope.close();
  }
}

interface Rings {
  readonly available: Uint16Array;
  readonly used: Uint16Array;
  readonly scope: Scope;
}

function mapRings(queue: EnabledQueue, space: AddressSpace): Rings | string {
  const scope = new Scope();
  const bytes = ringBytes('split', queue.size);
  const align = ringAlign('split');
  const map = (part: 'desc' | 'driver' | 'device', access: Access): Uint8Array | string => {
    const address = queue[`${part}Addr`];
    if (address % BigInt(align[part]) !== 0n) return `the ${part} area is not aligned to ${align[part]}`;
    const parts: Uint8Array[] = [];
    const lease = space.translate(Number(address >> 32n), Number(address & 0xffff_ffffn), bytes[part], access, parts);
    if (lease instanceof TranslateFault) return lease.reason;
    scope.defer(() => lease.release());
    return parts.length === 1 ? parts[0]! : `the ${part} area is scattered`;
  };
  const areas = [map('desc', 'read'), map('driver', 'read'), map('device', 'write')];
  const problem = areas.find((area) => typeof area === 'string');
  if (problem !== undefined) {
    scope.close();
    return problem as string;
  }
  const words = (area: Uint8Array | string): Uint16Array => {
    const { buffer, byteOffset, length } = area as Uint8Array;
    return new Uint16Array(buffer, byteOffset, length >> 1);
  };
  return { available: words(areas[1]!), used: words(areas[2]!), scope };
}
