import { assert } from '../kit/assert.ts';
import { limits } from '../kit/limits.ts';
import { errnoName, errnos, failed } from '../libc/errno.ts';
import { lastErrno, readInto, writeFrom } from '../libc/native.ts';
import type { Poller, Watch } from '../libc/poll.ts';
import {
  type Domid,
  type EventChannel,
  type EventChannels,
  type EventPort,
  HypervisorFault,
} from '../ports/hypervisor.ts';
import { HypervisorError } from './errors.ts';
import { checkedHandle } from './handle.ts';
import type { EventCalls } from './native.ts';

const portBytes = 4;

/** /dev/xen/evtchn: the kernel queues each port that has an event, once, until it is written back. */
export class XenEventChannels implements EventChannels {
  readonly #calls: EventCalls;
  readonly #handle: number;
  readonly #fd: number;
  readonly #watch: Watch;
  readonly #channels = new Map<number, XenChannel>();
  readonly #batch = new Uint32Array(limits.eventBatchPorts);
  readonly #batchBytes = new Uint8Array(this.#batch.buffer);
  #closed = false;

  /** @throws HypervisorError */
  constructor(calls: EventCalls, poller: Poller) {
    this.#calls = calls;
    this.#handle = checkedHandle(calls.open(calls.logger, 0), 'xenevtchn_open', '/dev/xen/evtchn');
    this.#fd = calls.fd(this.#handle);
    // The poller makes the descriptor non-blocking.
    this.#watch = poller.watch(this.#fd, () => this.#dispatch());
  }

  bindUnbound(remote: Domid, onEvent: () => void): EventChannel {
    assert(!this.#closed, 'closed event channels bind nothing');
    const call = 'xenevtchn_bind_unbound_port';
    if (this.#channels.size >= limits.eventChannelsMax) throw new HypervisorError(call, 'ENOSPC', { domid: remote });
    const port = this.#calls.bindUnbound(this.#handle, remote);
    if (port < 0) throw new HypervisorError(call, errnoName(lastErrno()), { domid: remote });
    return this.#open(port, onEvent);
  }

  bindInterdomain(remote: Domid, remotePort: EventPort, onEvent: () => void): EventChannel | HypervisorFault {
    assert(!this.#closed, 'closed event channels bind nothing');
    const fault = (errno: string) => new HypervisorFault('xenevtchn_bind_interdomain', errno, remote, remotePort, 1);
    if (this.#channels.size >= limits.eventChannelsMax) return fault('ENOSPC');
    const port = this.#calls.bindInterdomain(this.#handle, remote, remotePort);
    return port < 0 ? fault(errnoName(lastErrno())) : this.#open(port, onEvent);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const channel of this.#channels.values()) channel.close();
    this.#watch.close();
    this.#calls.close(this.#handle);
  }

  #open(port: number, onEvent: () => void): XenChannel {
    const channel = new XenChannel(this.#calls, this.#handle, port as EventPort, onEvent, () =>
      this.#channels.delete(port),
    );
    this.#channels.set(port, channel);
    return channel;
  }

  /** One batch; the descriptor stays readable while there is more. */
  #dispatch(): void {
    const bytes = readInto(this.#fd, this.#batchBytes, this.#batchBytes.length);
    if (bytes >= 0) this.#serve(this.#batch.subarray(0, bytes / portBytes));
    else if (lastErrno() !== errnos.EAGAIN && lastErrno() !== errnos.EINTR) failed('read(/dev/xen/evtchn)');
  }

  #serve(ports: Uint32Array): void {
    let served = 0;
    try {
      while (served < ports.length) this.#channels.get(ports[served++]!)?.onEvent();
    } finally {
      this.#finish(ports, served);
    }
  }

  /** Lets the ports that were served have events again; after an exception the others get their turn later. */
  #finish(ports: Uint32Array, served: number): void {
    if (this.#closed) return;
    writeFrom(this.#fd, new Uint8Array(ports.buffer, ports.byteOffset, served * portBytes), served * portBytes);
    if (served === ports.length) return;
    const rest = ports.slice(served);
    setImmediate(() => this.#serve(rest));
  }
}

class XenChannel implements EventChannel {
  readonly port: EventPort;
  readonly onEvent: () => void;
  readonly #calls: EventCalls;
  readonly #handle: number;
  readonly #closed: () => void;
  #open = true;

  constructor(calls: EventCalls, handle: number, port: EventPort, onEvent: () => void, closed: () => void) {
    this.#calls = calls;
    this.#handle = handle;
    this.port = port;
    this.onEvent = onEvent;
    this.#closed = closed;
  }

  notify(): void {
    // Fails only for a port that is not ours; an event for nobody is no failure.
    if (this.#open) this.#calls.notify(this.#handle, this.port);
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#closed();
    this.#calls.unbind(this.#handle, this.port);
  }
}
