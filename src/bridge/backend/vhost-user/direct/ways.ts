import { errno, wireErrno } from '../../../../kit/errno.ts';
import { VmsgError } from '../../../../kit/errors.ts';
import { Scope } from '../../../../kit/scope.ts';
import { createEventfd } from '../../../../libc/eventfd.ts';
import type { GuestPort, QueueDescriptors, QueueWay } from '../../../../ports/bus.ts';
import { HypervisorFault } from '../../../../ports/hypervisor.ts';
import type { DataPlane } from '../../../data-plane/data-plane.ts';

/** What the program is woken and wakes with, for one queue. */
interface Way {
  readonly descriptors: QueueDescriptors;
  close(): Promise<void>;
}

export interface QueueWaysEvents {
  /** Other descriptors, or none any more. Those before stay open until `afterAll` has come to its argument. */
  changed(index: number, descriptors: QueueDescriptors | undefined): void;
  /** Calls back when what was asked of the program before is done. */
  afterAll(then: () => void): void;
  /** Nothing is passed on any more. */
  lost(index: number, reason: string): void;
}

/** The guest's own ways for the notifications of its queues: descriptors, or event channels that are joined with some. */
export class QueueWays {
  readonly #plane: DataPlane;
  readonly #events: QueueWaysEvents;
  readonly #ways = new Map<number, Way>();
  /** How often a queue was given a way, so that one that comes late is known. */
  readonly #asked = new Map<number, number>();
  /** Queues whose way before is still in use. */
  readonly #changing = new Set<number>();

  constructor(plane: DataPlane, events: QueueWaysEvents) {
    this.#plane = plane;
    this.#events = events;
  }

  descriptorsOf(index: number): QueueDescriptors | undefined {
    return this.#ways.get(index)?.descriptors;
  }

  /** @param way is owned from now on; undefined ends the one before. @returns 0 or an errno for the guest */
  use(index: number, way: QueueWay | undefined): number | Promise<number> {
    if (way !== undefined && this.#changing.has(index)) {
      giveUp(way);
      return errno.EBUSY;
    }
    const turn = (this.#asked.get(index) ?? 0) + 1;
    this.#asked.set(index, turn);
    if (way !== undefined && 'kickPort' in way) return this.#join(index, way, () => this.#asked.get(index) === turn);
    void this.#replace(index, way === undefined ? undefined : { descriptors: way, close: async () => closeBoth(way) });
    return 0;
  }

  /** The way before is closed in its time. */
  #replace(index: number, way: Way | undefined): Promise<void> {
    const before = this.#ways.get(index);
    if (way === undefined) this.#ways.delete(index);
    else this.#ways.set(index, way);
    if (before === undefined && way === undefined) return Promise.resolve();
    this.#changing.add(index);
    this.#events.changed(index, way?.descriptors);
    return new Promise((resolve) => {
      const replaced = (): void => {
        this.#changing.delete(index);
        resolve();
      };
      // A queue may just be started or stopped with it.
      this.#events.afterAll(() => {
        if (before === undefined) replaced();
        else void before.close().then(replaced);
      });
    });
  }

  async #join(
    index: number,
    { kickPort, callPort }: { readonly kickPort: GuestPort; readonly callPort: GuestPort },
    isWanted: () => boolean,
  ): Promise<number> {
    const scope = new Scope();
    scope.own(kickPort);
    scope.own(callPort);
    // A port is bound once: what was joined with it before goes first.
    await this.#replace(index, undefined);
    try {
      const [kick, call] = [scope.own(createEventfd()), scope.own(createEventfd())];
      const joined = await this.#plane.join(
        {
          kick: { from: { channel: { domid: kickPort.domid, port: kickPort.port } }, to: kick.number },
          call: { from: call.number, to: { channel: { domid: callPort.domid, port: callPort.port } } },
        },
        (reason) => this.#events.lost(index, reason),
      );
      if (joined instanceof HypervisorFault) {
        kickPort.refused(joined);
        return fail(scope, joined.errno);
      }
      const close = async (): Promise<void> => {
        await joined.close();
        scope.close();
      };
      if (isWanted()) {
        void this.#replace(index, { descriptors: { kick, call }, close });
        return 0;
      }
      await close();
      return fail(scope, 'EBUSY');
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      return fail(scope, 'ENOMEM');
    }
  }

  /** Nothing is started or stopped any more. */
  close(): void {
    for (const index of [...this.#asked.keys()]) this.#asked.set(index, -1);
    for (const way of this.#ways.values()) void way.close();
    this.#ways.clear();
  }
}

function fail(scope: Scope, name: string): number {
  scope.close();
  return errno[wireErrno(name)];
}

function giveUp(way: QueueWay): void {
  if ('kick' in way) closeBoth(way);
  else {
    way.kickPort.close();
    way.callPort.close();
  }
}

function closeBoth({ kick, call }: QueueDescriptors): void {
  kick.close();
  call.close();
}
