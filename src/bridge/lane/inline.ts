import { fromErrorData, toErrorData } from '../../kit/errors.ts';
import { LaneCore, type LaneCoreOptions } from './core.ts';
import type { Lane, LaneCommandName, LaneCommands, LaneEvent } from './protocol.ts';

/** A lane in the thread of its caller. Values are cloned as they would be on the way to a Worker. */
export class InlineLane implements Lane {
  readonly #core: LaneCore;
  #listener: ((event: LaneEvent) => void) | undefined;
  #closed = false;

  constructor(make: (emit: (event: LaneEvent) => void) => LaneCoreOptions) {
    this.#core = new LaneCore(make((event) => this.#listener?.(structuredClone(event))));
  }

  onEvent(listener: (event: LaneEvent) => void): void {
    this.#listener = listener;
  }

  async call<N extends LaneCommandName>(
    name: N,
    argument: LaneCommands[N]['argument'],
  ): Promise<LaneCommands[N]['result']> {
    try {
      return structuredClone(await this.#core.call(name, structuredClone(argument)));
    } catch (error) {
      throw fromErrorData(structuredClone(toErrorData(error)));
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    void this.#core.call('shutdown', {});
  }
}
