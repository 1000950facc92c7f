import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { laneOptions } from '../../src/app/lane-options.ts';
import { LoopbackTransport } from '../../src/bridge/bus/loopback/transport.ts';
import { BusRuntime } from '../../src/bridge/bus/runtime.ts';
import { InlineLane } from '../../src/bridge/lane/inline.ts';
import type { BusSnapshot, Lane, LaneEvent, LoopbackBusSpec } from '../../src/bridge/lane/protocol.ts';
import { WorkerLane } from '../../src/bridge/lane/worker-lane.ts';
import { systemScheduler } from '../../src/kit/scheduler.ts';
import { type Census, census } from '../../src/libc/census.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { dialectD5 } from '../../src/virtio-msg/dialect.ts';
import { CountingRandom, FakeClock, FakeStore } from './bridge-fakes.ts';
import { RawGuest, until } from './bridge-guest.ts';

export type LaneKind = 'inline' | 'worker';

export function makeLane(kind: LaneKind): Lane {
  if (kind === 'inline') return new InlineLane((emit) => laneOptions(new LoopPoller(), emit));
  const extension = import.meta.url.endsWith('.ts') ? '.ts' : '.js';
  return new WorkerLane(new URL(`../../src/app/lane-worker${extension}`, import.meta.url), {
    dataPlaneWorkers: 1,
    dataPlaneSpinUs: 0,
    diskIo: 'io_uring',
  });
}

export const diskBytes = Uint8Array.from({ length: 20_000 }, (_, i) => (i * 11 + (i >> 8)) & 0xff);

/** A bus without a lane, on the real transport, whose time passes only when told. */
export function openClockedBus() {
  const directory = mkdtempSync(path.join(tmpdir(), 'vmsg-bus-'));
  const socketPath = path.join(directory, 'bus.sock');
  const clock = new FakeClock();
  const runtime = new BusRuntime({
    bus: 'clocked',
    domid: 1,
    maxMessageSize: 64,
    dialect: dialectD5,
    transport: new LoopbackTransport({
      socketPath,
      socketMode: 0o600,
      admittedUids: [process.getuid?.() ?? 0],
      domid: 1,
      role: 'driver',
      maxMessageSizeBytes: 64,
      ringMaxBytes: 65536,
      revision: 1,
      dialect: 5,
      poller: new LoopPoller(),
      clock,
    }),
    store: new FakeStore(),
    clock,
    scheduler: systemScheduler,
    random: new CountingRandom(),
    emit: () => {},
  });
  runtime.listen();
  return {
    clock,
    runtime,
    guest: () => new RawGuest(socketPath),
    close: async () => {
      await runtime.close(true);
      rmSync(directory, { recursive: true });
    },
  };
}

/** A lane with one bus, one disk and one entropy device, and a count of all that is open. */
export class LaneRig {
  readonly directory = mkdtempSync(path.join(tmpdir(), 'vmsg-lane-'));
  readonly socketPath = path.join(this.directory, 'bus.sock');
  readonly diskPath = path.join(this.directory, 'disk');
  readonly events: LaneEvent[] = [];
  lane: Lane;
  readonly #kind: LaneKind;
  #idle: Census | undefined;

  constructor(kind: LaneKind) {
    this.#kind = kind;
    writeFileSync(this.diskPath, diskBytes);
    this.lane = this.#makeLane();
  }

  #makeLane(): Lane {
    const lane = makeLane(this.#kind);
    lane.onEvent((event) => this.events.push(event));
    return lane;
  }

  spec(changes: Partial<LoopbackBusSpec> = {}): LoopbackBusSpec {
    return {
      bus: 'bus',
      transport: 'loopback',
      role: 'driver',
      domid: 7,
      socketPath: this.socketPath,
      socketMode: 0o600,
      admittedUids: [process.getuid?.() ?? 0],
      maxMessageSizeBytes: 64,
      ringMaxBytes: 65536,
      recoveryDir: path.join(this.directory, changes.bus ?? 'bus'),
      ...changes,
    };
  }

  async open(changes: Partial<LoopbackBusSpec> = {}): Promise<this> {
    const spec = this.spec(changes);
    await this.lane.call('openBus', spec);
    await this.attachAll(spec.bus);
    await this.lane.call('listenBus', { bus: spec.bus });
    this.#idle ??= census();
    return this;
  }

  async attachAll(bus = 'bus'): Promise<void> {
    const blk = { type: 'blk', path: this.diskPath, readOnly: false, serial: 'lane' } as const;
    const rng = { type: 'rng', source: '/dev/urandom' } as const;
    assert.equal((await this.lane.call('attach', { bus, attachment: 'disk', backend: blk })).deviceNumber, 0);
    assert.equal((await this.lane.call('attach', { bus, attachment: 'rng', backend: rng })).deviceNumber, 1);
  }

  /** Ends the lane in order and starts another one on the same files. */
  async restart(): Promise<void> {
    await this.lane.call('shutdown', {});
    this.lane.close();
    this.lane = this.#makeLane();
    await this.open();
  }

  guest(socketPath = this.socketPath): RawGuest {
    return new RawGuest(socketPath);
  }

  /** Runs a guest; after it nothing of it may be left. */
  async withGuest(act: (guest: RawGuest) => Promise<void>): Promise<void> {
    const guest = this.guest();
    try {
      await act(guest);
    } finally {
      guest.close();
    }
    await this.quiet();
  }

  async bus(bus = 'bus'): Promise<BusSnapshot> {
    const found = (await this.lane.call('inspect', {})).buses.find((each) => each.bus === bus);
    assert.ok(found !== undefined);
    return found;
  }

  event(type: LaneEvent['type']): Promise<LaneEvent> {
    return until(type, () => {
      const at = this.events.findIndex((event) => event.type === type);
      return at < 0 ? undefined : this.events.splice(at, 1)[0];
    });
  }

  /** Waits until nothing of any guest is left: no descriptor, no mapping, no region, every device in reset. */
  async quiet(): Promise<void> {
    let last: unknown;
    for (const end = performance.now() + 10_000; ; ) {
      const { state, regions, regionsDraining, devices } = await this.bus();
      const open = census();
      last = { state, regions, regionsDraining, open, status: devices.map((device) => device.status) };
      const rest = JSON.stringify(last);
      const wanted = { state: 'listening', regions: 0, regionsDraining: 0, open: this.#idle };
      if (rest === JSON.stringify({ ...wanted, status: devices.map(() => 0) })) return;
      if (performance.now() > end) assert.deepEqual(last, { ...wanted, status: devices.map(() => 0) });
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  async close(): Promise<void> {
    await this.lane.call('shutdown', {});
    this.lane.close();
    rmSync(this.directory, { recursive: true });
  }
}
