import assert from 'node:assert/strict';
import type { Fd } from '../../src/libc/fd.ts';
import { readInto, writeFrom } from '../../src/libc/native.ts';
import type { Poller } from '../../src/libc/poll.ts';
import { socketPair } from '../../src/libc/unix-socket.ts';
import { XenEventChannels } from '../../src/xen/evtchn.ts';
import type { EventCalls } from '../../src/xen/native.ts';

/** A kernel's queue of ports, on a socket; ports are numbered as they are bound. */
export class EventDevice {
  readonly channels: XenEventChannels;
  readonly unbound: number[] = [];
  readonly notified: number[] = [];
  readonly #end: Fd;
  readonly #handle: Fd;
  #onReadable: (() => void) | undefined;

  /** @param poller without it the descriptor is readable when `run` says so */
  constructor(poller?: Poller) {
    [this.#end, this.#handle] = socketPair('stream');
    let ports = 0;
    const calls: EventCalls = {
      logger: 0,
      open: () => 1,
      close: () => 0,
      fd: () => this.#handle.number,
      notify: (_, port) => {
        this.notified.push(port);
        return 0;
      },
      bindUnbound: () => ++ports,
      bindInterdomain: () => ++ports,
      unbind: (_, port) => this.unbound.push(port),
    };
    const watch = { pause: () => {}, resume: () => {}, close: () => {} };
    const manual: Poller = {
      watch: (_, onReadable) => {
        this.#onReadable = () => onReadable(false);
        return watch;
      },
      watchWritable: () => watch,
    };
    this.channels = new XenEventChannels(calls, poller ?? manual);
  }

  raise(...ports: number[]): void {
    const bytes = new Uint8Array(Uint32Array.from(ports).buffer);
    assert.equal(writeFrom(this.#end.number, bytes, bytes.length), bytes.length);
  }

  /** The descriptor is readable. */
  run(): void {
    this.#onReadable?.();
  }

  /** Ports that were written back, so that they can have events again. */
  finished(): number[] {
    const words = new Uint32Array(64);
    const bytes = readInto(this.#end.number, new Uint8Array(words.buffer), 256);
    return [...words.subarray(0, Math.max(bytes, 0) / 4)];
  }

  close(): void {
    this.channels.close();
    this.#end.close();
    this.#handle.close();
  }
}
