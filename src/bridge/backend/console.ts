import type { Clock } from '../../kit/clock.ts';
import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import type { Poller } from '../../libc/poll.ts';
import type { WindowSize } from '../../libc/pty.ts';
import type { Backend, BackendDescription, BackendHost, BackendMemory, BackendRequest } from '../../ports/backend.ts';
import { consoleConfig, consoleQueueCount, consoleQueueRole } from '../../virtio/console.ts';
import { deviceId } from '../../virtio/device-ids.ts';
import { consoleFeature } from '../../virtio/features.ts';
import { type Decoded, decode, encode, layout, Malformed, u32 } from '../../wire/layout.ts';
import { ConsoleControl } from './console/control.ts';
import type { HostEnd } from './console/host-end.ts';
import { ConsolePort } from './console/port.ts';
import { SocketEnd } from './console/socket-end.ts';
import { TerminalEnd } from './console/terminal-end.ts';
import { bridgeVendorId } from './vendor.ts';

const dataQueueSize = 128;
const controlQueueSize = 64;

/** What a restarted service has to know of the guest. */
const keptState = layout('console state', 'this file', 8, {
  ready: u32(0, '1 after DEVICE_READY'),
  openPorts: u32(4, 'bit n: the guest has port n open'),
});

export interface ConsolePortSpec {
  /** At most `limits.consolePortNameMaxBytes` of UTF-8; empty: none. */
  readonly name: string;
  readonly end: HostEnd;
}

/**
 * Console device (virtio 1.3, 5.3) with several ports, each a stream of bytes to and from one program of the host.
 * Port 0 is the console. Without MULTIPORT a driver has that one only.
 */
export class ConsoleBackend implements Backend {
  readonly description: BackendDescription;
  readonly #host: BackendHost;
  readonly #ports: readonly ConsolePort[];
  readonly #control: ConsoleControl;
  #size: WindowSize | undefined;
  #active: { readonly multiport: boolean; readonly memory: BackendMemory | undefined } | undefined;
  #ready = false;

