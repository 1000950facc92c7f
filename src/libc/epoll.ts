import { assert } from '../kit/assert.ts';
import { type Closable, Scope } from '../kit/scope.ts';
import { linux } from './constants.ts';
import { checked, errnos, failed } from './errno.ts';
import { dupFd, Fd, setStatusFlags, statusFlags } from './fd.ts';
import { Mapping } from './mapping.ts';
import { epollCreate, epollCtl, epollWait, lastErrno } from './native.ts';
import type { OnReady, Poller, Watch } from './poll.ts';

/** struct epoll_event is packed on x86-64 only; after the mask of 32 bits come 64 bits of ours. */
const isPacked = process.arch === 'x64';
const eventWords = isPacked ? 3 : 4;
const dataWord = isPacked ? 1 : 2;

/** A place among the watches. The generation tells a reused place from the one that an event was for. */
interface Place {
  watch: EpollWatch | undefined;
  generation: number;
}

/**
 * A poller for a thread that does nothing else: callbacks run from within `dispatch`, which waits in epoll_wait. With
 * a timeout of 0 it is part of another loop instead: `fd` is readable when there is something to dispatch.
 */
export class EpollPoller implements Poller, Closable {
  readonly #scope = new Scope();
  readonly #epoll: Fd;
  readonly #events: Mapping;
  readonly #words: Uint32Array;
  readonly #max: number;
  readonly #places: Place[] = [];
  readonly #free: number[] = [];
  readonly #control = new Uint32Array(4);

  /** @param maxEvents that one `dispatch` takes; the others come first the next time. @throws SystemCallError */
  constructor(maxEvents: number) {
    this.#epoll = this.#scope.own(new Fd(checked(epollCreate(linux.EPOLL_CLOEXEC), 'epoll_create1')));
    this.#max = maxEvents;
    this.#events = this.#scope.own(Mapping.anonymous(maxEvents * eventWords * 4));
    this.#words = new Uint32Array(this.#events.bytes.buffer, 0, maxEvents * eventWords);
  }

  get fd(): number {
    return this.#epoll.number;
  }

  watch(fd: number, onReadable: OnReady): Watch {
    return this.#open(fd, linux.POLLIN, onReadable);
  }

  watchWritable(fd: number, onWritable: OnReady): Watch {
    return this.#open(fd, linux.POLLOUT, onWritable);
  }

  /**
   * Calls back each time the descriptor becomes readable, or more is written to it (edge-triggered), and once at the
   * start if it is readable. Several edges between two dispatches are one. Nothing has to be read.
   * Parameters and errors as for `watch`; O_NONBLOCK is left as it is.
   */
  watchEdges(fd: number, onEdge: OnReady): Watch {
    return this.#open(fd, linux.POLLIN | linux.EPOLLET, onEdge);
  }

  /**
   * Waits until something is ready, and calls back for it. What a callback throws leaves this method and loses the
   * callbacks behind it.
   * @param timeoutMs 0 does not wait. @returns how many descriptors were ready, 0 after the time or a signal
   */
  dispatch(timeoutMs: number): number {
    const count = epollWait(this.#epoll.number, this.#events.address, this.#max, timeoutMs);
    if (count < 0) return lastErrno() === errnos.EINTR ? 0 : failed('epoll_wait');
    for (let i = 0; i < count; i++) {
      const at = i * eventWords;
      const place = this.#places[this.#words[at + dataWord]!];
      if (place === undefined || place.generation !== this.#words[at + dataWord + 1]) continue;
      place.watch?.ready(this.#words[at]!);
    }
    return count;
  }

  close(): void {
    for (const { watch } of this.#places) watch?.close();
    this.#scope.close();
  }

  #open(fd: number, mask: number, onReady: OnReady): Watch {
    assert(!this.#scope.closed, 'a closed poller opens no watch');
    // epoll takes each number once, and O_NONBLOCK is what a poller promises.
    const own = new Fd(dupFd(fd));
    try {
      if ((mask & linux.EPOLLET) === 0) setStatusFlags(own.number, statusFlags(own.number) | linux.O_NONBLOCK);
      const index = this.#free.pop() ?? this.#places.push({ watch: undefined, generation: 0 }) - 1;
      const place = this.#places[index]!;
      const control = (operation: number, events: number): number => {
        this.#control[0] = events;
        this.#control[dataWord] = index;
        this.#control[dataWord + 1] = place.generation;
        return epollCtl(this.#epoll.number, operation, own.number, new Uint8Array(this.#control.buffer));
      };
      const closed = (): void => {
        place.watch = undefined;
        place.generation = (place.generation + 1) >>> 0;
        this.#free.push(index);
      };
      const watch = new EpollWatch(own, (mask | linux.POLLRDHUP) >>> 0, onReady, { control, closed });
      watch.open();
      place.watch = watch;
      return watch;
    } catch (error) {
      own.close();
      throw error;
    }
  }
}

interface WatchOwner {
  control(operation: number, events: number): number;
  closed(): void;
}

class EpollWatch implements Watch {
  readonly #fd: Fd;
  readonly #mask: number;
  readonly #onReady: OnReady;
  readonly #owner: WatchOwner;
  #state: 'active' | 'paused' | 'closed' = 'active';

  constructor(fd: Fd, mask: number, onReady: OnReady, owner: WatchOwner) {
    this.#fd = fd;
    this.#mask = mask;
    this.#onReady = onReady;
    this.#owner = owner;
  }

  /** @throws SystemCallError */
  open(): void {
    checked(this.#owner.control(linux.EPOLL_CTL_ADD, this.#mask), 'epoll_ctl');
  }

  pause(): void {
    if (this.#state !== 'active') return;
    this.#state = 'paused';
    // EPOLLERR and EPOLLHUP cannot be masked; removing the watch is the only way to hear nothing.
    checked(this.#owner.control(linux.EPOLL_CTL_DEL, 0), 'epoll_ctl');
  }

  resume(): void {
    if (this.#state !== 'paused') return;
    this.#state = 'active';
    this.open();
  }

  close(): void {
    if (this.#state === 'closed') return;
    // Others may have the same file open, which would keep it in the set.
    if (this.#state === 'active') checked(this.#owner.control(linux.EPOLL_CTL_DEL, 0), 'epoll_ctl');
    this.#state = 'closed';
    this.#owner.closed();
    this.#fd.close();
  }

  ready(events: number): void {
    if (this.#state !== 'active') return;
    this.#onReady((events & (linux.POLLERR | linux.POLLHUP | linux.POLLRDHUP)) !== 0);
  }
}
