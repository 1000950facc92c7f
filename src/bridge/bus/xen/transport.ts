import { assert } from '../../../kit/assert.ts';
import type { Clock, Timer } from '../../../kit/clock.ts';
import { VmsgError } from '../../../kit/errors.ts';
import { limits } from '../../../kit/limits.ts';
import { Pace } from '../../../kit/pace.ts';
import { Scope } from '../../../kit/scope.ts';
import type { BusTransport, BusTransportHandler, DevicePath } from '../../../ports/bus.ts';
import type { EventChannels, GrantMapper, Xenstore } from '../../../ports/hypervisor.ts';
import { xenbusState } from '../../../virtio-msg/xen-bus.ts';
import { XenConnection } from './connection.ts';
import { BusDirectory, type BusTerms } from './directory.ts';
import { parseU64, readFrontend } from './frontend.ts';
import { decide, type Phase } from './offer.ts';

export interface XenTransportOptions extends BusTerms {
  /** Shared by the buses of a lane, which closes them after its buses. */
  readonly grants: GrantMapper;
  readonly channels: EventChannels;
  readonly xenstore: Xenstore;
  readonly clock: Clock;
}

/** A bus to one domain: offers it in xenstore, one guest at a time; docs/protocol/xen-bus.md. */
export class XenTransport implements BusTransport {
  readonly #o: XenTransportOptions;
  readonly #scope = new Scope();
  readonly #directory: BusDirectory;
  readonly #offers: Pace;
  readonly #looks: Pace;
  readonly #work: Pace;
  #handler: BusTransportHandler | undefined;
  #connection: XenConnection | undefined;
  #phase: Phase = 'due';
  /** Of the offer or connection of now. */
  #epoch = 0n;
  #acknowledged = false;
  /** When the directory of a guest may be made again. */
  #absentUntilMs = 0;
  #timer: Timer | undefined;
  #timerAtMs = 0;

  constructor(options: XenTransportOptions) {
    this.#o = options;
    this.#directory = new BusDirectory(options.xenstore, options);
    this.#offers = new Pace(options.clock, limits.xenOfferBurst, limits.xenOfferIntervalMs);
    this.#looks = new Pace(options.clock, limits.xenLookBurst, limits.xenLookIntervalMs);
    this.#work = new Pace(options.clock, limits.xenWorkBurst, limits.xenWorkIntervalMs);
  }

  get state(): 'listening' | 'connected' {
    return this.#connection === undefined ? 'listening' : 'connected';
  }

  /** @throws HypervisorError */
  start(handler: BusTransportHandler): void {
    this.#handler = handler;
    const { xenstore } = this.#o;
    const last = this.#directory.lastEpoch();
    if (last !== undefined) handler.epochUsed(last);
    if (xenstore.isIntroduced(this.#o.domid)) this.#offer();
    else this.#phase = 'gone';
    const { frontend } = this.#directory;
    const paths = [frontend, `${frontend}/state`];
    this.#scope.own(
      xenstore.watch(frontend, (path) => {
        if (paths.includes(path)) this.#look();
      }),
    );
    for (const path of ['@introduceDomain', '@releaseDomain']) {
      this.#scope.own(xenstore.watch(path, () => this.#guarded(() => this.#onDomains())));
    }
  }

  publishDevice(device: number, path: DevicePath): void {
    this.#directory.publishDevice(device, path);
  }

  unpublishDevice(device: number): void {
    this.#directory.unpublishDevice(device);
  }

  /** Some domain came or went. */
  #onDomains(): void {
    const introduced = this.#o.xenstore.isIntroduced(this.#o.domid);
    if (!introduced && this.#phase !== 'gone') {
      this.#directory.forget();
      this.#end(`domain ${this.#o.domid} is gone`, 'gone');
    } else if (introduced && this.#phase === 'gone') {
      this.#phase = 'absent';
      this.#absentUntilMs = this.#o.clock.nowMs();
      this.#look();
    }
  }

  /** What xenstored refuses is told and tried again later; nothing is thrown into the event loop. */
  #guarded(work: () => void): void {
    if (this.#scope.closed) return;
    try {
      work();
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      this.#handler!.diagnosed(error.message);
      this.#lookAfter(limits.xenDirectoryPauseMs);
    }
  }

  /** Looks at the guest's directory, at a bounded rate: guests write there as fast as they can. */
  #look(): void {
    if (this.#scope.closed || this.#phase === 'gone') return;
    const waitMs = this.#looks.take();
    if (waitMs > 0) this.#lookAfter(waitMs);
    else this.#guarded(() => this.#act());
  }

