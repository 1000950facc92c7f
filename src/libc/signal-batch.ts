import { closeSync, openSync } from 'node:fs';
import { assert } from '../kit/assert.ts';
import { type Closable, Scope } from '../kit/scope.ts';
import { checked, errnos, failed, SystemCallError } from './errno.ts';
import { signalSharedEventfd } from './eventfd.ts';
import { Mapping } from './mapping.ts';
import { lastErrno, systemCall3, systemCall5 } from './native.ts';

// linux/aio_abi.h
const iocbBytes = 64;
const iocbWords = iocbBytes / 4;
const eventfdWord = 15;
const iocbFlagResultFd = 1;
const eventBytes = 32;
/** Numbers of io_setup, io_destroy, io_submit, io_getevents. */
const calls =
  process.arch === 'x64'
    ? { setup: 206, destroy: 207, submit: 209, getEvents: 208 }
    : { setup: 0, destroy: 1, submit: 2, getEvents: 4 };
/** Completions that the kernel keeps for us; they are taken once in so many signals. */
const ringEvents = 256;
const submitTries = 3;

/**
 * Signals eventfds that hostile peers share, and never waits. A write to an eventfd waits when the counter is full and
 * O_NONBLOCK is clear, and whoever shares the file description can bring about both, between any check and the write.
 * So the kernel signals: each eventfd is the notification (IOCB_FLAG_RESFD) of an asynchronous read of no bytes from
 * /dev/null, which is complete at once. The kernel adds 1 without waiting, and stops at the maximum.
 */
export class SignalBatch implements Closable {
  readonly #scope = new Scope();
  readonly #memory: Mapping;
  /** All of the memory; an iocb ends with the eventfd that it signals. */
  readonly #words: Uint32Array;
  readonly #max: number;
  readonly #context: number;
  readonly #pointers: number;
  readonly #eventsAddress: number;
  #count = 0;
  #unreaped = 0;

  /** @param max eventfds of one system call, up to 128. @throws SystemCallError also where the kernel has no AIO */
  constructor(max: number) {
    assert(max > 0 && max * 2 <= ringEvents, `a batch of ${max} signals`);
    this.#max = max;
    try {
      const nothing = openSync('/dev/null', 'r');
      this.#scope.defer(() => closeSync(nothing));
      const [pointers, events] = [max * iocbBytes, max * iocbBytes + max * 8];
      this.#memory = this.#scope.own(Mapping.anonymous(events + ringEvents * eventBytes));
      const { address, bytes } = this.#memory;
      this.#pointers = address + pointers;
      this.#eventsAddress = address + events;
      this.#words = new Uint32Array(bytes.buffer);
      const addresses = new BigUint64Array(bytes.buffer, pointers, max);
      for (let i = 0; i < max; i++) {
        // IOCB_CMD_PREAD is 0, like the rest that is not set.
        this.#words[i * iocbWords + 5] = nothing;
        this.#words[i * iocbWords + 14] = iocbFlagResultFd;
        addresses[i] = BigInt(address + i * iocbBytes);
      }
      this.#context = this.#setUp(events);
      this.#scope.defer(() => systemCall3(calls.destroy, this.#context, 0, 0));
    } catch (error) {
      this.#scope.close();
      throw error;
    }
  }

  /** Adds 1 to an eventfd at the next `flush`, or now when the batch is full. It stays open until then. */
  add(fd: number): void {
    if (this.#count === this.#max) this.flush();
    this.#words[this.#count++ * iocbWords + eventfdWord] = fd;
  }

  /** @throws SystemCallError for what is no eventfd */
  flush(): void {
    const count = this.#count;
    this.#count = 0;
    let tries = 0;
    for (let done = 0; done < count; ) {
      if (this.#unreaped + count - done > ringEvents) this.#reap();
      const result = systemCall3(calls.submit, this.#context, count - done, this.#pointers + done * 8);
      if (result > 0) {
        done += result;
        this.#unreaped += result;
        tries = 0;
      } else if (result < 0 && lastErrno() !== errnos.EAGAIN) {
        failed('io_submit');
      } else if (++tries < submitTries) {
        this.#reap();
      } else {
        // No memory in the kernel, most likely. A signal that is lost would stop a guest for good.
        signalSharedEventfd(this.#words[done++ * iocbWords + eventfdWord]!);
      }
    }
  }

  close(): void {
    this.#scope.close();
  }

  /** io_setup writes the context to memory that is free until the first completion. */
  #setUp(scratch: number): number {
    checked(systemCall3(calls.setup, ringEvents, this.#memory.address + scratch, 0), 'io_setup');
    return Number(new BigUint64Array(this.#memory.bytes.buffer, scratch, 1)[0]);
  }

  #reap(): void {
    // Asked for none at least it does not wait.
    const taken = systemCall5(calls.getEvents, this.#context, 0, ringEvents, this.#eventsAddress, 0);
    if (taken < 0 && lastErrno() !== errnos.EINTR) failed('io_getevents');
    this.#unreaped = Math.max(0, this.#unreaped - Math.max(0, taken));
  }
}

/** Signals eventfds that hostile peers share, now and then, one at a time. */
export class SharedSignal implements Closable {
  #batch: SignalBatch | undefined;
  #unusable = false;
  #closed = false;

  /** Adds 1. Never waits where the kernel has AIO for us; else as `signalSharedEventfd`. @throws SystemCallError */
  signal(fd: number): void {
    const batch = this.#open();
    if (batch === undefined) {
      signalSharedEventfd(fd);
      return;
    }
    batch.add(fd);
    batch.flush();
  }

  /** Its kernel memory is scarce: only those who need it have some. */
  #open(): SignalBatch | undefined {
    if (this.#batch !== undefined || this.#unusable || this.#closed) return this.#batch;
    try {
      this.#batch = new SignalBatch(1);
    } catch (error) {
      if (!(error instanceof SystemCallError)) throw error;
      this.#unusable = true;
    }
    return this.#batch;
  }

  close(): void {
    this.#closed = true;
    this.#batch?.close();
    this.#batch = undefined;
  }
}
