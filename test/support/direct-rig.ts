import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { laneOptions } from '../../src/app/lane-options.ts';
import type { BackendFactory } from '../../src/bridge/backend/factory.ts';
import { type Endpoint, socketEndpoint } from '../../src/bridge/backend/vhost-user/endpoint.ts';
import { openVhostUser } from '../../src/bridge/backend/vhost-user/open.ts';
import { InlineLane } from '../../src/bridge/lane/inline.ts';
import type { BusSnapshot, LaneEvent, VhostUserDataPath } from '../../src/bridge/lane/protocol.ts';
import { type ConnectOptions, connect, type GuestBus } from '../../src/guest/index.ts';
import { type Clock, systemClock } from '../../src/kit/clock.ts';
import { systemScheduler } from '../../src/kit/scheduler.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { SharedSignal } from '../../src/libc/signal-batch.ts';
import { openMessenger } from '../../src/vhost-user/socket.ts';
import { until } from './guest-fixture.ts';
import { noJoins } from './no-joins.ts';
import { settledCensus } from './settled-census.ts';
import { goodHabits, HabitChannel, LazyDisk } from './vhost-user-habits.ts';
import { VhostUserPeer } from './vhost-user-peer.ts';

/** Time in which no wait is long. */
export const impatient: Clock = {
  nowMs: () => systemClock.nowMs(),
  after: (delayMs, callback) => systemClock.after(Math.min(delayMs, 400), callback),
};

const attachment = 'disk';
export const deviceNumber = 3;

/** A lane whose one device a back-end in this process works on, as if the service had started it. */
export class DirectRig {
  readonly poller = new LoopPoller();
  readonly habits = goodHabits();
  readonly disk = new LazyDisk(this.poller);
  readonly peer: VhostUserPeer;
  readonly events: LaneEvent[] = [];
  /** Settles when nothing of an earlier program runs any more. */
  gone: Promise<void> = Promise.resolve();
  dataPath: VhostUserDataPath = 'auto';
  clock: Clock = systemClock;
  readonly #directory = mkdtempSync(join(tmpdir(), 'vmsg-direct-'));
  readonly #messenger = openMessenger();
  readonly #signals = new SharedSignal();
  readonly #lane: InlineLane;
  readonly #buses: GuestBus[] = [];

  constructor() {
    this.peer = new VhostUserPeer(join(this.#directory, 'back-end'), this.disk, this.poller, this.#messenger);
    this.peer.between = (channel) => new HabitChannel(channel, this.habits);
    this.#lane = new InlineLane((emit) => {
      const usual = laneOptions(this.poller, emit);
      return { ...usual, backends: { ...usual.backends, 'vhost-user': this.#open } };
    });
    this.#lane.onEvent((event) => this.events.push(event));
  }

  readonly #open: BackendFactory<'vhost-user'> = (spec, host, { directWay }) => {
    const endpoint: Endpoint = { ...socketEndpoint(spec.socket), shadowReason: undefined, surelyGone: () => this.gone };
    const { poller, clock } = this;
    const parts = { poller, clock, scheduler: systemScheduler, signals: this.#signals, dataPlane: noJoins() };
    return openVhostUser(spec, endpoint, host, directWay, parts);
  };

  async start(): Promise<void> {
    this.peer.listen();
    await this.#lane.call('openBus', {
      bus: 'bus',
      transport: 'loopback',
      role: 'driver',
      domid: 1,
      socketPath: join(this.#directory, 'bus'),
      socketMode: 0o600,
      admittedUids: [process.getuid?.() ?? 0],
      maxMessageSizeBytes: 64,
      ringMaxBytes: 65536,
      recoveryDir: join(this.#directory, 'recovery'),
    });
    await this.attach();
    await this.#lane.call('listenBus', { bus: 'bus' });
  }

  async attach(): Promise<void> {
    const { dataPath } = this;
    const backend = { type: 'vhost-user', device: 'blk', socket: this.peer.path, dataPath } as const;
    await this.#lane.call('attach', { bus: 'bus', attachment, deviceNumber, backend });
  }

  async detach(): Promise<void> {
    await this.#lane.call('detach', { bus: 'bus', attachment });
  }

  /** A guest of the bus. */
  async guest(options: Partial<ConnectOptions> = {}): Promise<GuestBus> {
    const bus = await connect({ path: join(this.#directory, 'bus'), memoryBytes: 4 << 20, ...options });
    this.#buses.push(bus);
    return bus;
  }

  /** The guest that came last. */
  get guestBus(): GuestBus {
    return this.#buses.at(-1)!;
  }

  /** Why the device left the bus, each time that nobody has asked for with `lost`. */
  get losses(): string[] {
    return this.events.flatMap((event) => (event.type === 'attachment-lost' ? [event.reason] : []));
  }

  async bus(): Promise<BusSnapshot> {
    const { buses } = await this.#lane.call('inspect', {});
    return buses[0]!;
  }

  /** The device as the lane shows it; undefined while it is not attached. */
  async device() {
    return (await this.bus()).devices[0];
  }

  /** Waits until the device has left the bus. @returns why */
  async lost(): Promise<string> {
    const isLoss = (event: LaneEvent) => event.type === 'attachment-lost';
    await until(() => this.events.some(isLoss), 'the device leaves the bus');
    const [event] = this.events.splice(this.events.findIndex(isLoss), 1);
    assert(event?.type === 'attachment-lost');
    return event.reason;
  }

  async end(): Promise<void> {
    for (const bus of this.#buses) bus.close();
    await this.#lane.call('shutdown', {});
    this.#lane.close();
    this.peer.leave();
    await until(() => this.disk.running.length === 0, 'the disk has stopped');
    this.poller.close();
    this.#messenger.close();
    this.#signals.close();
    rmSync(this.#directory, { recursive: true });
  }
}

/** Runs a test with a device that is there; in the end nothing may be left open. */
export async function withDirect(run: (rig: DirectRig) => Promise<void>, prepare?: (rig: DirectRig) => void) {
  const before = await settledCensus();
  const rig = new DirectRig();
  prepare?.(rig);
  try {
    await rig.start();
    await run(rig);
  } finally {
    await rig.end();
  }
  assert.equal(await settledCensus(), before, 'nothing is left');
}
