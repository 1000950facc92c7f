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
  /** Resolves when nothing of the guest's end is used any more, whatever the program still has to do. Idempotent. */
  leave(): Promise<void>;
  /** After `leave`. */
  close(): void;
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
  /** What waits until the program has let go of the way before, by queue. */
  readonly #changing = new Map<number, Promise<void>>();
  /** Queues with a request that waits for that. */
  readonly #waiting = new Set<number>();

  constructor(plane: DataPlane, events: QueueWaysEvents) {
    this.#plane = plane;
    this.#events = events;
  }

  descriptorsOf(index: number): QueueDescriptors | undefined {
    return this.#ways.get(index)?.descriptors;
  }

  /**
   * @param way is owned from now on; undefined ends the one before
   * @returns 0 or an errno for the guest; then there is the way that was, or none where ports could not be joined
   */
  use(index: number, way: QueueWay | undefined): number | Promise<number> {
    const turn = (this.#asked.get(index) ?? 0) + 1;
    const isWanted = (): boolean => this.#asked.get(index) === turn;
    if (way === undefined) {
      this.#asked.set(index, turn);
      void this.#replace(index, undefined);
      return 0;
    }
    const changing = this.#changing.get(index);
    if (changing === undefined) {
      this.#asked.set(index, turn);
      return this.#take(index, way, isWanted);
    }
    // One may wait: a guest can send any number.
    if (this.#waiting.has(index)) return giveUp(way);
    this.#asked.set(index, turn);
    this.#waiting.add(index);
    return changing.then(() => {
      this.#waiting.delete(index);
      return isWanted() ? this.#take(index, way, isWanted) : giveUp(way);
    });
  }

  #take(index: number, way: QueueWay, isWanted: () => boolean): number | Promise<number> {
    if ('kickPort' in way) return this.#join(index, way, isWanted);
    void this.#replace(index, { descriptors: way, leave: async () => {}, close: () => closeBoth(way) });
    return 0;
  }

  /** @returns when the guest's end of the way before is free */
  #replace(index: number, way: Way | undefined): Promise<void> {
    const before = this.#ways.get(index);
    if (way === undefined) this.#ways.delete(index);
    else this.#ways.set(index, way);
    if (before === undefined && way === undefined) return Promise.resolve();
    this.#events.changed(index, way?.descriptors);
    // At once: the guest may use its port for something else now.
    const left = before?.leave() ?? Promise.resolve();
    const changing = new Promise<void>((resolve) => {
      // A queue may just be started or stopped with it.
      this.#events.afterAll(() => {
        void left.then(() => {
          if (this.#changing.get(index) === changing) this.#changing.delete(index);
          resolve();
          before?.close();
        });
      });
    });
    this.#changing.set(index, changing);
    return left;
  }

  async #join(
    index: number,
    { kickPort, callPort }: { readonly kickPort: GuestPort; readonly callPort: GuestPort },
    isWanted: () => boolean,
  ): Promise<number> {
    const ports = new Scope();
    ports.own(kickPort);
    ports.own(callPort);
    const fds = new Scope();
    const fail = (name: string): number => {
      ports.close();
      fds.close();
      return errno[wireErrno(name)];
    };
    // A port is bound once: what was joined with it before goes first.
    await this.#replace(index, undefined);
    try {
      const [kick, call] = [fds.own(createEventfd()), fds.own(createEventfd())];
      const joined = await this.#plane.join(
        {
          kick: { from: { channel: { domid: kickPort.domid, port: kickPort.port } }, to: kick.number },
          call: { from: call.number, to: { channel: { domid: callPort.domid, port: callPort.port } } },
        },
        (reason) => this.#events.lost(index, reason),
      );
      if (joined instanceof HypervisorFault) {
        kickPort.refused(joined);
        return fail(joined.errno);
      }
      const leave = async (): Promise<void> => {
        await joined.close();
        ports.close();
      };
      if (isWanted()) {
        void this.#replace(index, { descriptors: { kick, call }, leave, close: () => fds.close() });
        return 0;
      }
      await leave();
      return fail('EBUSY');
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      return fail('ENOMEM');
    }
  }

  /** Nothing is started or stopped any more. */
  close(): void {
    for (const index of [...this.#asked.keys()]) this.#asked.set(index, -1);
    for (const way of this.#ways.values()) void way.leave().then(() => way.close());
    this.#ways.clear();
  }
}

function giveUp(way: QueueWay): number {
  if ('kick' in way) closeBoth(way);
  else {
    way.kickPort.close();
    way.callPort.close();
  }
  return errno.EBUSY;
}

function closeBoth({ kick, call }: QueueDescriptors): void {
  kick.close();
  call.close();
}
