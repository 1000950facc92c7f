import { createHash } from 'node:crypto';
import { newCounters } from '../../device/channel.ts';
import { type FlightRecord, FlightRecorder } from '../../device/flight-recorder.ts';
import { DeviceHost } from '../../device/host.ts';
import { DeviceRecovery, recoveryBytes } from '../../device/recovery.ts';
import { BusSession } from '../../device/session.ts';
import type { Clock, Timer } from '../../kit/clock.ts';
import { VmsgError } from '../../kit/errors.ts';
import { limits } from '../../kit/limits.ts';
import type { Random } from '../../kit/random.ts';
import type { Scheduler } from '../../kit/scheduler.ts';
import type { Backend } from '../../ports/backend.ts';
import type {
  Admission,
  BusTransport,
  BusTransportHandler,
  GuestConnection,
  GuestIdentity,
  ResumeClaim,
} from '../../ports/bus.ts';
import type { RecoveryStore } from '../../ports/recovery.ts';
import { FeatureSet, feature } from '../../virtio/features.ts';
import type { Dialect } from '../../virtio-msg/dialect.ts';
import type { AttachedDevice, BusSnapshot, DeviceSnapshot, LaneAttachSpec, LaneEvent } from '../lane/protocol.ts';
import { BusRecovery, busRecoveryBytes } from './recovery.ts';

export interface BusRuntimeOptions {
  readonly bus: string;
  readonly maxMessageSize: number;
  readonly dialect: Dialect;
  readonly transport: BusTransport;
  readonly store: RecoveryStore;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly random: Random;
  readonly emit: (event: LaneEvent) => void;
}

interface Attached {
  readonly attachment: string;
  readonly deviceNumber: number;
  readonly host: DeviceHost;
  readonly backend: Backend;
  readonly recovery: DeviceRecovery;
  readonly recoveryName: string;
}

/** Features that the bridge brings for every device (design: VERSION_1 and ACCESS_PLATFORM are required). */
const bridgeFeatures = [
  feature.VERSION_1,
  feature.ACCESS_PLATFORM,
  feature.INDIRECT_DESC,
  feature.EVENT_IDX,
  feature.RING_RESET,
];
/** Linux drivers take only devices with exactly 64 feature bits. */
const featureBlocksMin = 2;
const busRecord = 'bus';
const deviceNumberMax = 0xffff;
const statusEventDelayMs = 20;

/** One bus: its devices, which outlive guests, and the session with the guest that is there now. */
export class BusRuntime implements BusTransportHandler {
  readonly #o: BusRuntimeOptions;
  readonly #recovery: BusRecovery;
  readonly #counters = newCounters();
  readonly #recorder: FlightRecorder;
  readonly #hosts = new Map<number, DeviceHost>();
  readonly #attached = new Map<string, Attached>();
  readonly #usedNumbers = new Set<number>();
  readonly #statusChanged = new Set<Attached>();
  #statusTimer: Timer | undefined;
  #session: BusSession | undefined;
  #peer: GuestIdentity | null = null;
  #closed = false;

  constructor(options: BusRuntimeOptions) {
    this.#o = options;
    this.#recorder = new FlightRecorder(options.clock, limits.flightRecords);
    this.#recovery = new BusRecovery(options.store.open(busRecord, busRecoveryBytes), options.random);
  }

  listen(): void {
    this.#o.transport.start(this);
  }

