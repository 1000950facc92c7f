import assert from 'node:assert/strict';
import { BusRuntime } from '../../src/bridge/bus/runtime.ts';
import type { LaneEvent } from '../../src/bridge/lane/protocol.ts';
import type { Backend } from '../../src/ports/backend.ts';
import type { ResumeClaim } from '../../src/ports/bus.ts';
import { FeatureSet, feature } from '../../src/virtio/features.ts';
import { ringBytes, ringLayout } from '../../src/virtio/geometry.ts';
import { openDriverQueue, type RingDriverQueue } from '../../src/virtio/rings.ts';
import { status } from '../../src/virtio/status.ts';
import type { BusRequest, BusResponse } from '../../src/virtio-msg/bus-messages.ts';
import { type CanonicalMessage, dialectD5 } from '../../src/virtio-msg/dialect.ts';
import { headerBytes, messageHeader } from '../../src/virtio-msg/header.ts';
import {
  setVqueueFlags,
  type TransportRequest,
  type TransportResponse,
} from '../../src/virtio-msg/transport-messages.ts';
import { type Decoded, decode, Malformed } from '../../src/wire/layout.ts';
import {
  CountingRandom,
  FakeClock,
  type FakeConnection,
  FakeMemory,
  FakeScheduler,
  FakeStore,
  FakeTransport,
} from './bridge-fakes.ts';

type Header = Decoded<typeof messageHeader>;

/** A frame that the service sent, as its guest sees it. */
export type Seen = CanonicalMessage & { readonly header: Header; readonly frame: Uint8Array };

export interface BenchOptions {
  readonly maxMessageSize?: number;
  readonly store?: FakeStore;
}

const noClaim: ResumeClaim = { epoch: 0n, token: new Uint8Array(16) };
const ready = status.ACKNOWLEDGE | status.DRIVER;
export const featuresOk = ready | status.FEATURES_OK;
export const driverOk = featuresOk | status.DRIVER_OK;
export const needed = [feature.VERSION_1, feature.ACCESS_PLATFORM];

type RequestBody<N> = Extract<TransportRequest | BusRequest, { name: N }>['body'];
type ResponseBody<N> = Extract<TransportResponse | BusResponse, { name: N }>['body'];
type RequestName = (TransportRequest | BusRequest)['name'];

const busNames: ReadonlySet<string> = new Set(['GET_DEVICES', 'PING', 'REGION_ADD', 'REGION_DEL', 'QUEUE_NOTIFY']);

/** Decodes a frame as a careful guest does. */
export function parseFrame(frame: Uint8Array): Seen {
  const header = decode(messageHeader, frame, 0, headerBytes) as Header;
  const message = dialectD5.decode(frame, header);
  assert.ok(!(message instanceof Malformed), message instanceof Malformed ? message.reason : '');
  assert.equal(frame.length, header.size, 'the frame has the size that its header says');
  return { ...message, header, frame } as Seen;
}

/** A bus with everything around it replaced: frames go in, frames come out, time passes when told. */
export class Bench {
  readonly clock = new FakeClock();
  readonly scheduler = new FakeScheduler();
  readonly transport = new FakeTransport();
  readonly store: FakeStore;
  readonly events: LaneEvent[] = [];
  readonly runtime: BusRuntime;
  readonly maxMessageSize: number;
  #connection: FakeConnection | undefined;
  #token = 0x8000;
  #nextReference = 1;

  constructor(options: BenchOptions = {}) {
    this.store = options.store ?? new FakeStore();
    this.maxMessageSize = options.maxMessageSize ?? 64;
    this.runtime = new BusRuntime({
      bus: 'bench',
      domid: 1,
      maxMessageSize: this.maxMessageSize,
      dialect: dialectD5,
      transport: this.transport,
      store: this.store,
      clock: this.clock,
      scheduler: this.scheduler,
      random: new CountingRandom(),
      emit: (event) => this.events.push(event),
    });
    this.runtime.listen();
  }

