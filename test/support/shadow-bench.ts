import assert from 'node:assert/strict';
import { RemoteBus } from '../../src/bridge/remote/remote-bus.ts';
import { openShadow } from '../../src/bridge/shadow/open-shadow.ts';
import type { DeviceLink } from '../../src/device/endpoint.ts';
import { DeviceHost } from '../../src/device/host.ts';
import { type DeviceModel, deviceModel } from '../../src/device/model.ts';
import { SharedMemory } from '../../src/device/shared-memory.ts';
import { errno } from '../../src/kit/errno.ts';
import { systemScheduler } from '../../src/kit/scheduler.ts';
import type { Backend, BackendHost } from '../../src/ports/backend.ts';
import { type AddressSpace, TranslateFault } from '../../src/ports/memory.ts';
import { FeatureSet } from '../../src/virtio/features.ts';
import type { BusRequest } from '../../src/virtio-msg/bus-messages.ts';
import type { CanonicalMessage } from '../../src/virtio-msg/dialect.ts';
import { dialectD5 } from '../../src/virtio-msg/dialect.ts';
import type { MessageHeader } from '../../src/virtio-msg/header.ts';
import type { TransportRequest } from '../../src/virtio-msg/transport-messages.ts';
import { FakeBackend, type FakeBackendOptions } from './bridge-backend.ts';
import { FakeClock, FakeResources } from './bridge-fakes.ts';

/** Number of the one device of the serving side. */
export const served = 3;
const maxMessageSize = 264;

/** A backend of the serving side that keeps receive buffers, and gives them back when its queue stops. */
class ServedBackend extends FakeBackend {
  cancel(queue: number): void {
    for (let i = this.held.length - 1; i >= 0; i--) {
      const request = this.held[i]!;
      if (request.queue !== queue) continue;
      this.held.splice(i, 1);
      request.release();
    }
  }
}

export interface ShadowBenchOptions extends FakeBackendOptions {
  /** Ring features that the serving side does not offer. */
  readonly without?: readonly number[];
}

/** A serving side that is made of the real device, reached without rings; it obeys or not as the test says. */
export class ShadowBench {
  readonly clock = new FakeClock();
  readonly device: ServedBackend;
  readonly serving: DeviceHost;
  readonly bus: RemoteBus;
  /** What the bridge's own side of the device was told. */
  readonly failures: string[] = [];
  readonly changes: { offset: number; data: Uint8Array }[] = [];
  readonly gone: string[] = [];
  /** Names of the messages that the serving side got. */
  readonly seen: string[] = [];
  /** Requests of these names get no answer. */
  readonly deaf = new Set<string>();
  /** Changes what the serving side says. */
  tamper: (message: CanonicalMessage) => CanonicalMessage | undefined = (message) => message;
  /** Memory shared with the serving side; undefined before and after. */
  memory: Uint8Array<ArrayBuffer> | undefined;
  boundTo = 0;
  memoryClosed = false;
  backend!: Backend;

