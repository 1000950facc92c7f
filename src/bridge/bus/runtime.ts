import { newCounters } from '../../device/channel.ts';
import type { ServedDevice } from '../../device/endpoint.ts';
import { type FlightRecord, FlightRecorder } from '../../device/flight-recorder.ts';
import type { DeviceHost } from '../../device/host.ts';
import type { RingBackend } from '../../device/queue-engine.ts';
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
import type { Dialect } from '../../virtio-msg/dialect.ts';
import type { AttachedDevice, BusSnapshot, DeviceSnapshot, LaneAttachSpec, LaneEvent } from '../lane/protocol.ts';
import type { RemoteBus } from '../remote/remote-bus.ts';
import { RemoteDevice } from '../remote/remote-device.ts';
import { chooseDeviceNumber, identityOf, isServedRecord, recordName } from './device-numbers.ts';
import { Diagnosis } from './diagnosis.ts';
import { openLocalDevice } from './local-device.ts';
import { BusRecovery, busRecoveryBytes } from './recovery.ts';

export interface BusRuntimeOptions {
  readonly bus: string;
  /** Number of the guest's domain. */
  readonly domid: number;
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
  readonly device: ServedDevice;
  /** As it was told last. */
  status: number;
  /** Name of its record in the recovery store, where it has one. */
  readonly record: string | undefined;
  /** Why its data is copied, else null. */
  readonly dataPathReason: string | null;
  /** Releases what serves it; the device is in reset, or the service ends. */
  readonly close: () => Promise<void>;
}

const busRecord = 'bus';
const statusEventDelayMs = 20;

/** One bus: its devices, which outlive guests, and the session with the guest that is there now. */
export class BusRuntime implements BusTransportHandler {
  readonly #o: BusRuntimeOptions;
  readonly #recovery: BusRecovery;
  readonly #counters = newCounters();
  readonly #recorder: FlightRecorder;
  readonly #devices = new Map<number, ServedDevice>();
  readonly #attached = new Map<string, Attached>();
  readonly #usedNumbers = new Set<number>();
  readonly #statusChanged = new Set<Attached>();
  #statusTimer: Timer | undefined;
  #session: BusSession | undefined;
  #peer: GuestIdentity | null = null;
  readonly #diagnosis: Diagnosis;
  #closed = false;

  constructor(options: BusRuntimeOptions) {
    this.#o = options;
    this.#recorder = new FlightRecorder(options.clock, limits.flightRecords);
    this.#diagnosis = new Diagnosis(options.bus, options.emit);
    this.#recovery = new BusRecovery(options.store.open(busRecord, busRecoveryBytes), options.random);
  }

  listen(): void {
    this.#o.transport.start(this);
  }

  /**
   * Attaches a device that a backend in this lane serves.
   * @throws VmsgError device-number-taken, limit-reached
   */
  attach(spec: LaneAttachSpec, backend: Backend | RingBackend, bind: (host: DeviceHost) => void): AttachedDevice {
    const { shadowReason } = backend;
    const identity = identityOf(spec);
    const deviceNumber = this.#chooseNumber(spec, identity);
    const record = recordName(deviceNumber, identity, shadowReason !== undefined);
    const { scheduler, clock, store, maxMessageSize } = this.#o;
    const local = openLocalDevice({
      backend,
      identity,
      memory: (length) => store.open(record, length),
      maxMessageSize,
      scheduler,
      clock,
      onStatus: (status) => this.#onStatus(entry, status),
    });
    const { host: device, close } = local;
    const { attachment } = spec;
    const dataPathReason = shadowReason ?? null;
    const entry: Attached = { attachment, deviceNumber, device, status: 0, record, dataPathReason, close };
    this.#add(entry);
    bind(device);
    // What serves it may have gone since it was opened.
    if (this.#attached.get(attachment) !== entry)
      throw new VmsgError('unavailable', `the backend of ${attachment} has gone`);
    return this.#announce(entry);
  }

  /**
   * Attaches a device that the far side of another connection serves.
   * @throws VmsgError unavailable, backend-busy, device-number-taken, limit-reached
   */
  async attachRemote(spec: LaneAttachSpec, remote: RemoteBus, number: number): Promise<AttachedDevice> {
    const { bus, domid, transport } = this.#o;
    const device = await RemoteDevice.open(remote, number, this.#o.clock, {
      owner: { bus, domid },
      onStatus: (status) => this.#onStatus(entry, status),
      onGone: (reason) => this.#lose(entry, reason),
    });
    const close = async (): Promise<void> => device.close();
    let entry: Attached;
    try {
      if (this.#closed) throw new VmsgError('unavailable', `bus ${bus} was closed`);
      const deviceNumber = this.#chooseNumber(spec, identityOf(spec));
      const { attachment } = spec;
      entry = { attachment, deviceNumber, device, status: 0, record: undefined, dataPathReason: null, close };
      const { domid: peerDomid } = remote.peer;
      if (peerDomid !== undefined) transport.publishDevice?.(deviceNumber, { peerDomid, dataPath: 'direct' });
      this.#add(entry);
    } catch (error) {
      device.close();
      throw error;
    }
    return this.#announce(entry);
  }

  #add(entry: Attached): void {
    this.#attached.set(entry.attachment, entry);
    this.#devices.set(entry.deviceNumber, entry.device);
    this.#usedNumbers.add(entry.deviceNumber);
  }