  /** @throws VmsgError device-number-taken, limit-reached */
  attach(spec: LaneAttachSpec, backend: Backend, bind: (host: DeviceHost) => void): AttachedDevice {
    if (this.#hosts.size >= limits.devicesPerBus) {
      throw new VmsgError('limit-reached', `bus ${this.#o.bus} has ${limits.devicesPerBus} devices`);
    }
    const identity = createHash('sha256')
      .update(JSON.stringify([spec.attachment, spec.backend]))
      .digest();
    const deviceNumber = this.#chooseNumber(spec.deviceNumber, identity);
    const { description } = backend;
    const queues = description.queueSizes.length;
    const recoveryName = recoveryNameOf(deviceNumber, identity);
    const recovery = new DeviceRecovery(this.#o.store.open(recoveryName, recoveryBytes(queues)), identity, queues);
    const offered = FeatureSet.of(...bridgeFeatures, ...description.featureBits);
    const { deviceType, vendorId, uuid, queueSizes } = description;
    const featureBlockCount = Math.max(featureBlocksMin, offered.toBlocks().length);
    const model = {
      deviceType,
      vendorId,
      uuid,
      offered,
      featureBlockCount,
      queueMaxSizes: queueSizes,
      maxMessageSize: this.#o.maxMessageSize,
    };
    const { scheduler, clock } = this.#o;
    const host: DeviceHost = new DeviceHost({
      model,
      backend,
      scheduler,
      clock,
      recovery,
      onStatus: (status) => this.#onStatus(entry, status),
    });
    const entry: Attached = { attachment: spec.attachment, deviceNumber, host, backend, recovery, recoveryName };
    this.#attached.set(spec.attachment, entry);
    this.#hosts.set(deviceNumber, host);
    this.#usedNumbers.add(deviceNumber);
    bind(host);
    if (this.#session !== undefined) {
      host.connect(this.#session.link(deviceNumber, host), false);
      this.#session.deviceAdded(deviceNumber);
    }
    return { deviceNumber, deviceType };
  }

  #chooseNumber(wanted: number | undefined, identity: Uint8Array): number {
    if (wanted !== undefined) {
      if (!this.#hosts.has(wanted)) return wanted;
      throw new VmsgError('device-number-taken', `bus ${this.#o.bus} has a device number ${wanted} already`);
    }
    const names = this.#o.store.names();
    const former = names.find((name) => name.endsWith(recoverySuffix(identity)));
    const formerNumber = former === undefined ? undefined : recoveryNumber(former);
    if (formerNumber !== undefined && !this.#hosts.has(formerNumber)) return formerNumber;
    const kept = new Set(names.map(recoveryNumber));
    for (let number = 0; number <= deviceNumberMax; number++) {
      if (!this.#usedNumbers.has(number) && !kept.has(number)) return number;
    }
    throw new VmsgError('limit-reached', `bus ${this.#o.bus} has used every device number in this epoch`);
  }

  /** Lets requests in flight complete, removes the device from the guest, then releases the backend. */
  async detach(attachment: string): Promise<void> {
    const entry = this.#attached.get(attachment);
    if (entry === undefined) throw new VmsgError('not-found', `no attachment ${attachment} on bus ${this.#o.bus}`);
    entry.host.failRequests('ENODEV');
    await this.#bounded(
      (done) => entry.host.suspend(done),
      `${attachment} has requests that its backend does not complete`,
    );
    if (this.#attached.get(attachment) !== entry) return;
    this.#attached.delete(attachment);
    this.#hosts.delete(entry.deviceNumber);
    entry.host.failRequests('ENODEV');
    this.#session?.deviceRemoved(entry.deviceNumber);
    await this.#bounded(
      (done) => entry.host.disconnect(done),
      `${attachment} has requests that its backend does not complete`,
    );
    await this.#release(entry);
  }

  async #release(entry: Attached): Promise<void> {
    this.#statusChanged.delete(entry);
    await entry.backend.close();
    entry.recovery.close();
    this.#o.store.remove(entry.recoveryName);
  }

  /** @throws VmsgError timeout */
  #bounded(start: (done: () => void) => void, what: string): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = this.#o.clock.after(limits.resetTimeoutMs, () => reject(new VmsgError('timeout', what)));
      start(() => {
        timer.cancel();
        resolve();
      });
    });
  }

  admit(claim: ResumeClaim): Admission {
    return this.#recovery.admit(claim);
  }

  connected(connection: GuestConnection, peer: GuestIdentity): void {
    const { resumed, epoch, token } = connection.admission;
    this.#peer = peer;
    this.#usedNumbers.clear();
    for (const number of this.#hosts.keys()) this.#usedNumbers.add(number);
    if (!resumed) this.#dropKeptRecords();
    const { dialect, clock, scheduler } = this.#o;
    const session: BusSession = new BusSession({
      connection,
      dialect,
      devices: this.#hosts,
      clock,
      scheduler,
      counters: this.#counters,
      recorder: this.#recorder,
      onBroken: (reason) => {
        // Told late: the guest may have left and another one be here.
        if (this.#session === session) this.disconnected(reason);
      },
    });
    this.#session = session;
    for (const [number, host] of this.#hosts) host.connect(session.link(number, host), resumed);
    this.#recovery.connected(token);
    this.#o.emit({ type: 'bus-connected', bus: this.#o.bus, epoch, peer, resumed });
    session.start();
  }

  /** Records of devices that are not attached any more serve nobody once a guest started afresh. */
  #dropKeptRecords(): void {
    const live = new Set([busRecord, ...[...this.#attached.values()].map((entry) => entry.recoveryName)]);
    for (const name of this.#o.store.names()) if (!live.has(name)) this.#o.store.remove(name);
  }

  disconnected(reason: string): void {
    const session = this.#session;
    if (session === undefined) return;
    this.#session = undefined;
    this.#peer = null;
    this.#recovery.disconnected();
    for (const host of this.#hosts.values()) host.disconnect(() => {});
    session.close();
    this.#o.emit({ type: 'bus-disconnected', bus: this.#o.bus, epoch: this.#recovery.epoch, reason });
  }

  refused(peer: GuestIdentity | null, reason: string): void {
    this.#o.emit({ type: 'bus-refused', bus: this.#o.bus, peer, reason });
  }

  #onStatus(entry: Attached, status: number): void {
    if (status === 0) this.#session?.deviceReset(entry.deviceNumber);
    this.#statusChanged.add(entry);
    // A guest can change its status as fast as it writes; watchers get the latest, at a bounded rate.
    this.#statusTimer ??= this.#o.clock.after(statusEventDelayMs, () => this.#emitStatus());
  }

  #emitStatus(): void {
    this.#statusTimer = undefined;
    for (const { attachment, deviceNumber, host } of this.#statusChanged) {
      const { status, reason } = host;
      this.#o.emit({ type: 'device-status', bus: this.#o.bus, attachment, deviceNumber, status, reason });
    }
    this.#statusChanged.clear();
  }

  snapshot(): BusSnapshot {
    const areas = this.#session?.areas;
    return {
      bus: this.#o.bus,
      state: this.#o.transport.state,
      epoch: this.#recovery.epoch,
      peer: this.#peer,
      counters: { ...this.#counters },
      channel: this.#session?.channelSnapshot() ?? null,
      shares: areas?.snapshot() ?? [],
      regions: areas?.regions ?? 0,
      regionBytes: areas?.regionBytes ?? 0,
      regionsDraining: areas?.regionsDraining ?? 0,
      devices: [...this.#attached.values()].map(deviceSnapshot),
    };
  }

  records(): FlightRecord[] {
    return this.#recorder.records();
  }

  /** Before the service stops: requests in flight complete (bounded); what a resume needs stays. */
  async suspend(): Promise<void> {
    const hosts = [...this.#hosts.values()];
    const all = hosts.map((host) => this.#bounded((done) => host.suspend(done), 'suspend').catch(() => {}));
    await Promise.all(all);
  }

  /** Releases everything at once. `forget` also removes what a resume would need. */
  async close(forget: boolean): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#statusTimer?.cancel();
    this.#o.transport.close();
    const session = this.#session;
    this.#session = undefined;
    // Before any wait: the rings are unmapped, and the session must not touch them again.
    session?.close();
    const entries = [...this.#attached.values()];
    if (forget)
      await Promise.all(entries.map((e) => this.#bounded((done) => e.host.disconnect(done), 'close').catch(() => {})));
    await Promise.all(entries.map((entry) => entry.backend.close()));
    for (const entry of entries) entry.recovery.close();
    this.#recovery.close();
    if (forget) for (const name of this.#o.store.names()) this.#o.store.remove(name);
  }
}

const recoverySuffix = (identity: Uint8Array): string => `-${Buffer.from(identity.subarray(0, 8)).toString('hex')}`;

const recoveryNameOf = (number: number, identity: Uint8Array): string => `device-${number}${recoverySuffix(identity)}`;

function recoveryNumber(name: string): number | undefined {
  const match = /^device-(\d+)-/.exec(name);
  return match === null ? undefined : Number(match[1]);
}

function deviceSnapshot({ attachment, deviceNumber, host, backend }: Attached): DeviceSnapshot {
  const { status, reason, work } = host;
  const { deviceType } = backend.description;
  return { attachment, deviceNumber, deviceType, status, queues: host.queues(), reason, ...work };
}
