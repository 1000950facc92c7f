import { isMainThread } from 'node:worker_threads';
import { assert } from '../kit/assert.ts';
import type { Closable } from '../kit/scope.ts';
import { linux } from './constants.ts';
import { checked } from './errno.ts';
import { closeFd, dupFd } from './fd.ts';
import { epollCreate, epollCtl, type PollHandle, startPoll } from './native.ts';

/** Watches one descriptor; starts active. */
export interface Watch extends Closable {
  /** No callback until `resume`. */
  pause(): void;
  resume(): void;
}

/** @param disconnected the peer has closed or shut down; there may still be something to read */
export type OnReady = (disconnected: boolean) => void;

/**
 * Calls back on the event loop of this thread for as long as a descriptor is ready (level-triggered): the callback
 * takes what is there, pauses or closes. No callback comes after `pause` or `close`, both of which it may call
 * itself. A callback that throws is an 'uncaughtException'.
 */
export interface Poller {
  /**
   * @param fd may be watched more than once, stays the caller's, and is closed after the watch. O_NONBLOCK is set
   *   on its file description
   * @throws SystemCallError for what cannot be waited for, such as a regular file
   */
  watch(fd: number, onReadable: OnReady): Watch;
  /** The same for room to write. */
  watchWritable(fd: number, onWritable: OnReady): Watch;
}

/**
 * On the libuv loop of this thread. Active watches keep the thread alive.
 *
 * When a descriptor is ready koffi calls into JavaScript, and where that is impossible because the Worker is being
 * ended it aborts the process with all its threads. So callbacks run from an immediate, where `process.exit` is
 * harmless, and a Worker that exits or throws closes its watches first. `worker.terminate()` and `process.exit` of
 * the main thread give no chance to do so: a Worker must be asked to close its poller before either. The main thread
 * must have imported this module as well, else the end of the last Worker unloads koffi under the handles that libuv
 * still has to release.
 */
export class LoopPoller implements Poller, Closable {
  readonly #watches = new Set<LoopWatch>();
  #ready: LoopWatch[] = [];
  #closed = false;
  readonly #closeAll = (): void => this.close();

  constructor() {
    if (!isMainThread) process.once('exit', this.#closeAll);
  }

  watch(fd: number, onReadable: OnReady): Watch {
    return this.#open(fd, 'readable', onReadable);
  }

  watchWritable(fd: number, onWritable: OnReady): Watch {
    return this.#open(fd, 'writable', onWritable);
  }

  /** Closes every watch; none can be opened afterwards. */
  close(): void {
    this.#closed = true;
    process.off('exit', this.#closeAll);
    for (const watch of this.#watches) watch.close();
  }

  #open(fd: number, kind: 'readable' | 'writable', onReady: OnReady): Watch {
    assert(!this.#closed, 'a closed poller opens no watch');
    const watch = new LoopWatch(fd, kind, onReady, {
      ready: (ready) => this.#enqueue(ready),
      closed: (closed) => this.#watches.delete(closed),
    });
    this.#watches.add(watch);
    return watch;
  }

  /** The immediates of a round run right after its descriptors were looked at. */
  #enqueue(watch: LoopWatch): void {
    if (this.#ready.length === 0) setImmediate(this.#dispatch);
    this.#ready.push(watch);
  }

  readonly #dispatch = (): void => {
    const batch = this.#ready;
    this.#ready = [];
    let next = 0;
    try {
      while (next < batch.length) batch[next++]?.dispatch();
    } finally {
      // After an exception those behind get their turn in another round, unless they are still ready and come again.
      for (const watch of batch.slice(next)) this.#enqueue(watch);
    }
  };
}

interface WatchOwner {
  ready(watch: LoopWatch): void;
  closed(watch: LoopWatch): void;
}

class LoopWatch implements Watch {
  readonly #interest: { readonly readable: boolean; readonly writable: boolean; readonly disconnect: true };
  readonly #onReady: OnReady;
  readonly #owner: WatchOwner;
  readonly #fd: number;
  // Referenced from its own callback: a handle that is collected goes silent.
  readonly #handle: PollHandle;
  #state: 'active' | 'paused' | 'closed' = 'active';
  #pending = false;
  #disconnected = false;

  constructor(fd: number, kind: 'readable' | 'writable', onReady: OnReady, owner: WatchOwner) {
    this.#interest = { readable: kind === 'readable', writable: kind === 'writable', disconnect: true };
    this.#onReady = onReady;
    this.#owner = owner;
    // A number of its own: libuv takes one watch per number, and mixes them up when a number is closed and reused.
    this.#fd = dupFd(fd);
    try {
      probe(this.#fd);
      this.#handle = startPoll(this.#fd, this.#interest, this.#onPoll);
    } catch (error) {
      closeFd(this.#fd);
      throw error;
    }
  }

  pause(): void {
    if (this.#state !== 'active') return;
    this.#state = 'paused';
    this.#handle.stop();
  }

  resume(): void {
    if (this.#state !== 'paused') return;
    this.#state = 'active';
    this.#handle.start(this.#interest, this.#onPoll);
  }

  close(): void {
    if (this.#state === 'closed') return;
    this.#state = 'closed';
    this.#handle.close();
    closeFd(this.#fd);
    this.#owner.closed(this);
  }

  /** Runs the callback of a readiness that was seen, unless the watch was paused or closed since. */
  dispatch(): void {
    this.#pending = false;
    if (this.#state === 'active') this.#onReady(this.#disconnected);
  }

  readonly #onPoll = (status: number, events: { readonly disconnect: boolean }): void => {
    if (this.#state !== 'active') return;
    // libuv stops a watch that meets EPOLLERR, which a socket has once its peer left unread data behind.
    if (status < 0) this.#handle.start(this.#interest, this.#onPoll);
    this.#disconnected = status < 0 || events.disconnect;
    if (this.#pending) return;
    this.#pending = true;
    this.#owner.ready(this);
  };
}

/** koffi cannot recover when libuv refuses a descriptor, so epoll is asked first. */
function probe(fd: number): void {
  const epoll = checked(epollCreate(linux.EPOLL_CLOEXEC), 'epoll_create1');
  try {
    checked(epollCtl(epoll, linux.EPOLL_CTL_ADD, fd, new Uint8Array(16)), 'epoll_ctl', String(fd));
  } finally {
    closeFd(epoll);
  }
}
