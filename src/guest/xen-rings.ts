import { type Closable, Scope } from '../kit/scope.ts';
import type { Domid, EventChannel, EventChannels, SharedPages } from '../ports/hypervisor.ts';
import { ringHeaderBytes } from '../virtio-msg/ring.ts';
import { aliveByte } from '../virtio-msg/xen-bus.ts';
import type { XenShares } from './xen-shares.ts';

/** Both message rings and the event channel of a bus. The same pages and port serve every connection. */
export class XenRings implements Closable {
  readonly channel: EventChannel;
  readonly service: Domid;
  /** Of each ring. */
  readonly pages: number;
  readonly toService: SharedPages;
  readonly toGuest: SharedPages;
  readonly #scope = new Scope();

  /** @param pages of each ring. @throws VmsgError, HypervisorError */
  constructor(shares: XenShares, channels: EventChannels, service: Domid, pages: number, onEvent: () => void) {
    this.service = service;
    this.pages = pages;
    try {
      this.channel = this.#scope.own(channels.bindUnbound(service, onEvent));
      const notice = { byte: aliveByte.guest, port: this.channel.port };
      this.toService = this.#scope.own(shares.share(service, pages, notice));
      this.toGuest = this.#scope.own(shares.share(service, pages));
    } catch (error) {
      this.#scope.close();
      throw error;
    }
  }

  /** Both rings as new, for the next connection; this side is alive. */
  reset(): void {
    this.toService.bytes.fill(0, 0, ringHeaderBytes);
    this.toGuest.bytes.fill(0, 0, ringHeaderBytes);
    Atomics.store(this.toService.bytes, aliveByte.guest, 1);
  }

  /** Cleared by the service's kernel when the service ends. */
  get serviceAlive(): boolean {
    return Atomics.load(this.toService.bytes, aliveByte.service) !== 0;
  }

  close(): void {
    this.#scope.close();
  }
}
