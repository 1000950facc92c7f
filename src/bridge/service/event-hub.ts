import { BoundedQueue } from '../../kit/bounded-queue.ts';
import { limits } from '../../kit/limits.ts';
import type { EventSource, ServiceEvent, Subscription } from '../events.ts';

export type EventContent = Pick<ServiceEvent, 'type' | 'kind' | 'object' | 'data'>;

/** Numbers events, keeps the last ones and hands each to every listener. */
export class EventHub implements EventSource {
  readonly #wallMs: () => number;
  readonly #listeners = new Set<(event: ServiceEvent) => void>();
  readonly #history = new BoundedQueue<ServiceEvent>(limits.eventHistoryEvents);
  #lastId = 0;

  constructor(wallMs: () => number) {
    this.#wallMs = wallMs;
  }

  emit(content: EventContent): void {
    this.#lastId += 1;
    const event: ServiceEvent = { id: this.#lastId, time: new Date(this.#wallMs()).toISOString(), ...content };
    if (this.#history.length === this.#history.capacity) this.#history.shift();
    this.#history.push(event);
    for (const listener of this.#listeners) listener(event);
  }

  subscribe(listener: (event: ServiceEvent) => void, after?: number): Subscription {
    let complete = true;
    if (after !== undefined) {
      complete = after <= this.#lastId && after >= this.#lastId - this.#history.length;
      for (const event of this.#kept()) if (event.id > after) listener(event);
    }
    this.#listeners.add(listener);
    return { complete, close: () => void this.#listeners.delete(listener) };
  }

  /** A pass through the queue that leaves it as it was. */
  #kept(): ServiceEvent[] {
    const events: ServiceEvent[] = [];
    for (let left = this.#history.length; left > 0; left -= 1) {
      const event = this.#history.shift();
      if (event === undefined) break;
      events.push(event);
      this.#history.push(event);
    }
    return events;
  }
}
