import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { Scheduler } from '../kit/scheduler.ts';
import { RingConsumer, RingProducer } from '../virtio-msg/ring.ts';
import type { TransportHandlers } from './transport.ts';

export interface FrameRingsParts {
  readonly toService: Uint8Array;
  readonly toGuest: Uint8Array;
  readonly slotSize: number;
  readonly sleepWords: boolean;
  readonly scheduler: Scheduler;
  /** Rings the service's doorbell. */
  readonly ring: () => void;
  /** The service wrote an index that cannot be; never called from within `send`. */
  readonly onBroken: (error: VmsgError) => void;
}

/** The guest's use of a pair of message rings. Nothing touches them after `close`. */
export class FrameRings {
  readonly #parts: FrameRingsParts;
  readonly #producer: RingProducer;
  readonly #consumer: RingConsumer;
  readonly #slot: Uint8Array;
  #handlers: Pick<TransportHandlers, 'onFrame' | 'onRoom'> | undefined;
  #draining = false;
  #closed = false;

  constructor(parts: FrameRingsParts) {
    this.#parts = parts;
    const { toService, toGuest, slotSize, sleepWords } = parts;
    this.#producer = new RingProducer(toService, slotSize, sleepWords);
    this.#consumer = new RingConsumer(toGuest, slotSize, sleepWords);
    this.#slot = new Uint8Array(slotSize);
  }

  start(handlers: Pick<TransportHandlers, 'onFrame' | 'onRoom'>): void {
    this.#handlers = handlers;
    this.#drain();
  }

  send(frame: Uint8Array): 'sent' | 'full' {
    if (this.#closed) return 'sent';
    const result = this.#producer.push(frame);
    if (result === 'full') return 'full';
    if (result === 'broken') {
      // Not from within the caller, who is in the middle of something.
      this.#parts.scheduler.later(() => this.#break());
      return 'sent';
    }
    if (this.#producer.publish()) this.#parts.ring();
    return 'sent';
  }

  /** The doorbell rang. */
  wake(): void {
    if (this.#closed) return;
    this.#handlers?.onRoom();
    this.#drain();
  }

  /** Takes a bounded batch, then lets others have their turn. */
  #drain(): void {
    if (this.#draining) return;
    this.#draining = true;
    for (let i = 0; i < limits.channelBatchMessages; i++) {
      if (this.#closed) return;
      const result = this.#consumer.pop(this.#slot);
      if (result === 'broken') {
        this.#break();
        return;
      }
      if (result === 'message') this.#handlers?.onFrame(this.#slot);
      else {
        this.#release();
        if (this.#consumer.sleep()) {
          this.#draining = false;
          return;
        }
      }
    }
    if (this.#closed) return;
    this.#release();
    this.#parts.scheduler.later(() => {
      this.#draining = false;
      this.wake();
    });
  }

  #release(): void {
    if (this.#consumer.release()) this.#parts.ring();
  }

  #break(): void {
    if (this.#closed) return;
    this.#parts.onBroken(new VmsgError('protocol-violation', 'the service wrote an invalid ring index'));
  }

  close(): void {
    this.#closed = true;
    this.#handlers = undefined;
  }
}
