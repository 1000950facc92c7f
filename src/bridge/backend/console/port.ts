import { BoundedQueue } from '../../../kit/bounded-queue.ts';
import { limits } from '../../../kit/limits.ts';
import type { WindowSize } from '../../../libc/pty.ts';
import type { BackendRequest } from '../../../ports/backend.ts';
import { after } from '../parts.ts';
import type { HostEnd, HostEndEvents } from './host-end.ts';

/** What a port tells the device. */
export interface PortOwner {
  /** The host side was opened or closed. */
  hostSide(port: number, open: boolean): void;
  resized(port: number, size: WindowSize): void;
}

/**
 * The data of one port. Bytes go between the memory of the guest and the host end without a buffer in between: without
 * receive buffers nothing is read from the host, and a host program that does not read keeps the transmit buffers.
 */
export class ConsolePort implements HostEndEvents {
  readonly id: number;
  readonly name: string;
  readonly #end: HostEnd;
  readonly #owner: PortOwner;
  readonly #receive = new BoundedQueue<BackendRequest>(limits.consoleInFlightRequests);
  readonly #transmit = new BoundedQueue<BackendRequest>(limits.consoleInFlightRequests);
  /** Bytes of the first transmit buffer that the host has. */
  #sent = 0;
  #guestOpen = false;
  /** The guest closed its side: the host program is sent away after what was written before. */
  #hangUpPlanned = false;
  #filling = false;
  /** The host program left while a buffer was filled: told after what was read. */
  #endMet = false;

  constructor(id: number, name: string, end: HostEnd, owner: PortOwner) {
    this.id = id;
    this.name = name;
    this.#end = end;
    this.#owner = owner;
  }

  start(): void {
    this.#end.start(this);
  }

  get hostOpen(): boolean {
    return this.#end.connected;
  }

  get guestOpen(): boolean {
    return this.#guestOpen;
  }

  /** The guest opened or closed its side. */
  setGuestOpen(open: boolean): void {
    if (this.#guestOpen === open) return;
    this.#guestOpen = open;
    this.#hangUpPlanned = !open;
    this.#flush();
    this.#watchHost();
  }

  /** The guest is gone. Its console keeps the program that is connected, as a terminal does; others are sent away. */
  reset(): void {
    const hangUp = this.#guestOpen && this.id !== 0;
    this.#guestOpen = false;
    this.#hangUpPlanned = false;
    this.#watchHost();
    if (hangUp) this.#end.hangUp();
  }

  /** A buffer for bytes of the host. */
  receive(request: BackendRequest): void {
    if (request.writableBytes === 0 || !this.#receive.push(request)) request.complete(0);
    else this.#watchHost();
  }

  /** Bytes for the host. */
  transmit(request: BackendRequest): void {
    if (!this.#transmit.push(request)) request.complete(0);
    else if (this.#transmit.length === 1) this.#flush();
  }

  cancelReceive(): void {
    releaseAll(this.#receive);
    this.#watchHost();
  }

  cancelTransmit(): void {
    this.#sent = 0;
    releaseAll(this.#transmit);
    this.#flush();
  }

  connected(): void {
    this.#watchHost();
    this.#owner.hostSide(this.id, true);
  }

  disconnected(): void {
    if (this.#filling) {
      this.#endMet = true;
      return;
    }
    this.#endMet = false;
    this.#owner.hostSide(this.id, false);
    this.#flush();
  }

  readable(): void {
    for (let budget: number = limits.consoleTurnMaxBytes; budget > 0 && this.#guestOpen; ) {
      const request = this.#receive.peek();
      const count = request === undefined ? 0 : this.#fill(request, budget);
      if (count > 0) this.#receive.shift()?.complete(count);
      if (this.#endMet) this.disconnected();
      if (count === 0) break;
      budget -= count;
    }
    this.#watchHost();
  }

  #fill(request: BackendRequest, most: number): number {
    let filled = 0;
    this.#filling = true;
    for (const part of request.writable) {
      const room = part.subarray(0, most - filled);
      if (room.length === 0) continue;
      const count = this.#end.read(room);
      filled += count;
      if (count < room.length || filled === most) break;
    }
    this.#filling = false;
    return filled;
  }

  writable(): void {
    this.#flush();
  }

  resized(size: WindowSize): void {
    this.#owner.resized(this.id, size);
  }

  /** Gives the host what fits. Nobody there: it is discarded, so that a guest does not wait for a reader. */
  #flush(): void {
    for (let request = this.#transmit.peek(); request !== undefined; request = this.#transmit.peek()) {
      if (this.#end.connected && !this.#send(request)) {
        this.#end.wantWrite(true);
        return;
      }
      this.#sent = 0;
      this.#transmit.shift();
      request.complete(0);
    }
    this.#end.wantWrite(false);
    if (!this.#hangUpPlanned) return;
    this.#hangUpPlanned = false;
    this.#end.hangUp();
  }

  /** @returns true when the host has all of it */
  #send(request: BackendRequest): boolean {
    for (const part of after(request.readable, this.#sent)) {
      const count = this.#end.write(part);
      this.#sent += count;
      if (count < part.length) return false;
    }
    return true;
  }

  #watchHost(): void {
    this.#end.wantRead(this.#guestOpen && this.#receive.length > 0);
  }

  close(): void {
    this.#end.close();
    releaseAll(this.#receive);
    releaseAll(this.#transmit);
  }
}

function releaseAll(requests: BoundedQueue<BackendRequest>): void {
  for (let request = requests.shift(); request !== undefined; request = requests.shift()) request.release();
}
