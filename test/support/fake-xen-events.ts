import type { Scheduler } from '../../src/kit/scheduler.ts';
import {
  asEventPort,
  type Domid,
  type EventChannel,
  type EventChannels,
  type EventPort,
  HypervisorFault,
} from '../../src/ports/hypervisor.ts';
import { HypervisorError } from '../../src/xen/errors.ts';

/** One end of an event channel, in the hypervisor. */
export class FakePort {
  readonly domid: number;
  readonly number: EventPort;
  /** The domain that may bind to it. */
  readonly remote: number;
  readonly #ports: FakePorts;
  #peer: FakePort | undefined;
  #listener: (() => void) | undefined;
  #pending = false;
  #scheduled = false;
  #holders = 1;

  constructor(ports: FakePorts, domid: number, number: EventPort, remote: number) {
    this.#ports = ports;
    this.domid = domid;
    this.number = number;
    this.remote = remote;
  }

  get isBindable(): boolean {
    return this.#peer === undefined;
  }

  listen(listener: (() => void) | undefined): void {
    this.#listener = listener;
    this.deliver();
  }

  /** An event on the other end; without one it is lost. */
  send(): void {
    this.#peer?.raise();
  }

  raise(): void {
    this.#pending = true;
    this.deliver();
  }

  /** Calls the listener on a later turn, once for all events until then. */
  deliver(): void {
    if (this.#scheduled || !this.#pending || this.#listener === undefined) return;
    this.#scheduled = true;
    this.#ports.scheduler.later(() => {
      this.#scheduled = false;
      if (!this.#pending || this.#listener === undefined || this.#ports.isPaused(this.domid)) return;
      this.#pending = false;
      this.#listener();
    });
  }

  connect(peer: FakePort): void {
    this.#peer = peer;
    peer.#peer = this;
    // Events may have been lost on the other end while it was unbound, so Xen makes one for whoever binds.
    this.raise();
  }

  /** A port that a notice needs outlives the one who opened it. */
  hold(): void {
    this.#holders++;
  }

  release(): void {
    if (--this.#holders > 0) return;
    this.cut();
  }

  /** Leaves the other end unbound. */
  cut(): void {
    this.#ports.forget(this);
    this.#listener = undefined;
    const peer = this.#peer;
    this.#peer = undefined;
    if (peer !== undefined) peer.#peer = undefined;
  }
}

/** What event channels need of the machine. */
export interface EventMachine {
  readonly scheduler: Scheduler;
  isPaused(domid: number): boolean;
  separates(one: number, other: number): boolean;
}

/** Event channels of all domains. */
export class FakePorts {
  readonly #machine: EventMachine;
  readonly #ports = new Map<number, Map<number, FakePort>>();

  constructor(machine: EventMachine) {
    this.#machine = machine;
  }

  get scheduler(): Scheduler {
    return this.#machine.scheduler;
  }

  isPaused(domid: number): boolean {
    return this.#machine.isPaused(domid);
  }

  find(domid: number, number: number): FakePort | undefined {
    return this.#ports.get(domid)?.get(number);
  }

  /** @returns undefined when the security module refuses */
  open(domid: number, remote: number): FakePort | undefined {
    if (this.#machine.separates(domid, remote)) return undefined;
    const own = this.#of(domid);
    let number = 1;
    while (own.has(number)) number++;
    const port = new FakePort(this, domid, asEventPort(number)!, remote);
    own.set(number, port);
    return port;
  }

  /** @returns the local end, or an errno */
  bind(domid: number, remote: number, remotePort: number): FakePort | string {
    const other = this.find(remote, remotePort);
    if (other === undefined || !other.isBindable || other.remote !== domid) return 'EINVAL';
    const port = this.open(domid, remote);
    if (port === undefined) return 'EPERM';
    port.connect(other);
    return port;
  }

  forget(port: FakePort): void {
    this.#of(port.domid).delete(port.number);
  }

  /** After a pause. */
  redeliver(domid: number): void {
    for (const port of this.#of(domid).values()) port.deliver();
  }

  /** The domain is gone. */
  drop(domid: number): void {
    for (const port of [...this.#of(domid).values()]) port.cut();
    this.#ports.delete(domid);
  }

  count(domid: number): number {
    return this.#ports.get(domid)?.size ?? 0;
  }

  #of(domid: number): Map<number, FakePort> {
    const known = this.#ports.get(domid) ?? new Map<number, FakePort>();
    this.#ports.set(domid, known);
    return known;
  }
}

class FakeChannel implements EventChannel {
  readonly port: EventPort;
  readonly #port: FakePort;
  readonly #closed: (channel: FakeChannel) => void;
  #open = true;

  constructor(port: FakePort, onEvent: () => void, closed: (channel: FakeChannel) => void) {
    this.port = port.number;
    this.#port = port;
    this.#closed = closed;
    port.listen(onEvent);
  }

  notify(): void {
    if (this.#open) this.#port.send();
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    this.#port.listen(undefined);
    this.#port.release();
    this.#closed(this);
  }
}

/** /dev/xen/evtchn of one process. */
export class FakeEventChannels implements EventChannels {
  readonly #ports: FakePorts;
  readonly #domid: Domid;
  readonly #channels = new Set<FakeChannel>();
  #closed = false;

  constructor(ports: FakePorts, domid: Domid) {
    this.#ports = ports;
    this.#domid = domid;
  }

  census(): { channels: number } {
    return { channels: this.#channels.size };
  }

  bindUnbound(remote: Domid, onEvent: () => void): EventChannel {
    const call = 'xenevtchn_bind_unbound_port';
    if (this.#closed) throw new HypervisorError(call, 'EBADF');
    const port = this.#ports.open(this.#domid, remote);
    if (port === undefined) throw new HypervisorError(call, 'EPERM', { domid: remote });
    return this.#track(port, onEvent);
  }

  bindInterdomain(remote: Domid, remotePort: EventPort, onEvent: () => void): EventChannel | HypervisorFault {
    const call = 'xenevtchn_bind_interdomain';
    if (this.#closed) throw new HypervisorError(call, 'EBADF');
    const port = this.#ports.bind(this.#domid, remote, remotePort);
    return typeof port === 'string'
      ? new HypervisorFault(call, port, remote, remotePort, 1)
      : this.#track(port, onEvent);
  }

  close(): void {
    this.end();
  }

  end(): void {
    this.#closed = true;
    for (const channel of this.#channels) channel.close();
  }

  #track(port: FakePort, onEvent: () => void): EventChannel {
    const channel = new FakeChannel(port, onEvent, (closed) => this.#channels.delete(closed));
    this.#channels.add(channel);
    return channel;
  }
}
