import { errno } from '../../src/kit/errno.ts';
import { Mapping } from '../../src/libc/mapping.ts';
import { type AddressSpace, TranslateFault } from '../../src/ports/memory.ts';
import { blkConfig, blkRequestHead, blkRequestType, blkStatus } from '../../src/virtio/blk.ts';
import { FeatureSet, feature } from '../../src/virtio/features.ts';
import { type Chain, type DeviceQueue, QueueFault } from '../../src/virtio/queue.ts';
import { openDeviceQueue } from '../../src/virtio/rings.ts';
import { status } from '../../src/virtio/status.ts';
import type { CanonicalMessage } from '../../src/virtio-msg/dialect.ts';
import type { MessageHeader } from '../../src/virtio-msg/header.ts';
import { decode, encode, Malformed } from '../../src/wire/layout.ts';
import type { PeerConnection } from './guest-peer.ts';

// biome-ignore lint/suspicious/noExplicitAny: bodies are of many messages; a test knows which one it handles
export type Body = any;
/** Answers a request in a test's own way: a body, 'silent', or 'usual' for what the device would have said. */
export type Override = (body: Body, header: MessageHeader, connection: PeerConnection) => object | 'silent' | 'usual';

const offeredDefault = FeatureSet.of(
  feature.VERSION_1,
  feature.ACCESS_PLATFORM,
  feature.EVENT_IDX,
  feature.INDIRECT_DESC,
  9,
);

/** A bus with one honest block device (number 3, 64 KiB), each answer of which a test may replace by message name. */
export class PeerBus {
  readonly device = 3;
  readonly disk = new Uint8Array(64 * 1024);
  readonly overrides = new Map<string, Override>();
  /** Names of the messages received, in order. */
  readonly log: string[] = [];
  config = new Uint8Array(60);
  generation = 1;
  offered = offeredDefault;
  status = 0;
  driverFeatures: number[] = [];
  regions = new Map<number, Mapping>();
  queueSetup: Body;
  queue: DeviceQueue | undefined;
  /** False: requests stay in the device. */
  serving = true;
  /** Requests completed. */
  completed = 0;
  /** Changes a completed chain before it is pushed. */
  writtenBytes: (honest: number) => number = (honest) => honest;
  statusByte: number = blkStatus.OK;

  constructor() {
    const fields = Object.fromEntries(Object.keys(blkConfig.fields).map((name) => [name, 0]));
    encode(blkConfig, { ...fields, capacity: 128n, blkSize: 512 } as never, this.config);
  }

  /** A service that lost everything. */
  forget(): void {
    this.closeRegions();
    this.status = 0;
    this.driverFeatures = [];
    this.queue = undefined;
    this.queueSetup = undefined;
  }

  /** As when a connection ends: regions are unmapped; a device that is kept opens its queue again. */
  closeRegions(): void {
    this.queue?.close();
    this.queue = undefined;
    for (const region of this.regions.values()) region.close();
    this.regions.clear();
  }

  /** Sees each EVENT_AVAIL. */
  onAvailable: ((body: { readonly index: number; readonly next: number }) => void) | undefined;

  handle = (message: CanonicalMessage, header: MessageHeader, connection: PeerConnection): void => {
    this.log.push(message.name);
    if (message.kind === 'event') {
      if (message.name === 'EVENT_AVAIL') {
        this.onAvailable?.(message.body);
        this.serve(connection);
      }
      return;
    }
    const answer = this.overrides.get(message.name)?.(message.body, header, connection) ?? 'usual';
    if (answer === 'silent') return;
    connection.respond(header, message.name, answer === 'usual' ? this.usual(message, connection) : answer);
  };

  usual(message: CanonicalMessage, connection: PeerConnection): object {
    const body: Body = message.body;
    switch (message.name) {
      case 'PING':
        return { data: body.data };
      case 'GET_DEVICES':
        return { offset: body.offset, nextOffset: 0, count: 8, bitmap: Uint8Array.of(1 << this.device) };
      case 'REGION_ADD': {
        const fd = connection.fds.get(body.reference)!;
        connection.fds.delete(body.reference);
        this.regions.set(body.area, Mapping.map(fd.number, 0, Number(body.length), { writable: true }));
        fd.close();
        return { errno: 0 };
      }
      case 'REGION_DEL':
        this.regions.get(body.area)?.close();
        this.regions.delete(body.area);
        return { errno: 0 };
      default:
        return this.#usualDevice(message.name, body);
    }
  }