  /** @param size of port 0, where it is known */
  constructor(specs: readonly ConsolePortSpec[], size: WindowSize | undefined, host: BackendHost) {
    this.#host = host;
    this.#size = size;
    this.#ports = specs.map(({ name, end }, id) => {
      const owner = {
        hostSide: (port: number, open: boolean) => this.#control.hostSide(port, open),
        resized: (port: number, now: WindowSize) => this.#resized(port, now),
      };
      return new ConsolePort(id, name, end, owner);
    });
    const ports = this.#ports.map((port) => {
      const sizeOf = (): WindowSize | undefined => (port.id === 0 ? this.#size : undefined);
      return {
        name: port.name,
        get size() {
          return sizeOf();
        },
        get hostOpen() {
          return port.hostOpen;
        },
      };
    });
    this.#control = new ConsoleControl(ports, {
      deviceReady: (ready) => this.#deviceReady(ready),
      portReady: (port, ready) => this.#portReady(port, ready),
      portOpen: (port, open) => this.#portOpen(port, open),
    });
    this.description = {
      deviceType: deviceId.console,
      vendorId: bridgeVendorId,
      uuid: new Uint8Array(16),
      featureBits: [...(size === undefined ? [] : [consoleFeature.SIZE]), consoleFeature.MULTIPORT],
      queueSizes: Array.from({ length: consoleQueueCount(specs.length) }, (_, queue) =>
        consoleQueueRole(queue).port === undefined ? controlQueueSize : dataQueueSize,
      ),
      config: this.#configBytes(),
      maxInFlight: limits.consoleInFlightRequests,
    };
    for (const port of this.#ports) port.start();
  }

  #configBytes(): Uint8Array {
    const config = new Uint8Array(consoleConfig.size);
    const { columns: cols, rows } = this.#size ?? { columns: 0, rows: 0 };
    encode(consoleConfig, { cols, rows, maxPorts: this.#ports.length, emergencyWrite: 0 }, config);
    return config;
  }

  activate(has: (featureBit: number) => boolean, memory?: BackendMemory): void {
    const multiport = has(consoleFeature.MULTIPORT);
    this.#active = { multiport, memory };
    if (!multiport) {
      this.#ports[0]!.setGuestOpen(true);
      return;
    }
    const kept = memory === undefined ? undefined : decode(keptState, memory.kept, 0, memory.kept.length);
    if (kept === undefined || kept instanceof Malformed || kept.ready === 0) return;
    this.#ready = true;
    for (const port of this.#ports) port.setGuestOpen(((kept.openPorts >>> port.id) & 1) === 1);
    // The guest takes another announcement for what it is, and is told the state of every port anew.
    this.#control.announce();
  }

  deactivate(): void {
    this.#active = undefined;
    this.#ready = false;
    this.#control.reset();
    for (const port of this.#ports) port.reset();
  }

  handle(request: BackendRequest): void {
    const { port: id, receive } = consoleQueueRole(request.queue);
    const target = id === undefined ? this.#control : this.#ports[id]!;
    if (receive) target.receive(request);
    else target.transmit(request);
  }

  cancel(queue: number): void {
    const { port: id, receive } = consoleQueueRole(queue);
    const port = id === undefined ? undefined : this.#ports[id]!;
    if (receive) (port ?? this.#control).cancelReceive();
    else port?.cancelTransmit();
  }

  #deviceReady(ready: boolean): void {
    if (!this.#active?.multiport) return;
    if (this.#ready !== ready) {
      this.#ready = ready;
      this.#keep();
    }
    if (ready) this.#control.announce();
    else this.#control.reset();
  }

  #portReady(port: number, ready: boolean): void {
    if (!this.#ready) return;
    if (ready) this.#control.introduce(port, port === 0);
    else this.#control.forget(port);
  }

  #portOpen(port: number, open: boolean): void {
    if (!this.#active?.multiport || this.#ports[port]!.guestOpen === open) return;
    this.#ports[port]!.setGuestOpen(open);
    this.#keep();
  }

  #keep(): void {
    const openPorts = this.#ports.reduce((bits, port) => (port.guestOpen ? bits | (1 << port.id) : bits), 0) >>> 0;
    const bytes = new Uint8Array(keptState.size);
    const state: Decoded<typeof keptState> = { ready: this.#ready ? 1 : 0, openPorts };
    encode(keptState, state, bytes);
    this.#active?.memory?.keep(bytes);
  }

  /** Another size of port 0, for the guest's programs to follow. */
  resize(size: WindowSize): void {
    if (this.#size === undefined) return;
    this.#size = size;
    this.#host.configChanged(0, this.#configBytes().subarray(0, consoleConfig.at.maxPorts));
    this.#control.resized(0);
  }

  #resized(port: number, size: WindowSize): void {
    if (port === 0) this.resize(size);
  }

  writeConfig(): boolean {
    return false;
  }

  async close(): Promise<void> {
    this.#control.cancelReceive();
    for (const port of this.#ports) port.close();
  }
}

export interface ConsoleSpec {
  readonly ports: readonly { readonly name: string; readonly socket?: string; readonly pty?: string }[];
  readonly cols?: number;
  readonly rows?: number;
}

const usualSize: WindowSize = { columns: 80, rows: 24 };

/** Opens every port and makes the device. @throws VmsgError backend-unusable, invalid-request */
export async function openConsole(
  spec: ConsoleSpec,
  poller: Poller,
  clock: Clock,
  host: BackendHost,
): Promise<Backend> {
  const given =
    spec.cols !== undefined && spec.rows !== undefined ? { columns: spec.cols, rows: spec.rows } : undefined;
  const size = given ?? (spec.ports[0]?.pty === undefined ? undefined : usualSize);
  const ends: HostEnd[] = [];
  try {
    for (const { socket, pty } of spec.ports) {
      if (socket !== undefined) ends.push(SocketEnd.open(socket, poller, clock));
      else if (pty !== undefined) ends.push(TerminalEnd.open(pty, size ?? usualSize, poller, clock));
      else throw new VmsgError('invalid-request', 'a console port has a socket or a pty', { pointer: '/ports' });
    }
    const ports = spec.ports.map(({ name }, i) => ({ name, end: ends[i]! }));
    return new ConsoleBackend(ports, size, host);
  } catch (error) {
    for (const end of ends) end.close();
    throw error;
  }
}
