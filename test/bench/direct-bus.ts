import type { BusAccess } from '../../src/guest/access.ts';
import { GuestBus } from '../../src/guest/bus.ts';
import { LoopbackAccess } from '../../src/guest/loopback-access.ts';
import type { GuestTransport, TransportHandlers, TransportTerms } from '../../src/guest/transport.ts';
import { systemClock } from '../../src/kit/clock.ts';
import { Scope } from '../../src/kit/scope.ts';
import { createEventfd } from '../../src/libc/eventfd.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { connectUnix } from '../../src/libc/unix-socket.ts';
import { type DeviceRegion, type QueueStart, VhostDevice } from '../../src/vhost-user/device.ts';
import { usedProtocolFeatures } from '../../src/vhost-user/features.ts';
import { FrontEnd } from '../../src/vhost-user/front-end.ts';
import { openDevice } from '../../src/vhost-user/negotiation.ts';
import { openMessenger, SocketChannel } from '../../src/vhost-user/socket.ts';
import { blkConfig } from '../../src/virtio/blk.ts';
import { deviceId } from '../../src/virtio/device-ids.ts';
import { FeatureSet, feature } from '../../src/virtio/features.ts';
import { status } from '../../src/virtio/status.ts';
import { type BusRequest, queueNotifyProgram } from '../../src/virtio-msg/bus-messages.ts';
import { type CanonicalMessage, dialectD5 } from '../../src/virtio-msg/dialect.ts';
import { messageHeader, typeBus } from '../../src/virtio-msg/header.ts';
import { type TransportRequest, vqueueEnabled } from '../../src/virtio-msg/transport-messages.ts';
import { type Decoded, decode } from '../../src/wire/layout.ts';

const maxMessageSize = 264;
const blkQueueMaxSize = 256;

type Request = TransportRequest | BusRequest;
type Answer = Record<string, unknown>;

/** What a driver has said of a queue. */
interface Queue {
  size: number;
  desc: bigint;
  driver: bigint;
  device: bigint;
  kick: number;
  call: number;
}

/**
 * A bus with one device, which is a vhost-user back-end that this very process talks to: the same driver without a bridge
 * between. The few messages that set a device up are answered here; notifications are eventfds that the back-end has.
 */
class DirectTransport implements GuestTransport {
  readonly terms: TransportTerms = {
    maxMessageSize,
    revision: 1,
    transportFeatures: 0,
    epoch: 1n,
    token: new Uint8Array(16),
    resumed: false,
    domid: 0,
    queueNotify: true,
  };
  readonly counters = { doorbellsIn: 0, doorbellsOut: 0 };
  readonly #device: VhostDevice;
  readonly #scope: Scope;
  readonly #fds: number[] = [];
  readonly #regions: DeviceRegion[] = [];
  readonly #queues = new Map<number, Queue>();
  readonly #error: number;
  #features = FeatureSet.empty;
  #status = 0;
  #handlers: TransportHandlers | undefined;

  constructor(device: VhostDevice, scope: Scope) {
    this.#device = device;
    this.#scope = scope;
    this.#error = scope.own(createEventfd()).number;
  }

  start(handlers: TransportHandlers): void {
    this.#handlers = handlers;
  }

  sendDescriptors(fds: readonly number[]): number {
    return this.#fds.push(...fds) - fds.length;
  }

  takeDescriptor(): undefined {
    return undefined;
  }

