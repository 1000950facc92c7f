import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import type { Fd } from '../../src/libc/fd.ts';
import { readInto, writeFrom } from '../../src/libc/native.ts';
import type { Poller } from '../../src/libc/poll.ts';
import { socketPair } from '../../src/libc/unix-socket.ts';
import { asDomid } from '../../src/ports/hypervisor.ts';
import { XenEventChannels } from '../../src/xen/evtchn.ts';
import type { EventCalls } from '../../src/xen/native.ts';

const dom0 = asDomid(0)!;

/** A kernel's queue of ports, on a socket; ports are numbered as they are bound. */
class Kernel {
  readonly channels: XenEventChannels;
  readonly unbound: number[] = [];
  readonly #end: Fd;
  readonly #handle: Fd;
  #onReadable: (() => void) | undefined;

  constructor() {
    [this.#end, this.#handle] = socketPair('stream');
    let ports = 0;
    const calls: EventCalls = {
      logger: 0,
      open: () => 1,
      close: () => 0,
      fd: () => this.#handle.number,
      notify: () => 0,
      bindUnbound: () => ++ports,
      bindInterdomain: () => ++ports,
      unbind: (_, port) => this.unbound.push(port),
    };
    const watch = { pause: () => {}, resume: () => {}, close: () => {} };
    const poller: Poller = {
      watch: (_, onReadable) => {
        this.#onReadable = () => onReadable(false);
        return watch;
      },
      watchWritable: () => watch,
    };
    this.channels = new XenEventChannels(calls, poller);
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

describe('event channels of a thread', () => {
  test('each port is served and then written back; one that nobody listens to as well', () => {
    const kernel = new Kernel();
    const served: number[] = [];
    for (const name of [1, 2, 3]) kernel.channels.bindUnbound(dom0, () => served.push(name));
    kernel.raise(3, 99, 1);
    kernel.run();
    assert.deepEqual(served, [3, 1]);
    assert.deepEqual(kernel.finished(), [3, 99, 1]);
    kernel.close();
    assert.deepEqual(kernel.unbound, [1, 2, 3]);
  });

  test('an exception of one listener reaches the event loop, and the others are served all the same', async () => {
    const kernel = new Kernel();
    const served: number[] = [];
    const failure = new Error('as planned');
    kernel.channels.bindUnbound(dom0, () => {
      throw failure;
    });
    kernel.channels.bindUnbound(dom0, () => served.push(2));
    kernel.channels.bindUnbound(dom0, () => served.push(3));
    kernel.raise(2, 1, 3);
    assert.throws(() => kernel.run(), failure);
    assert.deepEqual(served, [2]);
    assert.deepEqual(kernel.finished(), [2, 1]);
    await turn();
    assert.deepEqual(served, [2, 3]);
    assert.deepEqual(kernel.finished(), [3]);
    kernel.close();
  });

  test('a listener may close all channels', () => {
    const kernel = new Kernel();
    const served: number[] = [];
    kernel.channels.bindUnbound(dom0, () => kernel.channels.close());
    kernel.channels.bindUnbound(dom0, () => served.push(2));
    kernel.raise(1, 2);
    kernel.run();
    assert.deepEqual([served, kernel.finished()], [[], []]);
    kernel.close();
  });

  test('nothing to read is no failure', () => {
    const kernel = new Kernel();
    kernel.run();
    assert.deepEqual(kernel.finished(), []);
    kernel.close();
  });
});