  #lookAfter(delayMs: number): void {
    const atMs = this.#o.clock.nowMs() + delayMs;
    if (this.#timer !== undefined && this.#timerAtMs <= atMs) return;
    this.#timer?.cancel();
    this.#timerAtMs = atMs;
    this.#timer = this.#o.clock.after(delayMs, () => {
      this.#timer = undefined;
      this.#look();
    });
  }

  #act(): void {
    if (this.#phase === 'absent') {
      this.#onAbsent();
      return;
    }
    const directory = this.#directory;
    const state = directory.frontendState();
    const exists = state !== undefined || directory.frontendExists();
    if (!exists && !this.#o.xenstore.isIntroduced(this.#o.domid)) {
      this.#onDomains();
      return;
    }
    const epoch = state === xenbusState.initialised ? parseU64(directory.read('epoch')) : undefined;
    const decision = decide(this.#phase, { exists, state, epoch }, this.#epoch, this.#acknowledged);
    switch (decision.do) {
      case 'nothing':
        return;
      case 'accept':
        this.#accept();
        return;
      case 'offer':
        this.#offer();
        return;
      case 'acknowledge':
        this.#acknowledged = true;
        return;
      case 'end':
        this.#end(decision.reason, decision.next);
        return;
    }
  }

  /** The guest, or the toolstack, removed the directory: it is made again after a while, if the domain still runs. */
  #onAbsent(): void {
    const leftMs = this.#absentUntilMs - this.#o.clock.nowMs();
    if (leftMs > 0 && !this.#directory.frontendExists()) this.#lookAfter(leftMs);
    else if (!this.#o.xenstore.isIntroduced(this.#o.domid)) this.#phase = 'gone';
    else this.#offer();
  }

  #offer(): void {
    const waitMs = this.#offers.take();
    if (waitMs > 0) {
      this.#directory.closed();
      this.#lookAfter(waitMs);
      return;
    }
    const epoch = this.#handler!.nextEpoch;
    this.#directory.offer(epoch);
    this.#epoch = epoch;
    this.#phase = 'offered';
  }

  #accept(): void {
    const handler = this.#handler!;
    const { domid } = this.#o;
    const connection = this.#open();
    if (typeof connection === 'string') {
      this.#phase = 'closed';
      handler.refused({ domid }, connection);
      this.#directory.closed(connection);
      return;
    }
    this.#connection = connection;
    this.#phase = 'connected';
    this.#acknowledged = false;
    handler.connected(connection, { domid });
  }

  /** @returns a connection that the guest knows of, or why there is none */
  #open(): XenConnection | string {
    const handler = this.#handler!;
    const answer = readFrontend((node) => this.#directory.read(node), this.#o);
    if (typeof answer === 'string') return answer;
    let connection: XenConnection | string | undefined;
    try {
      connection = XenConnection.open({
        ...this.#o,
        answer,
        work: this.#work,
        diagnosed: (text) => handler.diagnosed(text),
        onClosed: (closed, reason) => this.#onClosed(closed, reason),
      });
      if (typeof connection === 'string') return connection;
      const admission = handler.admit(answer.claim);
      assert(admission.epoch === this.#epoch, 'the epoch is the one that was offered');
      connection.admitted(admission);
      this.#directory.connected(admission);
      return connection;
    } catch (error) {
      if (typeof connection === 'object') connection.close();
      if (error instanceof VmsgError) return error.message;
      throw error;
    }
  }

  /** The connection ended without xenstore: the guest died, or our side gave it up. */
  #onClosed(connection: XenConnection, reason: string | undefined): void {
    if (this.#connection !== connection) return;
    if (reason !== undefined) {
      this.#guarded(() => this.#end(reason, 'due'));
      return;
    }
    this.#connection = undefined;
    this.#phase = 'due';
    // Later: whoever closed it is in the middle of something.
    this.#lookAfter(0);
  }

  /** Ends what there is, tells the bus, then xenstore; the next offer follows as `next` says. */
  #end(reason: string, next: 'closed' | 'due' | 'absent' | 'gone'): void {
    const connection = this.#connection;
    this.#connection = undefined;
    this.#phase = next;
    if (next === 'absent') {
      this.#absentUntilMs = this.#o.clock.nowMs() + limits.xenDirectoryPauseMs;
      this.#lookAfter(limits.xenDirectoryPauseMs);
    }
    connection?.close();
    if (connection !== undefined) this.#handler!.disconnected(reason);
    if (next === 'gone' || this.#scope.closed) return;
    if (next === 'due') {
      this.#look();
      return;
    }
    this.#directory.closed();
    if (next === 'absent') this.#directory.forget();
  }

  close(forget = false): void {
    if (this.#scope.closed) return;
    this.#timer?.cancel();
    const connection = this.#connection;
    this.#connection = undefined;
    try {
      if (forget) this.#directory.leave();
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
      // Xenstored refuses: what counts is that nothing stays mapped.
    }
    connection?.close();
    this.#scope.close();
    try {
      if (forget) this.#directory.remove();
    } catch (error) {
      if (!(error instanceof VmsgError)) throw error;
    }
  }
}