  sendFrame(frame: Uint8Array): 'sent' {
    const header = decode(messageHeader, frame, 0, messageHeader.size) as Decoded<typeof messageHeader>;
    const message = dialectD5.decode(frame, header) as Request;
    void this.#answer(message).then(
      (body) => {
        const out = new Uint8Array(maxMessageSize);
        const response = { kind: 'response', name: message.name, body } as unknown as CanonicalMessage;
        const size = dialectD5.encode(response, header.type & typeBus ? 0 : header.deviceNumber, header.token, out);
        this.#handlers?.onFrame(out.subarray(0, size));
      },
      (error: Error) => this.#handlers?.onLost(error),
    );
    return 'sent';
  }

  async #answer(message: Request): Promise<Answer> {
    const { description } = this.#device;
    const offered = description.features.with(feature.ACCESS_PLATFORM);
    switch (message.name) {
      case 'GET_DEVICE_INFO': {
        const counts = { featureBlockCount: 2, configSize: blkConfig.size, maxVirtqueues: description.queues ?? 1 };
        const names = { deviceId: deviceId.blk, vendorId: 0, uuid: new Uint8Array(16) };
        return { ...names, ...counts, adminStart: 0, adminCount: 0 };
      }
      case 'GET_DEVICE_FEATURES':
        return { blockIndex: 0, blockCount: 2, blocks: offered.toBlocks(2) };
      case 'SET_DRIVER_FEATURES':
        this.#features = FeatureSet.fromBlocks(message.body.blocks).minus(FeatureSet.of(feature.ACCESS_PLATFORM));
        return {};
      case 'GET_CONFIG': {
        const { offset, length } = message.body;
        return { generation: 0, offset, length, data: description.config!.slice(offset, offset + length) };
      }
      case 'GET_DEVICE_STATUS':
        return { status: this.#status };
      case 'SET_DEVICE_STATUS':
        return { status: await this.#setStatus(message.body.status) };
      case 'REGION_ADD':
        return this.#addRegion(message.body);
      case 'GET_VQUEUE':
        return this.#describeQueue(message.body.index);
      case 'SET_VQUEUE': {
        const { index, size, descAddr: desc, driverAddr: driver, deviceAddr: device } = message.body;
        this.#queues.set(index, { size, desc, driver, device, kick: -1, call: -1 });
        return {};
      }
      case 'QUEUE_NOTIFY': {
        const { flags, queue, kick, call } = message.body;
        // Only a question.
        if (flags === queueNotifyProgram) return { errno: 0 };
        Object.assign(this.#queues.get(queue)!, { kick: this.#fds[kick], call: this.#fds[call] });
        return { errno: 0 };
      }
      default:
        throw new Error(`${message.name} is not expected here`);
    }
  }

  #addRegion({ area, length, reference }: Extract<Request, { name: 'REGION_ADD' }>['body']): Answer {
    const address = BigInt(area) << 48n;
    const region = { guestAddress: address, userAddress: address, size: length, mmapOffset: 0n };
    this.#regions.push({ ...region, fd: this.#fds[reference]! });
    return { errno: 0 };
  }

  #describeQueue(index: number): Answer {
    const queue = this.#queues.get(index);
    const addresses = { descAddr: queue?.desc ?? 0n, driverAddr: queue?.driver ?? 0n, deviceAddr: queue?.device ?? 0n };
    const flags = queue === undefined ? 0 : vqueueEnabled;
    return { index, maxSize: blkQueueMaxSize, size: queue?.size ?? 0, flags, ...addresses };
  }

  async #setStatus(value: number): Promise<number> {
    const added = value & ~this.#status;
    if (value === 0) await this.#device.reset();
    if (added & status.FEATURES_OK) await this.#device.agree(this.#features);
    if (added & status.DRIVER_OK) {
      await this.#device.setMemory(this.#regions);
      const queues = [...this.#queues].map(
        ([index, queue]): QueueStart => ({ index, base: 0, error: this.#error, ...queue }),
      );
      await this.#device.startQueues(queues);
    }
    this.#status = value;
    return value;
  }

  close(): void {
    this.#scope.close();
  }
}

async function connectDevice(socket: string, poller: LoopPoller): Promise<GuestTransport> {
  const scope = new Scope();
  const fd = connectUnix(socket, 'stream');
  if (typeof fd === 'string') throw new Error(`${socket}: ${fd}`);
  const channel = new SocketChannel(fd, openMessenger(), poller);
  const lost = (error: Error): never => {
    throw error;
  };
  const ignored = (): void => {};
  const events = { closed: lost, configChanged: ignored, queueCalled: ignored, queueFailed: ignored };
  const frontEnd = scope.own(new FrontEnd(channel, systemClock, events));
  const wanted = { configBytes: blkConfig.size, queues: 1, protocolFeatures: usedProtocolFeatures };
  return new DirectTransport(new VhostDevice(frontEnd, await openDevice(frontEnd, wanted)), scope);
}

/** Opens a vhost-user block device as device 0 of a bus. */
export function openDirectBus(socket: string, memoryBytes: number): Promise<GuestBus> {
  const poller = new LoopPoller();
  const loopback = new LoopbackAccess(() => connectDevice(socket, poller), poller);
  const access: BusAccess = {
    connect: loopback.connect,
    grants: undefined,
    makeRegion: (bytes, peer) => loopback.makeRegion(bytes, peer),
    makeQueueSignal: () => loopback.makeQueueSignal(true),
    peerOf: () => undefined,
    close() {},
  };
  return GuestBus.open(access, { memoryBytes });
}
