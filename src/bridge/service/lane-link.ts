import { VmsgError } from '../../kit/errors.ts';
import type { Lane, LaneCommandName, LaneCommands, LaneEvent, LaneSnapshot } from '../lane/protocol.ts';

const changesLane: ReadonlySet<LaneCommandName> = new Set(['openBus', 'closeBus', 'attach', 'detach']);

/**
 * The lane as the service uses it: calls end when the lane fails, and readers that ask at the same time share one
 * snapshot, never one older than a change that was answered before they asked.
 */
export class LaneLink {
  readonly #lane: Lane;
  readonly #pending = new Set<(error: VmsgError) => void>();
  #failure: string | null = null;
  #changes = 0;
  #reading: { readonly changes: number; readonly snapshot: Promise<LaneSnapshot> } | null = null;

  /** @param listener gets what the lane reports, a failure after all calls under way were rejected */
  constructor(lane: Lane, listener: (event: LaneEvent) => void) {
    this.#lane = lane;
    lane.onEvent((event) => {
      if (event.type === 'lane-failed') this.#fail(event.reason);
      else this.#changes += 1;
      listener(event);
    });
  }

  /** Why the lane failed, or null. */
  get failure(): string | null {
    return this.#failure;
  }

  /** @throws VmsgError as the lane answers, `unavailable` when it fails or has failed */
  async call<N extends LaneCommandName>(
    name: N,
    argument: LaneCommands[N]['argument'],
  ): Promise<LaneCommands[N]['result']> {
    if (this.#failure !== null) throw laneFailed(this.#failure);
    let reject: (error: VmsgError) => void = () => {};
    const failed = new Promise<never>((_, fail) => {
      reject = fail;
    });
    this.#pending.add(reject);
    try {
      return await Promise.race([this.#lane.call(name, argument), failed]);
    } finally {
      this.#pending.delete(reject);
      if (changesLane.has(name)) this.#changes += 1;
    }
  }

  /** State of every bus now. */
  snapshot(): Promise<LaneSnapshot> {
    if (this.#reading?.changes === this.#changes) return this.#reading.snapshot;
    const reading = { changes: this.#changes, snapshot: this.call('inspect', {}) };
    this.#reading = reading;
    const done = () => {
      if (this.#reading === reading) this.#reading = null;
    };
    reading.snapshot.then(done, done);
    return reading.snapshot;
  }

  close(): void {
    this.#lane.close();
  }

  #fail(reason: string): void {
    if (this.#failure !== null) return;
    this.#failure = reason;
    for (const reject of [...this.#pending]) reject(laneFailed(reason));
  }
}

const laneFailed = (reason: string): VmsgError => new VmsgError('unavailable', `the lane failed: ${reason}`);
