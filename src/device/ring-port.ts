import type { BusPort } from '../ports/bus.ts';
import { type RingConsumer, type RingProducer, ringBroken } from '../virtio-msg/ring.ts';

/** A pair of message rings and a doorbell as a bus port. */
export class RingPort implements BusPort {
  readonly slotBytes: number;
  readonly #in: RingConsumer;
  readonly #out: RingProducer;
  readonly #ring: () => void;

  constructor(slotBytes: number, incoming: RingConsumer, outgoing: RingProducer, ringDoorbell: () => void) {
    this.slotBytes = slotBytes;
    this.#in = incoming;
    this.#out = outgoing;
    this.#ring = ringDoorbell;
  }

  receive(target: Uint8Array): 'message' | 'empty' | 'broken' {
    return this.#in.pop(target);
  }

  send(frame: Uint8Array): 'sent' | 'full' | 'broken' {
    const outcome = this.#out.push(frame);
    if (outcome === 'pushed') return 'sent';
    return outcome === ringBroken ? 'broken' : 'full';
  }

  flush(): boolean {
    const published = this.#out.publish();
    const released = this.#in.release();
    if (published || released) this.#ring();
    return published || released;
  }

  sleep(): boolean {
    return this.#in.sleep();
  }
}