  #announce({ deviceNumber, device }: Attached): AttachedDevice {
    if (this.#session !== undefined) {
      device.connect(this.#session.link(deviceNumber, device), false);
      this.#session.deviceAdded(deviceNumber);
    }
    return { deviceNumber, deviceType: device.deviceType };
  }

  #chooseNumber({ deviceNumber: wanted, reservedNumbers = [] }: LaneAttachSpec, identity: Uint8Array): number {
    if (this.#devices.size >= limits.devicesPerBus) {
      throw new VmsgError('limit-reached', `bus ${this.#o.bus} has ${limits.devicesPerBus} devices`);
    }
    const number = chooseDeviceNumber(
      wanted,
      identity,
      this.#devices,
      this.#usedNumbers,
      this.#o.store.names(),
      reservedNumbers,
    );
    if (number !== undefined) return number;
    if (wanted === undefined) {
      throw new VmsgError('limit-reached', `bus ${this.#o.bus} has used every device number in this epoch`);
    }
    throw new VmsgError('device-number-taken', `bus ${this.#o.bus} has a device number ${wanted} already`);
  }

  /** Records of devices that another guest served before a restart, and that were not attached since. */
  #missing(): string[] {
    const attached = new Set([...this.#attached.values()].map(({ record }) => record));
    return this.#o.store.names().filter((name) => isServedRecord(name) && !attached.has(name));
  }

  /** Whether devices can resume that are not here yet. */
  get expectsDevices(): boolean {
    return this.#missing().length > 0;
  }

  /** What did not come is not resumed any more. */
  forgetMissing(): void {
    for (const name of this.#missing()) this.#o.store.remove(name);
  }

  /** What serves an attachment is gone. */
  lost(attachment: string, reason: string): void {
    const entry = this.#attached.get(attachment);
    if (entry !== undefined) this.#lose(entry, reason);
  }

  /** What serves the device is gone: so is the device, until it is attached again. */
  #lose(entry: Attached, reason: string): void {
    if (this.#attached.get(entry.attachment) !== entry || this.#closed) return;
    this.#remove(entry);
    // At once, so that it gets another number when it comes back to the same guest.
    this.#forget(entry);
    entry.device.disconnect(() => void entry.close());
    this.#o.emit({ type: 'attachment-lost', bus: this.#o.bus, attachment: entry.attachment, reason });
  }

  #remove(entry: Attached): void {
    this.#attached.delete(entry.attachment);
    this.#devices.delete(entry.deviceNumber);
    this.#statusChanged.delete(entry);
    entry.device.failRequests('ENODEV');
    this.#session?.deviceRemoved(entry.deviceNumber);
    this.#o.transport.unpublishDevice?.(entry.deviceNumber);
  }

  /** Lets requests in flight complete, removes the device from the guest, then releases what serves it. */
  async detach(attachment: string): Promise<void> {
    const entry = this.#attached.get(attachment);
    if (entry === undefined) throw new VmsgError('not-found', `no attachment ${attachment} on bus ${this.#o.bus}`);
    const stuck = `${attachment} has requests that its backend does not complete`;
    entry.device.failRequests('ENODEV');
    await this.#bounded((done) => entry.device.suspend(done), stuck);
    if (this.#attached.get(attachment) !== entry) return;
    this.#remove(entry);
    try {
      await this.#bounded((done) => entry.device.disconnect(done), stuck);
    } finally {
      await entry.close();
      this.#forget(entry);
    }
  }

  #forget({ record }: Attached): void {
    if (record !== undefined) this.#o.store.remove(record);
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

  get nextEpoch(): bigint {
    return this.#recovery.epoch + 1n;
  }

  epochUsed(epoch: bigint): void {
    this.#recovery.skipTo(epoch);
  }

  admit(claim: ResumeClaim): Admission {
    this.#diagnosis.clear();
    return this.#recovery.admit(claim);
  }

  diagnosed(text: string): void {
    this.#diagnosis.note(text);
  }

  connected(connection: GuestConnection, peer: GuestIdentity): void {
    const { resumed, epoch, token } = connection.admission;
    this.#peer = peer;
    this.#usedNumbers.clear();
    for (const number of this.#devices.keys()) this.#usedNumbers.add(number);
    if (!resumed) this.#dropKeptRecords();
    const { dialect, clock, scheduler } = this.#o;
    const session: BusSession = new BusSession({
      connection,
      dialect,
      devices: this.#devices,
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
    for (const [number, device] of this.#devices) device.connect(session.link(number, device), resumed);
    this.#recovery.connected(token);
    this.#o.emit({ type: 'bus-connected', bus: this.#o.bus, epoch, peer, resumed });
    session.start();
  }

  /** Records of devices that are not attached any more serve nobody once a guest started afresh. */
  #dropKeptRecords(): void {
    const live = new Set<string | undefined>([busRecord, ...[...this.#attached.values()].map((entry) => entry.record)]);
    for (const name of this.#o.store.names()) if (!live.has(name)) this.#o.store.remove(name);
  }

  disconnected(reason: string): void {
    const session = this.#session;
    if (session === undefined) return;
    this.#session = undefined;
    this.#peer = null;
    this.#recovery.disconnected();
    for (const device of this.#devices.values()) device.disconnect(() => {});
    session.close();
    this.#o.emit({ type: 'bus-disconnected', bus: this.#o.bus, epoch: this.#recovery.epoch, reason });
  }

  refused(peer: GuestIdentity | null, reason: string): void {
    this.#o.emit({ type: 'bus-refused', bus: this.#o.bus, peer, reason });
  }

  #onStatus(entry: Attached, status: number): void {
    if (status === 0 && entry.status !== 0) this.#session?.deviceReset(entry.deviceNumber);
    entry.status = status;
    if (this.#closed) return;
    this.#statusChanged.add(entry);
    // A guest can change its status as fast as it writes; watchers get the latest, at a bounded rate.
    this.#statusTimer ??= this.#o.clock.after(statusEventDelayMs, () => this.#emitStatus());
  }

  #emitStatus(): void {
    this.#statusTimer = undefined;
    for (const { attachment, deviceNumber, device } of this.#statusChanged) {
      const { status, reason } = device;
      this.#o.emit({ type: 'device-status', bus: this.#o.bus, attachment, deviceNumber, status, reason });
    }
    this.#statusChanged.clear();
  }

  snapshot(): BusSnapshot {
    const areas = this.#session?.memory.areasOf(0);
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
      grants: this.#session?.grants() ?? null,
      diagnosis: this.#diagnosis.text,
      devices: [...this.#attached.values()].map(deviceSnapshot),
      stuck: [],
    };
  }

  records(): FlightRecord[] {
    return this.#recorder.records();
  }

  /** Before the service stops: requests in flight complete (bounded); what a resume needs stays. */
  async suspend(): Promise<void> {
    const devices = [...this.#devices.values()];
    const all = devices.map((device) => this.#bounded((done) => device.suspend(done), 'suspend').catch(() => {}));
    await Promise.all(all);
  }

  /** Releases everything at once. `forget` also removes what a resume would need. */
  async close(forget: boolean): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#statusTimer?.cancel();
    this.#o.transport.close(forget);
    const session = this.#session;
    this.#session = undefined;
    // Before any wait: the rings are unmapped, and the session must not touch them again.
    session?.close();
    const entries = [...this.#attached.values()];
    if (forget)
      await Promise.all(
        entries.map((e) => this.#bounded((done) => e.device.disconnect(done), 'close').catch(() => {})),
      );
    await Promise.all(entries.map((entry) => entry.close()));
    this.#recovery.close();
    if (forget) for (const name of this.#o.store.names()) this.#o.store.remove(name);
  }
}

function deviceSnapshot({ attachment, deviceNumber, dataPathReason, device }: Attached): DeviceSnapshot {
  const { deviceType, status, reason, work, recovery, dataPath } = device;
  const about = { attachment, deviceNumber, deviceType, status, reason, recovery, dataPath, dataPathReason };
  return { ...about, queues: device.queues(), ...(work ?? { requests: null, bytes: null }) };
}
