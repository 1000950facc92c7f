import type { Clock } from '../../../kit/clock.ts';
import { VmsgError } from '../../../kit/errors.ts';
import { limits } from '../../../kit/limits.ts';
import type { FeatureSet } from '../../../virtio/features.ts';
import type { RingAddresses } from '../../../virtio/queue.ts';
import type { ShadowConfig, ShadowControl } from '../../shadow/control.ts';
import type { ShadowMemory } from '../../shadow/shadow-memory.ts';
import type { Link } from './link.ts';
import type { Session } from './session.ts';

/** The control path of the shadow path to a vhost-user back-end. What is away is waited for. */
export class VhostUserControl implements ShadowControl {
  readonly #link: Link;
  readonly #clock: Clock;

  constructor(link: Link, clock: Clock) {
    this.#link = link;
    this.#clock = clock;
  }

  get memory(): ShadowMemory {
    return this.#link.latest.memory;
  }

  async reset(): Promise<void> {
    const { session } = this.#link;
    if (session === undefined) return;
    await this.#orEnd(session, () => session.reset()).catch(ignoreVmsgError);
  }

  async agree(has: (bit: number) => boolean): Promise<FeatureSet> {
    const session = await this.#link.ready();
    this.#link.forgetOld();
    return await session.agree(has);
  }

  #session(): Session {
    const { session } = this.#link;
    if (session === undefined) throw new VmsgError('backend-lost', 'the back-end has gone');
    return session;
  }

  async enableQueue(index: number, size: number, addresses: RingAddresses): Promise<void> {
    await this.#session().enableQueue(index, size, addresses);
  }

  async resetQueue(index: number): Promise<void> {
    const session = this.#session();
    await this.#orEnd(session, () => session.stopQueue(index));
  }

  /** A back-end that cannot be stopped is of no use: its connection ends, and nobody looks at what it writes then. */
  async #orEnd(session: Session, stop: () => Promise<void>): Promise<void> {
    const give = (why: string): void => this.#link.drop(session, why);
    const seconds = limits.vhostUserResetTimeoutMs / 1000;
    const late = this.#clock.after(limits.vhostUserResetTimeoutMs, () => give(`it does not stop in ${seconds} s`));
    try {
      await stop();
    } catch (error) {
      if (error instanceof VmsgError) give(error.message);
      throw error;
    } finally {
      late.cancel();
    }
  }

  async start(): Promise<void> {
    await this.#session().start();
  }

  kick(queue: number): void {
    this.#link.session?.kick(queue);
  }

  config(): ShadowConfig {
    return {
      read: async (offset, length) => await this.#session().readConfig(offset, length),
      write: async (offset, data) => await this.#session().writeConfig(offset, data),
    };
  }
}

function ignoreVmsgError(error: unknown): void {
  if (!(error instanceof VmsgError)) throw error;
}