  get guest(): FakeConnection {
    assert.ok(this.#connection !== undefined, 'a guest is connected');
    return this.#connection;
  }

  attach(backend: Backend, attachment = 'disk', deviceNumber?: number): number {
    const spec = {
      bus: 'bench',
      attachment,
      ...(deviceNumber === undefined ? {} : { deviceNumber }),
      backend: { type: 'rng', source: attachment } as const,
    };
    const bind = (host: unknown): void => void Object.assign(backend, { host });
    const attached = this.runtime.attach(spec, backend, bind).deviceNumber;
    this.scheduler.run();
    return attached;
  }

  /** Fails when the detach waits for something that only time or the backend brings. */
  async detach(attachment: string): Promise<void> {
    const gone = this.runtime.detach(attachment);
    this.scheduler.run();
    await gone;
    this.scheduler.run();
  }

  connect(options: { maxMessageSize?: number; capacity?: number; claim?: ResumeClaim } = {}): FakeConnection {
    const { maxMessageSize = this.maxMessageSize, capacity, claim = noClaim } = options;
    this.#connection = this.transport.connect(claim, maxMessageSize, capacity);
    this.scheduler.run();
    return this.#connection;
  }

  leave(): void {
    this.transport.leave('the guest left');
    this.scheduler.run();
  }

  /** Gives bytes to the service as the guest's next frame. */
  postRaw(...frames: Uint8Array[]): void {
    this.guest.port.incoming.push(...frames);
    this.guest.doorbell();
    this.scheduler.run();
  }

  encode(message: CanonicalMessage, device = 0, token = 0): Uint8Array {
    const frame = new Uint8Array(dialectD5.encodedLength(message));
    dialectD5.encode(message, device, token, frame);
    return frame;
  }

  post(message: CanonicalMessage, device = 0, token = 0): void {
    this.postRaw(this.encode(message, device, token));
  }

  /** Sends a request without looking for the answer. @returns its token */
  request<N extends RequestName>(name: N, body: RequestBody<N>, device = 0): number {
    this.#token = (this.#token + 1) & 0xffff;
    this.post({ kind: 'request', name, body } as unknown as CanonicalMessage, device, this.#token);
    return this.#token;
  }

  /** All that the guest has not looked at yet. */
  take(): Seen[] {
    return this.guest.port.visible.splice(0).map(parseFrame);
  }

  takeEvents(name: string): Seen[] {
    return this.take().filter((message) => message.kind === 'event' && message.name === name);
  }

  /** Sends a request and expects exactly its response, nothing else. */
  ask<N extends RequestName>(name: N, body: RequestBody<N>, device = 0): ResponseBody<N> {
    const before = this.take();
    assert.deepEqual(before, [], 'nothing waits to be read');
    const token = this.request(name, body, device);
    const seen = this.take();
    assert.deepEqual(
      seen.map((message) => [message.kind, message.name, message.header.token, message.header.deviceNumber]),
      [['response', name, token, busNames.has(name) ? 0 : device]],
    );
    return seen[0]!.body as ResponseBody<N>;
  }

  /** Sends a request and expects a FAILURE. @returns its errno */
  askFailing<N extends RequestName>(name: N, body: RequestBody<N>, device = 0): number {
    const token = this.request(name, body, device);
    const seen = this.take();
    assert.deepEqual(
      seen.map((m) => [m.kind, m.name, (m.body as { token?: number }).token, (m.body as { device?: number }).device]),
      [['event', 'FAILURE', token, device]],
    );
    return (seen[0]!.body as { errno: number }).errno;
  }

  setStatus(value: number, device = 0): number {
    return this.ask('SET_DEVICE_STATUS', { status: value }, device).status;
  }

  getStatus(device = 0): number {
    return this.ask('GET_DEVICE_STATUS', {}, device).status;
  }

  /** From reset to FEATURES_OK with the bits that are needed and these. */
  negotiate(device = 0, extra: readonly number[] = []): void {
    this.setStatus(ready, device);
    const blocks = FeatureSet.of(...needed, ...extra).toBlocks(2);
    this.ask('SET_DRIVER_FEATURES', { blockIndex: 0, blockCount: 2, blocks }, device);
    assert.equal(this.setStatus(featuresOk, device), featuresOk);
  }

  /** A region of zeroes. @returns its memory */
  addRegion(area: number, length = 65536, readOnly = false): FakeMemory {
    const reference = this.#nextReference++;
    const memory = new FakeMemory(new Uint8Array(length));
    this.guest.resources.memories.set(reference, memory);
    const flags = readOnly ? 1 : 0;
    const body = { peer: 0, area, flags, reference, domain: 0, offset: 0n, length: BigInt(length) };
    assert.equal(this.ask('REGION_ADD', body).errno, 0);
    return memory;
  }

  removeRegion(area: number): number {
    return this.ask('REGION_DEL', { peer: 0, area, reserved: 0 }).errno;
  }

  /** Configures and enables a queue whose rings lie at the start of an area. */
  enableQueue(area: number, memory: FakeMemory, options: QueueOptions = {}): RingDriverQueue {
    const { index = 0, size = 8, device = 0, extra = [] } = options;
    const setup = ringSetup(area, memory, size, extra);
    const { descAddr, driverAddr, deviceAddr } = setup;
    const flags = setVqueueFlags.enable;
    this.ask('SET_VQUEUE', { index, flags, size, reserved: 0, descAddr, driverAddr, deviceAddr }, device);
    assert.equal(this.ask('GET_VQUEUE', { index }, device).flags, 1, 'the queue is enabled');
    return openDriverQueue(setup);
  }

  /** From reset to DRIVER_OK with one queue in area 1. */
  start(options: QueueOptions = {}): { queue: RingDriverQueue; memory: FakeMemory } {
    const { device = 0, extra = [], area = 1 } = options;
    const memory = this.addRegion(area);
    this.negotiate(device, extra);
    const queue = this.enableQueue(area, memory, options);
    assert.equal(this.setStatus(driverOk, device), driverOk);
    return { queue, memory };
  }

  available(index = 0, device = 0): void {
    this.post({ kind: 'event', name: 'EVENT_AVAIL', body: { index, next: 0 } }, device);
  }
}

export interface QueueOptions {
  readonly index?: number;
  readonly size?: number;
  readonly device?: number;
  readonly area?: number;
  /** Feature bits beside those that are needed. */
  readonly extra?: readonly number[];
}

function ringSetup(area: number, memory: FakeMemory, size: number, extra: readonly number[]) {
  const features = FeatureSet.of(...needed, ...extra);
  const bytes = ringBytes(ringLayout(features), size);
  const driverAt = bytes.desc;
  const deviceAt = (driverAt + bytes.driver + 3) & ~3;
  const at = (offset: number): bigint => (BigInt(area) << 48n) | BigInt(offset);
  return {
    size,
    features,
    descAddr: at(0),
    driverAddr: at(driverAt),
    deviceAddr: at(deviceAt),
    memory: {
      desc: memory.bytes.subarray(0, bytes.desc),
      driver: memory.bytes.subarray(driverAt, driverAt + bytes.driver),
      device: memory.bytes.subarray(deviceAt, deviceAt + bytes.device),
    },
  };
}

/** A buffer in the second half of an area, away from the rings. */
export const buffer = (area: number, slot: number, length = 512): { hi: number; lo: number; length: number } => ({
  hi: area << 16,
  lo: 32768 + slot * 512,
  length,
});
