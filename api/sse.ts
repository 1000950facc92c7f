import type { ServerResponse } from 'node:http';
import type { EventSource, ServiceEvent } from '../src/bridge/events.ts';
import { BoundedQueue } from '../src/kit/bounded-queue.ts';
import type { Clock, Timer } from '../src/kit/clock.ts';
import { VmsgError } from '../src/kit/errors.ts';
import { limits } from '../src/kit/limits.ts';

export interface StreamParts {
  readonly events: EventSource;
  readonly clock: Clock;
  /** Part of every event id, so that ids of an earlier run are not taken for ours. */
  readonly instance: string;
  /** Called when a client was dropped because it did not read. */
  readonly onSlowClient: () => void;
}

/** One client. What it does not read in time waits here, up to the limit. */
class EventStream {
  readonly #out: ServerResponse;
  readonly #backlog = new BoundedQueue<string>(limits.eventStreamBacklogEvents);
  #blocked = false;

  get waiting(): number {
    return this.#backlog.length;
  }

  constructor(out: ServerResponse) {
    this.#out = out;
    out.on('drain', () => this.#flush());
  }

  /** @returns false when the client is too far behind */
  send(text: string): boolean {
    if (this.#blocked) return this.#backlog.push(text);
    this.#blocked = !this.#out.write(text);
    return true;
  }

  /** Keeps proxies from closing the connection; not needed while data waits. */
  beat(): void {
    if (!this.#blocked) this.#blocked = !this.#out.write(': \n\n');
  }

  #flush(): void {
    this.#blocked = false;
    while (!this.#blocked) {
      const text = this.#backlog.shift();
      if (text === undefined) return;
      this.#blocked = !this.#out.write(text);
    }
  }
}

/** All clients that watch events as Server-Sent Events. */
export class EventStreams {
  readonly #parts: StreamParts;
  readonly #open = new Set<() => void>();
  /** Streams dropped since the start. */
  dropped = 0;
  /** Events that dropped streams did not get. */
  droppedEvents = 0;

  constructor(parts: StreamParts) {
    this.#parts = parts;
  }

  get count(): number {
    return this.#open.size;
  }

  /** @throws VmsgError `limit-reached` before anything is written */
  checkRoom(): void {
    if (this.#open.size >= limits.eventStreamsMax) {
      throw new VmsgError('limit-reached', `${limits.eventStreamsMax} event streams are open, the most allowed`);
    }
  }

  /** Takes over the response. @param lastEventId the id that the client saw last, to go on after it */
  open(out: ServerResponse, lastEventId: string | undefined, headers: Record<string, string>): void {
    const { events, onSlowClient } = this.#parts;
    out.writeHead(200, { ...headers, 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
    const stream = new EventStream(out);
    stream.send('retry: 2000\n\n');
    const replayed: ServiceEvent[] = [];
    let live = false;
    const deliver = (event: ServiceEvent) => {
      if (out.destroyed || stream.send(this.#format(event))) return;
      this.dropped += 1;
      this.droppedEvents += stream.waiting + 1;
      onSlowClient();
      out.destroy();
    };
    const after = lastEventId === undefined ? undefined : this.#parse(lastEventId);
    const subscription = events.subscribe(
      (event) => {
        if (live) deliver(event);
        else replayed.push(event);
      },
      after ?? (lastEventId === undefined ? undefined : 0),
    );
    live = true;
    const missed = lastEventId !== undefined && (after === undefined || !subscription.complete);
    if (missed) stream.send('event: gap\ndata: {}\n\n');
    for (const event of replayed) deliver(event);
    this.#watch(out, stream, () => subscription.close());
  }

  /** Ends every stream; clients may connect again. */
  closeAll(): void {
    for (const end of [...this.#open]) end();
  }

  #watch(out: ServerResponse, stream: EventStream, unsubscribe: () => void): void {
    let timer: Timer;
    const beat = () => {
      stream.beat();
      timer = this.#parts.clock.after(limits.eventStreamHeartbeatMs, beat);
    };
    timer = this.#parts.clock.after(limits.eventStreamHeartbeatMs, beat);
    const end = () => void out.end();
    this.#open.add(end);
    out.on('close', () => {
      this.#open.delete(end);
      timer.cancel();
      unsubscribe();
    });
  }

  #format(event: ServiceEvent): string {
    return `id: ${this.#parts.instance}-${event.id}\nevent: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`;
  }

  /** @returns undefined for an id that is not of this run */
  #parse(id: string): number | undefined {
    const prefix = `${this.#parts.instance}-`;
    const number = id.startsWith(prefix) ? id.slice(prefix.length) : '';
    return /^\d{1,15}$/.test(number) ? Number(number) : undefined;
  }
}
