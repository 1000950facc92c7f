import type { Domid, EventChannel, EventChannels } from '../ports/hypervisor.ts';
import type { QueueSignal } from './access.ts';

/** An event channel of one queue, for both directions. */
export class ChannelSignal implements QueueSignal {
  readonly forProgram: boolean;
  readonly #channel: EventChannel;
  #onUsed: (() => void) | undefined;

  /** @throws HypervisorError */
  constructor(channels: EventChannels, remote: Domid, forProgram: boolean) {
    this.forProgram = forProgram;
    this.#channel = channels.bindUnbound(remote, () => this.#onUsed?.());
  }

  offer(): { readonly kick: number; readonly call: number } {
    const { port } = this.#channel;
    return { kick: port, call: port };
  }

  start(onUsed: () => void): void {
    this.#onUsed = onUsed;
  }

  kick(): void {
    this.#channel.notify();
  }

  close(): void {
    this.#onUsed = undefined;
    this.#channel.close();
  }
}
