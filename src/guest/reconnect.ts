import type { Clock, Timer } from '../kit/clock.ts';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { GuestTransport, ResumePoint, TransportFactory, TransportTerms } from './transport.ts';

/** Makes a lost connection again: attempts with growing pauses, within a total time. */
export class Reconnector {
  readonly #factory: TransportFactory;
  readonly #clock: Clock;
  readonly #totalMs: number;
  #cancelled = false;
  #pause: { readonly timer: Timer; readonly end: () => void } | undefined;

  constructor(factory: TransportFactory, clock: Clock, totalMs: number) {
    this.#factory = factory;
    this.#clock = clock;
    this.#totalMs = totalMs;
  }

  /**
   * @param last the connection that was lost
   * @param adopt takes a connection into use; when it rejects, the connection is closed and the next attempt follows
   * @throws VmsgError when the time is over, the bus refuses this guest, or `cancel` was called
   */
  async run(
    last: TransportTerms,
    adopt: (transport: GuestTransport, resumed: boolean) => Promise<void>,
  ): Promise<void> {
    const deadline = this.#clock.nowMs() + this.#totalMs;
    let point: ResumePoint = last;
    // A connection that did not resume voids what was before, even if the next one resumes that one.
    let stateKept = true;
    const onTerms = (terms: TransportTerms): void => {
      point = terms;
      if (!terms.resumed) stateKept = false;
    };
    for (let delayMs = limits.guestReconnectDelayMinMs; ; delayMs *= 2) {
      try {
        const transport = await this.#factory(point, onTerms);
        onTerms(transport.terms);
        return await this.#adopt(transport, stateKept, adopt);
      } catch (error) {
        if (this.#cancelled || isFinal(error)) throw error;
        const pauseMs = Math.min(delayMs, limits.guestReconnectDelayMaxMs);
        if (this.#clock.nowMs() + pauseMs > deadline) throw error;
        await this.#sleep(pauseMs);
        if (this.#cancelled) throw error;
      }
    }
  }

  async #adopt(
    transport: GuestTransport,
    resumed: boolean,
    adopt: (transport: GuestTransport, resumed: boolean) => Promise<void>,
  ): Promise<void> {
    try {
      if (this.#cancelled) throw new VmsgError('bus-lost', 'the bus was closed');
      await adopt(transport, resumed);
    } catch (error) {
      transport.close();
      throw error;
    }
  }

  #sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const end = () => {
        this.#pause = undefined;
        resolve();
      };
      this.#pause = { timer: this.#clock.after(ms, end), end };
    });
  }

  /** Ends a pause at once and makes the run reject. */
  cancel(): void {
    this.#cancelled = true;
    this.#pause?.timer.cancel();
    this.#pause?.end();
  }
}

/** Another attempt cannot help. 'bus-busy' may: the service may still be releasing the old connection. */
const isFinal = (error: unknown): boolean =>
  error instanceof VmsgError && (error.code === 'bus-refused' || error.code === 'invalid-request');
