import type { AreaSnapshot } from '../../device/area-table.ts';
import { Channel, type ChannelHandler, newCounters } from '../../device/channel.ts';
import { type FlightRecord, FlightRecorder } from '../../device/flight-recorder.ts';
import type { Clock } from '../../kit/clock.ts';
import { limits } from '../../kit/limits.ts';
import type { Random } from '../../kit/random.ts';
import type { Scheduler } from '../../kit/scheduler.ts';
import type { Admission, BusTransport, BusTransportHandler, GuestConnection, GuestIdentity } from '../../ports/bus.ts';
import type { BusMessage, Dialect, TransportMessage } from '../../virtio-msg/dialect.ts';
import type { MessageHeader } from '../../virtio-msg/header.ts';
import type { BusSnapshot, LaneEvent } from '../lane/protocol.ts';
import type { StuckShare } from '../remote/peer.ts';
import { RemoteBus } from '../remote/remote-bus.ts';
import type { BounceMemory } from '../shadow/bounce-memory.ts';
import { Diagnosis } from './diagnosis.ts';

export interface DeviceBusOptions {
  readonly bus: string;
  /** Number of the guest's domain. */
  readonly domid: number;
  /** Makes memory of ours that the guest can map, for the shadow path. @throws VmsgError system-call, hypervisor-call */
  readonly bounce: (peer: GuestIdentity, bytes: number) => BounceMemory;
  readonly dialect: Dialect;
  readonly transport: BusTransport;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly random: Random;
  readonly emit: (event: LaneEvent) => void;
}

interface Session {
  readonly connection: GuestConnection;
  readonly peer: GuestIdentity;
  readonly channel: Channel;
  readonly remote: RemoteBus;
}

const noShares: readonly AreaSnapshot[] = [];

/** A bus whose guest serves devices; attachments of other buses use them. A new guest is a new start: nothing resumes. */
export class DeviceBus implements BusTransportHandler, ChannelHandler {
  readonly #o: DeviceBusOptions;
  readonly #counters = newCounters();
  readonly #recorder: FlightRecorder;
  #session: Session | undefined;
  #epoch = 0n;
  readonly #diagnosis: Diagnosis;

  constructor(options: DeviceBusOptions) {
    this.#o = options;
    this.#recorder = new FlightRecorder(options.clock, limits.flightRecords);
    this.#diagnosis = new Diagnosis(options.bus, options.emit);
  }

  listen(): void {
    this.#o.transport.start(this);
  }

  /** The driver side towards the guest, while there is one. */
  get remote(): RemoteBus | undefined {
    return this.#session?.remote;
  }

  get nextEpoch(): bigint {
    return this.#epoch + 1n;
  }

  epochUsed(epoch: bigint): void {
    if (epoch > this.#epoch) this.#epoch = epoch;
  }

  admit(): Admission {
    this.#epoch += 1n;
    this.#diagnosis.clear();
    const token = new Uint8Array(16);
    this.#o.random.fill(token);
    return { epoch: this.#epoch, token, resumed: false };
  }

  connected(connection: GuestConnection, peer: GuestIdentity): void {
    const { dialect, scheduler, clock } = this.#o;
    const channel = new Channel(
      connection.port,
      dialect,
      connection.maxMessageSize,
      this,
      scheduler,
      this.#counters,
      this.#recorder,
    );
    const path = {
      maxMessageSize: connection.maxMessageSize,
      byPeer: true,
      lengthOf: dialect.encodedLength.bind(dialect),
      send: channel.send.bind(channel),
      giveDescriptor: connection.resources.give.bind(connection.resources),
      bounce: (bytes: number) => this.#o.bounce(peer, bytes),
      ...('domid' in peer ? { domid: peer.domid } : {}),
    };
    const remote = new RemoteBus(path, clock, {
      onDevices: () => this.#emitDevices(),
      onStuck: (share, stuck) => this.#emitShare(share, stuck),
    });
    const session = { connection, peer, channel, remote };
    this.#session = session;
    connection.onDoorbell(() => {
      this.#counters.doorbellsIn += 1;
      channel.onDoorbell();
    });
    this.#o.emit({ type: 'bus-connected', bus: this.#o.bus, epoch: this.#epoch, peer, resumed: false });
    void remote.enumerate().then(() => {
      if (this.#session === session) this.#emitDevices();
    });
    channel.onDoorbell();
  }

  #emitDevices(): void {
    const devices = [...(this.remote?.devices ?? [])].sort((a, b) => a - b);
    this.#o.emit({ type: 'served-devices', bus: this.#o.bus, devices });
  }

  #emitShare({ owner, pages, ageMs }: StuckShare, stuck: boolean): void {
    const type = stuck ? 'share-stuck' : 'share-released';
    const mapper = { mapperBus: this.#o.bus, mapperDomid: this.#o.domid };
    this.#o.emit({ type, ...owner, pages, ageMs, ...mapper });
  }

  busMessage(message: BusMessage, header: MessageHeader): void {
    const session = this.#session;
    if (session === undefined) return;
    if (message.kind === 'request' && message.name === 'PING') {
      session.channel.send({ kind: 'response', name: 'PING', body: message.body }, 0, header.token);
    } else if (!session.remote.onMessage(message, header)) this.#counters.dropped += 1;
  }

  transportMessage(message: TransportMessage, header: MessageHeader): void {
    if (this.#session?.remote.onMessage(message, header) !== true) this.#counters.dropped += 1;
  }

  available(): void {
    // A side that serves devices has nothing to make available.
    this.#counters.dropped += 1;
  }

  broken(reason: string): void {
    this.disconnected(reason);
  }

  disconnected(reason: string): void {
    if (this.#session === undefined) return;
    this.#end(reason);
    this.#o.emit({ type: 'bus-disconnected', bus: this.#o.bus, epoch: this.#epoch, reason });
  }

  #end(reason: string): void {
    const session = this.#session;
    this.#session = undefined;
    session?.remote.close(reason);
    session?.channel.close();
    session?.connection.close();
  }

  refused(peer: GuestIdentity | null, reason: string): void {
    this.#o.emit({ type: 'bus-refused', bus: this.#o.bus, peer, reason });
  }

  diagnosed(text: string): void {
    this.#diagnosis.note(text);
  }

  snapshot(): BusSnapshot {
    const session = this.#session;
    return {
      bus: this.#o.bus,
      state: this.#o.transport.state,
      epoch: this.#epoch,
      peer: session?.peer ?? null,
      counters: { ...this.#counters },
      channel: session?.channel.snapshot() ?? null,
      // The memory that its devices use belongs to the guests of other buses.
      shares: noShares,
      regions: 0,
      regionBytes: 0,
      regionsDraining: 0,
      grants: null,
      diagnosis: this.#diagnosis.text,
      devices: [],
      stuck: (session?.remote.stuck() ?? []).map(({ owner, pages, ageMs }) => ({ domid: owner.domid, pages, ageMs })),
    };
  }

  records(): FlightRecord[] {
    return this.#recorder.records();
  }

  async suspend(): Promise<void> {}

  async close(forget: boolean): Promise<void> {
    this.#o.transport.close(forget);
    this.#end('the bus was closed');
  }
}
