import type { ErrnoName } from '../kit/errno.ts';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import { ringDoorbell } from '../libc/doorbell.ts';
import { drainEventfd, isEventfd } from '../libc/eventfd.ts';
import { dupFd, Fd } from '../libc/fd.ts';
import { Mapping } from '../libc/mapping.ts';
import { inspectMemfd } from '../libc/memfd.ts';
import type { Poller } from '../libc/poll.ts';
import { isUnixSocket } from '../libc/unix-socket.ts';
import type { CallTarget, GuestMemory, GuestResources, MemoryHandle } from '../ports/bus.ts';

/** The descriptors that a guest has sent and not yet used, and what becomes of them. All are untrusted. */
export class LoopbackResources implements GuestResources {
  readonly #poller: Poller;
  /** Reads what waits on the socket: a message in the ring may overtake the descriptors it names. */
  readonly #receiveMore: () => void;
  readonly #sendDescriptor: (index: number, fd: number) => boolean;
  #given = 0;
  readonly #pending = new Map<number, Fd>();

  /** @param sendDescriptor sends DESCRIPTORS with one descriptor; false when the peer does not take it */
  constructor(poller: Poller, receiveMore: () => void, sendDescriptor: (index: number, fd: number) => boolean) {
    this.#poller = poller;
    this.#receiveMore = receiveMore;
    this.#sendDescriptor = sendDescriptor;
  }

  /** @returns why the descriptors are refused, which ends the connection; they are closed then */
  add(first: number, fds: readonly Fd[]): string | undefined {
    const indexes = fds.map((_, i) => (first + i) >>> 0);
    const reason = indexes.some((index) => this.#pending.has(index))
      ? 'a descriptor index is in use'
      : this.#pending.size + fds.length > limits.pendingFdsPerBus
        ? `more than ${limits.pendingFdsPerBus} descriptors wait`
        : undefined;
    for (const [i, fd] of fds.entries()) {
      if (reason === undefined) this.#pending.set(indexes[i]!, fd);
      else fd.close();
    }
    return reason;
  }

  #take(reference: number): Fd | undefined {
    if (!this.#pending.has(reference)) this.#receiveMore();
    const fd = this.#pending.get(reference);
    this.#pending.delete(reference);
    return fd;
  }

  openRegion(reference: number, offset: bigint, length: bigint, readOnly: boolean): GuestMemory | ErrnoName {
    const fd = this.#take(reference);
    if (fd === undefined) return 'ENOENT';
    let mapping: Mapping | undefined;
    try {
      const info = inspectMemfd(fd.number);
      if (typeof info === 'string') return 'EPERM';
      if (offset + length > BigInt(info.sizeBytes)) return 'EINVAL';
      mapping = Mapping.map(fd.number, Number(offset), Number(length), { writable: !readOnly });
      return mappedMemory(mapping, fd, offset);
    } catch {
      // The kernel refused the mapping: no address space or no memory.
      return 'ENOMEM';
    } finally {
      if (mapping === undefined) fd.close();
    }
  }

  takeEventfd = (reference: number): Fd | ErrnoName => {
    const fd = this.#take(reference);
    if (fd === undefined) return 'ENOENT';
    if (isEventfd(fd.number)) return fd;
    fd.close();
    return 'EPERM';
  };

  openKick(reference: number, onKick: () => void): { close(): void } | ErrnoName {
    const fd = this.takeEventfd(reference);
    if (typeof fd === 'string') return fd;
    try {
      const watch = this.#poller.watch(fd.number, () => {
        if (drainEventfd(fd.number)) onKick();
      });
      return {
        close() {
          watch.close();
          fd.close();
        },
      };
    } catch {
      fd.close();
      return 'ENOMEM';
    }
  }

  openCall(reference: number): CallTarget | ErrnoName {
    const fd = this.#take(reference);
    if (fd === undefined) return 'ENOENT';
    // Not an eventfd: the guest could fill its counter, clear O_NONBLOCK and stop this thread for every guest.
    if (!isUnixSocket(fd.number, 'seqpacket')) {
      fd.close();
      return 'EPERM';
    }
    return { ring: () => void ringDoorbell(fd.number), close: () => fd.close() };
  }

  give(fd: number): number | ErrnoName {
    const index = this.#given;
    if (!this.#sendDescriptor(index, fd)) return 'EBUSY';
    this.#given = (index + 1) >>> 0;
    return index;
  }

  discard(reference: number): void {
    this.#take(reference)?.close();
  }

  close(): void {
    for (const fd of this.#pending.values()) fd.close();
    this.#pending.clear();
  }
}

/** The descriptor is kept: a device in another process may need the memory too. */
const mappedMemory = (mapping: Mapping, fd: Fd, offset: bigint): GuestMemory => ({
  bytes: mapping.bytes,
  source: { fd: fd.number, offset },
  handle: () => handleOf(fd, offset),
  close() {
    mapping.close();
    fd.close();
  },
});

/** A copy: the guest's own is closed, and its number goes to another file, the moment that it takes its memory back. */
function handleOf(fd: Fd, offset: bigint): MemoryHandle | ErrnoName {
  try {
    const own = new Fd(dupFd(fd.number));
    return { open: () => ({ fd: own.number, offset, close() {} }), close: () => own.close() };
  } catch (error) {
    if (error instanceof VmsgError) return 'EMFILE';
    throw error;
  }
}
