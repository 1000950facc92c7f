import type { Closable } from '../kit/scope.ts';
import type { Xenstore } from '../ports/hypervisor.ts';
import { xenbusState } from '../virtio-msg/xen-bus.ts';
import type { Changes } from './changes.ts';
import type { TransportTerms } from './transport.ts';
import { errorText, serviceSide, type XenPlace } from './xen-nodes.ts';
import type { XenRings } from './xen-rings.ts';

/** How a connection ended: by us, by word of the service, or because the service is dead. */
export type XenEnd = 'ours' | 'closed' | 'dead';

export interface XenConnectionParts {
  readonly store: Xenstore;
  readonly place: XenPlace;
  readonly rings: XenRings;
  /** Every event of the bus and every change of its nodes. */
  readonly changes: Changes;
  readonly terms: TransportTerms;
  readonly slotSize: number;
  readonly sleepWords: boolean;
  /** Called once. */
  readonly onEnd: (how: XenEnd) => void;
}

export interface XenConnectionHandlers {
  onDoorbell(): void;
  /** Comes once, unless we close the connection. */
  onLost(reason: string): void;
}

/** A connection of a Xen bus: rings, doorbell, and whether the service is still there. */
export class XenConnection {
  readonly terms: TransportTerms;
  readonly slotSize: number;
  readonly sleepWords: boolean;
  readonly #parts: XenConnectionParts;
  readonly #listening: Closable;
  #handlers: XenConnectionHandlers | undefined;
  #open = true;

  constructor(parts: XenConnectionParts) {
    this.#parts = parts;
    this.terms = parts.terms;
    this.slotSize = parts.slotSize;
    this.sleepWords = parts.sleepWords;
    this.#listening = parts.changes.listen(() => this.#check());
  }

  get toService(): Uint8Array {
    return this.#parts.rings.toService.bytes;
  }

  get toGuest(): Uint8Array {
    return this.#parts.rings.toGuest.bytes;
  }

  /** What came before is not told: the caller looks at the rings. */
  start(handlers: XenConnectionHandlers): void {
    this.#handlers = handlers;
    // The loss may have come first; not from within the caller, who is not ready.
    queueMicrotask(() => this.#check());
  }

  ring(): void {
    if (this.#open) this.#parts.rings.channel.notify();
  }

  /** An event of the bus. */
  onEvent(): void {
    if (!this.#open || this.#handlers === undefined) return;
    if (this.#parts.rings.serviceAlive) this.#handlers.onDoorbell();
    else this.#lose('the service is gone', 'dead');
  }

  #check(): void {
    if (!this.#open || this.#handlers === undefined) return;
    const { store, place, terms, rings } = this.#parts;
    try {
      const { state, epoch } = serviceSide(store, place);
      if (!rings.serviceAlive) this.#lose('the service is gone', 'dead');
      else if (state === undefined) this.#lose('the bus was removed', 'closed');
      else if (state === xenbusState.closing || state === xenbusState.closed) {
        const why = errorText(store, place);
        this.#lose(`the service closed the connection${why === undefined ? '' : `: ${why}`}`, 'closed');
      } else if (epoch !== terms.epoch || state !== xenbusState.connected) {
        this.#lose('the service was restarted', 'dead');
      }
    } catch (error) {
      this.#lose(`xenstore: ${error instanceof Error ? error.message : String(error)}`, 'dead');
    }
  }

  #lose(reason: string, how: XenEnd): void {
    const handlers = this.#handlers;
    this.#end(how);
    handlers?.onLost(reason);
  }

  #end(how: XenEnd): void {
    if (!this.#open) return;
    this.#open = false;
    this.#handlers = undefined;
    this.#listening.close();
    this.#parts.onEnd(how);
  }

  /** Takes leave of the service. Idempotent. */
  close(): void {
    this.#end('ours');
  }
}