  constructor(options: ShadowBenchOptions = {}) {
    this.device = new ServedBackend(options);
    const full = deviceModel(this.device.description, maxMessageSize);
    const model: DeviceModel = { ...full, offered: full.offered.minus(FeatureSet.of(...(options.without ?? []))) };
    this.serving = new DeviceHost({
      model,
      backend: this.device,
      scheduler: systemScheduler,
      clock: this.clock,
      recovery: undefined,
      onStatus: () => {},
    });
    this.device.host = this.serving;
    this.serving.connect(this.#link(), false);
    const peer = {
      maxMessageSize,
      byPeer: true,
      lengthOf: (message: CanonicalMessage) => dialectD5.encodedLength(message),
      send: (message: CanonicalMessage, _device: number, token: number) => {
        queueMicrotask(() => this.#receive(message, token));
      },
      giveDescriptor: () => 'EBUSY' as const,
      bounce: (bytes: number) => this.#bounce(bytes),
    };
    this.bus = new RemoteBus(peer, this.clock, { onDevices: () => {} });
    const added = { kind: 'event', name: 'EVENT_DEVICE', body: { device: served, state: 1 } } as const;
    this.bus.onMessage(added, this.#header(0, 0));
  }

  static async open(options: ShadowBenchOptions = {}): Promise<ShadowBench> {
    const bench = new ShadowBench(options);
    bench.backend = await bench.openBackend();
    return bench;
  }

  openBackend(): Promise<Backend> {
    const host: BackendHost = {
      failed: (reason) => this.failures.push(reason),
      configChanged: (offset, data) => this.changes.push({ offset, data }),
      gone: (reason) => this.gone.push(reason),
    };
    return openShadow(this.bus, served, { reason: 'a test', host, clock: this.clock, scheduler: systemScheduler });
  }

  /** The driver is ready, with these device bits; waits until the serving side is set up. */
  async start(bits: readonly number[] = []): Promise<void> {
    this.backend.activate((bit) => bits.includes(bit));
    await this.settle();
  }

  /** Lets everything happen that needs no time. */
  async settle(): Promise<void> {
    for (let i = 0; i < 20; i++) {
      await new Promise<void>((resolve) => {
        setImmediate(resolve);
      });
    }
  }

  async pass(ms: number): Promise<void> {
    await this.settle();
    this.clock.advance(ms);
    await this.settle();
  }

  /** The serving side says something that it was not asked. */
  say(message: CanonicalMessage, device = served): void {
    this.bus.onMessage(message, this.#header(device, 0));
  }

  #bounce(bytes: number) {
    this.memory = new Uint8Array(bytes);
    this.memoryClosed = false;
    return {
      bytes: this.memory,
      name: () => ({ reference: 7, domain: 0 }),
      named: () => {},
      close: () => {
        assert.ok(!this.memoryClosed, 'the memory is closed once');
        this.memoryClosed = true;
      },
    };
  }

  #header(deviceNumber: number, token: number): MessageHeader {
    return { type: 0, id: 0, deviceNumber, token, size: 0 };
  }

  #receive(message: CanonicalMessage, token: number): void {
    this.seen.push(message.name);
    if (this.deaf.has(message.name)) return;
    if (message.kind === 'event') {
      if (message.name === 'EVENT_AVAIL') this.serving.onAvailable(message.body.index);
      return;
    }
    if (message.kind === 'request' && this.#isBusRequest(message)) {
      const answer = { kind: 'response', name: message.name, body: { errno: this.#onBus(message) } };
      this.#answer(answer as CanonicalMessage, 0, token);
    } else this.serving.onRequest(message as TransportRequest, token);
  }

  #isBusRequest(message: CanonicalMessage): message is BusRequest {
    return ['REGION_ADD', 'REGION_DEL', 'DEVICE_BIND'].includes(message.name);
  }

  #onBus(request: BusRequest): number {
    if (request.name === 'REGION_ADD') {
      assert.deepEqual([request.body.reference, request.body.length], [7, BigInt(this.memory!.length)]);
      return 0;
    }
    if (request.name === 'DEVICE_BIND') {
      this.boundTo = request.body.peer;
      this.serving.disconnect(() => {});
      this.serving.connect(this.#link(), false);
      return 0;
    }
    return errno.ENOENT;
  }

  #answer(message: CanonicalMessage, device: number, token: number): void {
    const said = this.tamper(message);
    if (said !== undefined) this.bus.onMessage(said, this.#header(device, token));
  }

  /** Addresses are area 1 of the memory. */
  #space(): AddressSpace {
    return {
      translate: (hi, lo, length, _access, out) => {
        const { memory } = this;
        if (hi !== 1 << 16 || memory === undefined || lo + length > memory.length || this.memoryClosed) {
          return new TranslateFault(`no memory at ${hi}:${lo}`);
        }
        out.push(memory.subarray(lo, lo + length));
        return { release: () => {} };
      },
    };
  }

  #link(): DeviceLink {
    const later = (run: () => void): void => queueMicrotask(run);
    return {
      space: this.#space(),
      memory: new SharedMemory(new FakeResources(), this.clock, false),
      maxMessageSize,
      outOfBandKicks: false,
      sharedMemory: new Map(),
      respond: (token, response) => later(() => this.#answer(response, served, token)),
      fail: (token, name, error) => {
        const body = { device: served, token, id: 0, type: 0, reserved: 0, errno: errno[error] };
        this.seen.push(`${name} failed`);
        later(() => this.#answer({ kind: 'event', name: 'FAILURE', body }, 0, 0));
      },
      event: (event) => later(() => this.#answer(event, served, 0)),
      used: (index) => later(() => this.#answer({ kind: 'event', name: 'EVENT_USED', body: { index } }, served, 0)),
    };
  }
}
