import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { laneOptions } from '../../src/app/lane-options.ts';
import { InlineLane } from '../../src/bridge/lane/inline.ts';
import type { LaneBackendSpec } from '../../src/bridge/lane/protocol.ts';
import {
  type BusOptions,
  ConsoleDriver,
  type ConsoleOptions,
  type ConsolePort,
  connect,
  type GuestBus,
  type LoopbackOptions,
} from '../../src/guest/index.ts';
import { census } from '../../src/libc/census.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import type { Backend, BackendHost } from '../../src/ports/backend.ts';
import { until } from './guest-fixture.ts';

type ConsoleSpec = Omit<Extract<LaneBackendSpec, { type: 'console' }>, 'type'>;

/** A real bridge in this process with one bus and one console, device 0. */
export class ConsoleLane {
  readonly directory = mkdtempSync(join(tmpdir(), 'vmsg-console-'));
  readonly spec: ConsoleSpec;
  lane: InlineLane;
  readonly #buses: GuestBus[] = [];
  readonly #replace: ((host: BackendHost) => Backend) | undefined;

  /** @param ports name and kind of each. @param replace another backend in place of the console */
  constructor(ports: readonly [string, 'socket' | 'pty'][], replace?: (host: BackendHost) => Backend) {
    this.#replace = replace;
    this.spec = { ports: ports.map(([name, kind]) => ({ name, [kind]: this.at(name) })) };
    this.lane = this.#makeLane();
  }

  #makeLane(): InlineLane {
    const replace = this.#replace;
    return new InlineLane((emit) => {
      const options = laneOptions(new LoopPoller(), emit);
      if (replace === undefined) return options;
      return { ...options, backends: { ...options.backends, console: async (_spec, host) => replace(host) } };
    });
  }

  at(name: string): string {
    return join(this.directory, name);
  }

  async open(): Promise<void> {
    await this.lane.call('openBus', {
      bus: 'b',
      transport: 'loopback',
      role: 'driver',
      domid: 4,
      socketPath: this.at('bus'),
      socketMode: 0o600,
      admittedUids: [process.getuid?.() ?? 0],
      maxMessageSizeBytes: 64,
      ringMaxBytes: 65536,
      recoveryDir: this.at('recovery'),
    });
    await this.attach();
    await this.lane.call('listenBus', { bus: 'b' });
  }

  async attach(): Promise<void> {
    await this.lane.call('attach', { bus: 'b', attachment: 'con', backend: { type: 'console', ...this.spec } });
  }

  async detach(): Promise<void> {
    await this.lane.call('detach', { bus: 'b', attachment: 'con' });
  }

  /** Ends the lane in order, and starts another one on the same files. */
  async restart(): Promise<void> {
    await this.lane.call('shutdown', {});
    this.lane = this.#makeLane();
    await this.open();
  }

  async connect(options: Partial<BusOptions & LoopbackOptions> = {}): Promise<GuestBus> {
    const bus = await connect({ path: this.at('bus'), ...options });
    this.#buses.push(bus);
    return bus;
  }

  async driver(options: ConsoleOptions & { readonly reconnect?: boolean } = {}): Promise<ConsoleDriver> {
    const { reconnect = false, ...more } = options;
    return await ConsoleDriver.open(await this.connect({ reconnect }), 0, more);
  }

  async close(): Promise<void> {
    for (const bus of this.#buses) bus.close();
    await this.lane.call('shutdown', {});
    rmSync(this.directory, { recursive: true });
  }
}

/** Runs a test with a console, and shows that nothing of it is left. */
export async function withConsole(
  ports: readonly [string, 'socket' | 'pty'][],
  run: (rig: ConsoleLane) => Promise<void>,
  replace?: (host: BackendHost) => Backend,
): Promise<void> {
  const before = census();
  const rig = new ConsoleLane(ports, replace);
  try {
    await rig.open();
    await run(rig);
  } finally {
    await rig.close();
  }
  const same = () => JSON.stringify(census()) === JSON.stringify(before);
  await until(same, `nothing is left: ${JSON.stringify([before, census()])}`);
}

/** A program of the host on a port's socket. */
export class HostClient {
  readonly socket: net.Socket;
  readonly chunks: Buffer[] = [];
  ended = false;
  #resume: (() => void) | undefined;

  private constructor(socket: net.Socket) {
    this.socket = socket;
    socket.on('data', (chunk: Buffer) => {
      this.chunks.push(chunk);
      this.#resume?.();
    });
    socket.on('error', () => {});
    socket.on('close', () => {
      this.ended = true;
      this.#resume?.();
    });
  }

  static async open(path: string): Promise<HostClient> {
    const socket = net.connect(path);
    const client = new HostClient(socket);
    await new Promise<void>((resolve, reject) => socket.once('connect', resolve).once('error', reject));
    return client;
  }

  get heard(): string {
    return Buffer.concat(this.chunks).toString();
  }

  /** Waits for so many bytes in all. */
  async bytes(count: number): Promise<Buffer> {
    const length = (): number => this.chunks.reduce((sum, chunk) => sum + chunk.length, 0);
    while (length() < count) {
      assert.ok(!this.ended, `the port ended after ${length()} of ${count} bytes`);
      await new Promise<void>((resolve) => {
        this.#resume = resolve;
      });
    }
    return Buffer.concat(this.chunks);
  }

  async end(): Promise<void> {
    this.socket.destroy();
    await until(() => this.ended, 'the client is gone');
  }
}

export const sum = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
export const noise = (length: number): Buffer => randomBytes(length);

/** Reads so many bytes from a port. */
export async function readBytes(port: ConsolePort, count: number): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for (let length = 0; length < count; ) {
    const part = await port.read();
    assert.ok(part !== null, `the host closed after ${length} of ${count} bytes`);
    parts.push(part);
    length += part.length;
  }
  return Buffer.concat(parts);
}

/** A port that this side opened, with its host program there. */
export async function opened(driver: ConsoleDriver, id: number): Promise<ConsolePort> {
  const port = await driver.port(id);
  await port.open();
  await port.untilHostOpen();
  return port;
}
