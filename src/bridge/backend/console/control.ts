import { BoundedQueue } from '../../../kit/bounded-queue.ts';
import { limits } from '../../../kit/limits.ts';
import type { WindowSize } from '../../../libc/pty.ts';
import type { BackendRequest } from '../../../ports/backend.ts';
import { consoleControl, consoleEvent, consoleResize } from '../../../virtio/console.ts';
import { type Decoded, decode, encode, Malformed } from '../../../wire/layout.ts';
import { gather, scatter, trimmed } from '../parts.ts';

type ControlMessage = Decoded<typeof consoleControl>;

/** What the guest says about itself. */
export interface ControlEvents {
  deviceReady(ready: boolean): void;
  portReady(port: number, ready: boolean): void;
  portOpen(port: number, open: boolean): void;
}

/**
 * What the guest has to be told about one port. It is state and not a list, so a guest that takes no messages, or that
 * asks for them all the time, makes nothing grow.
 */
interface Pending {
  add: boolean;
  console: boolean;
  name: boolean;
  /** The end of a session of the host program, before a new one. */
  close: boolean;
  open: boolean;
  resize: boolean;
}

/** One port as far as control messages go. */
export interface ControlPort {
  readonly name: string;
  readonly size: WindowSize | undefined;
  readonly hostOpen: boolean;
}

const nothing = (): Pending => ({ add: false, console: false, name: false, close: false, open: false, resize: false });

/** The control queues of a console with MULTIPORT (virtio 1.3, 5.3.6.2). */
export class ConsoleControl {
  readonly #ports: readonly ControlPort[];
  readonly #events: ControlEvents;
  readonly #pending: Pending[];
  /** By port: the guest can use it. */
  readonly #known: boolean[];
  /** By port: what the guest was last told about the host side. */
  readonly #toldOpen: boolean[];
  readonly #buffers = new BoundedQueue<BackendRequest>(limits.consoleInFlightRequests);

  constructor(ports: readonly ControlPort[], events: ControlEvents) {
    this.#ports = ports;
    this.#events = events;
    this.#pending = ports.map(nothing);
    this.#known = ports.map(() => false);
    this.#toldOpen = ports.map(() => false);
  }

  /** Announces every port; also again to a guest that may know them already, after a restart. */
  announce(): void {
    for (const [port, pending] of this.#pending.entries()) {
      Object.assign(pending, nothing());
      pending.add = true;
      this.#known[port] = false;
    }
    this.#flush();
  }

  /** The guest knows nothing any more. */
  reset(): void {
    for (const pending of this.#pending) Object.assign(pending, nothing());
    this.#known.fill(false);
    this.#toldOpen.fill(false);
  }

  /** The guest has set a port up: it is told what there is to know. */
  introduce(port: number, isConsole: boolean): void {
    const { name, size, hostOpen } = this.#ports[port]!;
    this.#known[port] = true;
    Object.assign(this.#pending[port]!, {
      console: isConsole,
      name: name !== '',
      // Said in any case: after a restart the guest may believe in a program that is gone.
      close: true,
      open: hostOpen,
      resize: isConsole && size !== undefined,
    });
    this.#flush();
  }

  /** The guest could not set a port up. */
  forget(port: number): void {
    this.#known[port] = false;
    Object.assign(this.#pending[port]!, nothing());
  }

  hostSide(port: number, open: boolean): void {
    const pending = this.#pending[port]!;
    if (!this.#known[port]) return;
    if (!open) pending.close ||= this.#toldOpen[port]!;
    pending.open = open;
    this.#flush();
  }

  resized(port: number): void {
    if (!this.#known[port]) return;
    this.#pending[port]!.resize = true;
    this.#flush();
  }

  /** A buffer for a message to the guest. */
  receive(request: BackendRequest): void {
    if (!this.#buffers.push(request)) request.complete(0);
    else this.#flush();
  }

  /** A message of the guest. What makes no sense is ignored: nothing depends on the guest being told. */
  transmit(request: BackendRequest): void {
    const head = gather(request.readable, consoleControl.size);
    const message = head === undefined ? undefined : decode(consoleControl, head, 0, head.length);
    if (message !== undefined && !(message instanceof Malformed)) this.#onMessage(message);
    request.complete(0);
  }

  #onMessage({ id, event, value }: ControlMessage): void {
    if (event === consoleEvent.DEVICE_READY) this.#events.deviceReady(value === 1);
    else if (id >= this.#ports.length) return;
    else if (event === consoleEvent.PORT_READY) this.#events.portReady(id, value === 1);
    else if (event === consoleEvent.PORT_OPEN) this.#events.portOpen(id, value === 1);
  }

  cancelReceive(): void {
    for (let buffer = this.#buffers.shift(); buffer !== undefined; buffer = this.#buffers.shift()) buffer.release();
  }

  #flush(): void {
    for (let buffer = this.#buffers.peek(); buffer !== undefined; buffer = this.#buffers.peek()) {
      const small = buffer.writableBytes < consoleControl.size + consoleResize.size;
      const message = small ? new Uint8Array(0) : this.#next();
      if (message === undefined) return;
      this.#buffers.shift();
      // A name that does not fit is cut; no other message can be longer.
      const parts = trimmed(buffer.writable, message.length);
      buffer.complete(scatter(message, parts));
    }
  }

  /** Takes the next message that is due, or undefined. */
  #next(): Uint8Array | undefined {
    for (const [id, pending] of this.#pending.entries()) {
      for (const kind of Object.keys(pending) as (keyof Pending)[]) {
        if (!pending[kind]) continue;
        pending[kind] = false;
        return this.#message(id, kind);
      }
    }
    return undefined;
  }

  #message(id: number, kind: keyof Pending): Uint8Array {
    const port = this.#ports[id]!;
    switch (kind) {
      case 'add':
        return messageBytes({ id, event: consoleEvent.DEVICE_ADD, value: 1 });
      case 'console':
        return messageBytes({ id, event: consoleEvent.CONSOLE_PORT, value: 1 });
      case 'name':
        return messageBytes({ id, event: consoleEvent.PORT_NAME, value: 1 }, new TextEncoder().encode(port.name));
      case 'open':
      case 'close':
        this.#toldOpen[id] = kind === 'open';
        return messageBytes({ id, event: consoleEvent.PORT_OPEN, value: kind === 'open' ? 1 : 0 });
      case 'resize': {
        const size = new Uint8Array(consoleResize.size);
        encode(consoleResize, { cols: port.size?.columns ?? 0, rows: port.size?.rows ?? 0 }, size);
        return messageBytes({ id, event: consoleEvent.RESIZE, value: 0 }, size);
      }
    }
  }
}

function messageBytes(head: ControlMessage, tail = new Uint8Array(0)): Uint8Array {
  const bytes = new Uint8Array(consoleControl.size + tail.length);
  encode(consoleControl, head, bytes);
  bytes.set(tail, consoleControl.size);
  return bytes;
}
