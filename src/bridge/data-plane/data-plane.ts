import { fromErrorData, VmsgError } from '../../kit/errors.ts';
import { Scope } from '../../kit/scope.ts';
import { isEventfd } from '../../libc/eventfd.ts';
import { dupFd, Fd } from '../../libc/fd.ts';
import { HypervisorFault } from '../../ports/hypervisor.ts';
import {
  addCounts,
  type DataPlaneSnapshot,
  type GuestEnd,
  type JoinCounts,
  type JoinOutcome,
  type JoinRequest,
  type JoinSpec,
  noCounts,
} from './protocol.ts';

/** A place where joins live: a thread of their own, or that of the caller. */
export interface JoinLink {
  /** @throws VmsgError unavailable when the place does not answer; it uses descriptors until it has ended */
  call(request: JoinRequest): Promise<JoinOutcome>;
  counts(): JoinCounts;
  /** Resolves when the place has ended, after `ended` of `DataPlaneOptions`. Idempotent. */
  close(): Promise<void>;
}

/** A queue whose notifications are passed on. */
export interface QueueJoin {
  /** Resolves when the descriptors and ports of the join are not used any more. Idempotent, never rejects. */
  close(): Promise<void>;
}

export interface DataPlaneOptions {
  /** Opened at most, each when it is needed. At least 1. */
  readonly places: number;
  /** @param ended is called once, when the place is gone for whatever reason and uses nothing any more */
  readonly open: (ended: (reason: string) => void) => JoinLink;
}

/** What is kept here of a join. */
interface Held {
  readonly fds: Scope;
  readonly domid: number | undefined;
  readonly lost: (reason: string) => void;
  /** Its user has it. */
  open: boolean;
  /** Its user has closed it; settles when nothing of it is used any more. */
  left: Promise<void> | undefined;
}

interface Place {
  readonly link: JoinLink;
  readonly held: Set<Held>;
  readonly ended: Promise<void>;
}

/**
 * Passes notifications on between guests, by event channel or eventfd, and programs that work on the queues of guests
 * themselves. All queues of one domain are in one place, because they may share ports.
 */
export class DataPlane {
  readonly #o: DataPlaneOptions;
  readonly #places: (Place | undefined)[];
  readonly #past = noCounts();
  #nextJoin = 1;
  #closed = false;

  constructor(options: DataPlaneOptions) {
    this.#o = options;
    this.#places = Array.from({ length: options.places }, () => undefined);
  }

  /**
   * Resolves when everything that is signalled from now on is passed on; signals without a cause may be, too. The caller
   * may close its descriptors at once.
   * @param lost nothing is passed on any more, because the place of the join is gone. Not called after `close`
   * @returns what the hypervisor says of a port of the guest that cannot be bound
   * @throws VmsgError unavailable, limit-reached, system-call, hypervisor-call; invalid-request for what is no eventfd
   */
  async join(spec: JoinSpec, lost: (reason: string) => void): Promise<QueueJoin | HypervisorFault> {
    if (this.#closed) throw new VmsgError('unavailable', 'the data plane is closed');
    const held: Held = { fds: new Scope(), domid: domidOf(spec), lost, open: false, left: undefined };
    let place: Place;
    let own: JoinSpec;
    try {
      own = ownCopy(spec, held.fds);
      place = this.#placeFor(held.domid);
    } catch (error) {
      held.fds.close();
      throw error;
    }
    place.held.add(held);
    const id = this.#nextJoin++;
    // When this rejects the end of the place closes the descriptors.
    const outcome = await place.link.call({ join: id, spec: own });
    // Its answer and its end may come in one turn.
    if (!place.held.has(held)) throw new VmsgError('unavailable', 'the data plane ended while a queue was joined');
    if ('ok' in outcome) {
      held.open = true;
      return { close: () => leave(place, held, id) };
    }
    release(place, held);
    if ('error' in outcome) throw fromErrorData(outcome.error);
    const { call, errno, domid, first, count } = outcome.fault;
    return new HypervisorFault(call, errno, domid, first, count);
  }

  snapshot(): DataPlaneSnapshot {
    const places = this.#places.filter((place) => place !== undefined);
    const sum = { ...this.#past };
    for (const { link } of places) addCounts(sum, link.counts());
    return { joins: places.reduce((total, { held }) => total + held.size, 0), ...sum };
  }

  /** Ends all joins without telling their users. Resolves when nothing is used any more. */
  async close(): Promise<void> {
    this.#closed = true;
    await Promise.all(this.#places.map((place) => place?.link.close()));
  }

  #placeFor(domid: number | undefined): Place {
    const serves = ({ held }: Place): boolean => [...held].some((each) => each.domid === domid);
    const known = domid !== undefined && this.#places.find((place) => place !== undefined && serves(place));
    if (known) return known;
    const joins = this.#places.map((place) => place?.held.size ?? 0);
    const least = joins.flatMap((count, index) => (count === Math.min(...joins) ? [index] : []));
    const index = least.find((each) => this.#places[each] !== undefined) ?? least[0]!;
    return this.#places[index] ?? this.#open(index);
  }

  #open(index: number): Place {
    const held = new Set<Held>();
    let end: () => void;
    const ended = new Promise<void>((resolve) => {
      end = resolve;
    });
    const link = this.#o.open((reason) => {
      this.#places[index] = undefined;
      addCounts(this.#past, link.counts());
      end();
      this.#lose(held, reason);
    });
    const place: Place = { link, held, ended };
    this.#places[index] = place;
    return place;
  }

  #lose(held: Set<Held>, reason: string): void {
    const users = [...held].filter(({ open, left }) => open && left === undefined);
    for (const { fds } of held) fds.close();
    held.clear();
    if (!this.#closed) for (const { lost } of users) lost(reason);
  }
}

async function leave(place: Place, held: Held, id: number): Promise<void> {
  if (!place.held.has(held)) return;
  // A place that does not answer ends soon, and closes what it held.
  held.left ??= place.link.call({ unjoin: id }).then(
    () => release(place, held),
    () => place.ended,
  );
  await held.left;
}

function release(place: Place, held: Held): void {
  place.held.delete(held);
  held.fds.close();
}

const domidOf = ({ kick, call }: JoinSpec): number | undefined => {
  const end = [kick?.from, call?.to].find((each) => each !== undefined && 'channel' in each);
  return end !== undefined && 'channel' in end ? end.channel.domid : undefined;
};

/** The same with descriptors of its own. @throws VmsgError */
function ownCopy({ kick, call }: JoinSpec, fds: Scope): JoinSpec {
  const copy = (fd: number): number => {
    const own = fds.own(new Fd(dupFd(fd))).number;
    // The kernel refuses to signal anything else, which would be the end of the thread.
    if (!isEventfd(own)) throw new VmsgError('invalid-request', `descriptor ${fd} is no eventfd`);
    return own;
  };
  const end = (of: GuestEnd): GuestEnd => ('eventfd' in of ? { eventfd: copy(of.eventfd) } : of);
  return {
    ...(kick === undefined ? {} : { kick: { from: end(kick.from), to: copy(kick.to) } }),
    ...(call === undefined ? {} : { call: { from: copy(call.from), to: end(call.to) } }),
  };
}
