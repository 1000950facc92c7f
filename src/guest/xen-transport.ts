import { VmsgError } from '../kit/errors.ts';
import { type Scheduler, systemScheduler } from '../kit/scheduler.ts';
import { FrameRings } from './frame-rings.ts';
import type { GuestTransport, TransportCounters, TransportHandlers, TransportTerms } from './transport.ts';
import type { XenConnection } from './xen-connection.ts';

/** A connection of a Xen bus for a guest that uses devices. */
export class XenTransport implements GuestTransport {
  readonly terms: TransportTerms;
  readonly counters: TransportCounters = { doorbellsIn: 0, doorbellsOut: 0 };
  readonly #connection: XenConnection;
  readonly #rings: FrameRings;
  #handlers: TransportHandlers | undefined;

  constructor(connection: XenConnection, scheduler: Scheduler = systemScheduler) {
    this.#connection = connection;
    this.terms = connection.terms;
    const { toService, toGuest, slotSize, sleepWords } = connection;
    const ring = (): void => {
      this.counters.doorbellsOut += 1;
      connection.ring();
    };
    const onBroken = (error: Error): void => this.#lose(error);
    this.#rings = new FrameRings({ toService, toGuest, slotSize, sleepWords, scheduler, ring, onBroken });
  }

  start(handlers: TransportHandlers): void {
    this.#handlers = handlers;
    this.#connection.start({
      onDoorbell: () => {
        this.counters.doorbellsIn += 1;
        this.#rings.wake();
      },
      onLost: (reason) => this.#lose(new VmsgError('bus-lost', reason)),
    });
    this.#rings.start(handlers);
  }

  sendFrame(frame: Uint8Array): 'sent' | 'full' {
    return this.#rings.send(frame);
  }

  sendDescriptors(): never {
    throw new VmsgError('invalid-request', 'a Xen bus carries no descriptors');
  }

  takeDescriptor(): undefined {
    return undefined;
  }

  #lose(error: Error): void {
    const handlers = this.#handlers;
    if (handlers === undefined) return;
    this.close();
    handlers.onLost(error);
  }

  close(): void {
    this.#handlers = undefined;
    // Before the leave: nothing may touch the rings once the service has let go of them.
    this.#rings.close();
    this.#connection.close();
  }
}