  #usualDevice(name: string, body: Body): object {
    switch (name) {
      case 'GET_DEVICE_INFO':
        return {
          deviceId: 2,
          vendorId: 0x1234,
          uuid: new Uint8Array(16),
          featureBlockCount: 2,
          configSize: this.config.length,
          maxVirtqueues: 1,
          adminStart: 0,
          adminCount: 0,
        };
      case 'GET_DEVICE_FEATURES': {
        const blocks = Array.from({ length: body.blockCount }, (_, i) => this.offered.block(body.blockIndex + i));
        return { blockIndex: body.blockIndex, blockCount: body.blockCount, blocks };
      }
      case 'SET_DRIVER_FEATURES':
        for (const [i, block] of body.blocks.entries()) this.driverFeatures[body.blockIndex + i] = block;
        return {};
      case 'GET_CONFIG': {
        const data = this.config.slice(body.offset, body.offset + body.length);
        return { generation: this.generation, offset: body.offset, length: body.length, data };
      }
      case 'SET_CONFIG':
        this.config.set(body.data, body.offset);
        return { generation: this.generation, offset: body.offset, length: body.length, data: body.data };
      case 'GET_DEVICE_STATUS':
        return { status: this.status };
      case 'SET_DEVICE_STATUS':
        if (body.status === 0) this.reset();
        else this.status = body.status;
        return { status: this.status };
      default:
        return this.#usualQueue(name, body);
    }
  }

  #usualQueue(name: string, body: Body): object {
    if (name === 'SET_VQUEUE') {
      this.queueSetup = body;
      return {};
    }
    const none = { size: 0, descAddr: 0n, driverAddr: 0n, deviceAddr: 0n };
    if (name === 'GET_VQUEUE') {
      const { size, descAddr, driverAddr, deviceAddr } = this.queueSetup ?? none;
      const flags = this.queueSetup === undefined ? 0 : 1;
      return { index: body.index, maxSize: 64, size, flags, descAddr, driverAddr, deviceAddr };
    }
    // No program works on its queues.
    if (name === 'QUEUE_NOTIFY') return { errno: errno.EPERM };
    throw new Error(`the peer has no answer to ${name}`);
  }

  /** As a device does that is told to. */
  reset(): void {
    this.status = 0;
    this.driverFeatures = [];
    this.queue?.close();
    this.queue = undefined;
    this.queueSetup = undefined;
  }

  readonly #space: AddressSpace = {
    translate: (hi, lo, length, _access, out) => {
      const region = this.regions.get(hi >>> 16);
      if (region === undefined || lo + length > region.length) return new TranslateFault('no such memory');
      out.push(region.bytes.subarray(lo, lo + length));
      return { release: () => {} };
    },
  };

  /** Completes what is available, as a disk does. */
  serve(connection: PeerConnection): void {
    if ((this.status & status.DRIVER_OK) === 0 || !this.serving) return;
    this.queue ??= this.#openQueue();
    const chain = this.queue.pop();
    if (chain instanceof QueueFault) throw new Error(chain.detail);
    if (chain === undefined) {
      this.queue.publish();
      if (this.queue.needsInterrupt()) {
        connection.send({ kind: 'event', name: 'EVENT_USED', body: { index: 0 } }, this.device);
      }
      if (this.queue.enableKicks()) this.serve(connection);
      return;
    }
    this.queue.push(chain, this.writtenBytes(this.#execute(chain)));
    this.completed += 1;
    this.serve(connection);
  }

  #openQueue(): DeviceQueue {
    const features = FeatureSet.fromBlocks(this.driverFeatures);
    const queue = openDeviceQueue({ ...this.queueSetup, features }, this.#space);
    if (queue instanceof QueueFault) throw new Error(queue.detail);
    return queue;
  }

  #execute(chain: Chain): number {
    const head = decode(blkRequestHead, chain.readable[0]!, 0, 16);
    if (head instanceof Malformed) throw new Error(head.reason);
    const at = Number(head.sector) * 512;
    const last = chain.writable[chain.writable.length - 1]!;
    if (head.type === blkRequestType.IN) chain.writable[0]?.set(this.disk.subarray(at, at + chain.writable[0].length));
    if (head.type === blkRequestType.OUT) this.disk.set(chain.readable[1]!, at);
    last[0] = this.statusByte;
    return chain.writableBytes;
  }
}
