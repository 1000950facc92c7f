import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { assert } from '../../src/kit/assert.ts';
import { systemClock } from '../../src/kit/clock.ts';
import { EpollPoller } from '../../src/libc/epoll.ts';
import { createEventfd, drainEventfd, signalEventfd } from '../../src/libc/eventfd.ts';
import { Fd } from '../../src/libc/fd.ts';
import { Mapping } from '../../src/libc/mapping.ts';
import { createMemfd } from '../../src/libc/memfd.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { connectUnix } from '../../src/libc/unix-socket.ts';
import { VhostDevice } from '../../src/vhost-user/device.ts';
import { protocolFeature } from '../../src/vhost-user/features.ts';
import { FrontEnd } from '../../src/vhost-user/front-end.ts';
import { openDevice } from '../../src/vhost-user/negotiation.ts';
import { openMessenger, SocketChannel } from '../../src/vhost-user/socket.ts';
import { blkRequestHead, blkRequestType, blkStatus, sectorBytes } from '../../src/virtio/blk.ts';
import { FeatureSet, feature } from '../../src/virtio/features.ts';
import { ringBytes } from '../../src/virtio/geometry.ts';
import { QueueFault } from '../../src/virtio/queue.ts';
import { openDriverQueue } from '../../src/virtio/rings.ts';
import { encode } from '../../src/wire/layout.ts';

/**
 * A driver of a vhost-user block device that sleeps in epoll_wait until its requests are done: SOCKET. It signals
 * descriptor 3 and waits for 4, the device is given 5 to wait for and 6 to signal: somebody else passes one on to
 * the other. `run BYTES DEPTH MS` reads at random; the answer is `COUNT SECONDS`.
 */
const [socket = ''] = process.argv.slice(2);
const [kick, call, deviceKick, deviceCall] = [3, 4, 5, 6];
const queueSize = 128;
const depthMax = 32;
const transferMax = 4096;
const slotBytes = 2 * transferMax;
const dataOffset = 64 * 1024;
const memoryBytes = dataOffset + depthMax * slotBytes;
const guestAddress = 0x1_0000_0000;
const sectors = (32 * 1024 * 1024) / sectorBytes;

const features = FeatureSet.of(feature.VERSION_1, feature.EVENT_IDX);
const memfd = createMemfd('bench-joined', memoryBytes);
const { bytes } = Mapping.map(memfd.number, 0, memoryBytes, { writable: true });
const sizes = ringBytes('split', queueSize);
const offsets = { desc: 0, driver: 16 * 1024, device: 32 * 1024 };
const part = (name: keyof typeof offsets) => bytes.subarray(offsets[name], offsets[name] + sizes[name]);
const at = (name: keyof typeof offsets) => BigInt(guestAddress + offsets[name]);
const rings = openDriverQueue({
  size: queueSize,
  features,
  memory: { desc: part('desc'), driver: part('driver'), device: part('device') },
  descAddr: at('desc'),
  driverAddr: at('driver'),
  deviceAddr: at('device'),
});
const range = (offset: number, length: number) => ({
  hi: Math.floor((guestAddress + offset) / 2 ** 32),
  lo: (guestAddress + offset) % 2 ** 32,
  length,
});

async function connect(): Promise<void> {
  const poller = new LoopPoller();
  const fd = connectUnix(socket, 'stream');
  assert(fd instanceof Fd, `${socket} can be connected to`);
  const channel = new SocketChannel(fd, openMessenger(), poller);
  const ignore = (): void => {};
  const lost = ({ message }: { message: string }): never => {
    throw new Error(message);
  };
  const events = { configChanged: ignore, queueCalled: ignore, queueFailed: ignore, closed: lost };
  const frontEnd = new FrontEnd(channel, systemClock, events);
  const protocolFeatures = FeatureSet.of(
    protocolFeature.MQ,
    protocolFeature.REPLY_ACK,
    protocolFeature.CONFIG,
    protocolFeature.CONFIGURE_MEM_SLOTS,
  );
  const device = new VhostDevice(
    frontEnd,
    await openDevice(frontEnd, { configBytes: 60, queues: 1, protocolFeatures }),
  );
  await device.agree(features);
  const address = BigInt(guestAddress);
  const region = { guestAddress: address, userAddress: address, size: BigInt(memoryBytes), mmapOffset: 0n };
  await device.setMemory([{ ...region, fd: memfd.number }]);
  const addresses = { desc: at('desc'), driver: at('driver'), device: at('device') };
  const error = createEventfd().number;
  const fds = { kick: deviceKick, call: deviceCall, error };
  await device.startQueues([{ index: 0, size: queueSize, base: 0, ...addresses, ...fds }]);
}

/** What c/blk.c draws sectors with, in 32 bits. */
let random = 2_463_534_242;
function nextSector(length: number): number {
  random ^= random << 13;
  random ^= random >>> 17;
  random ^= random << 5;
  const each = length / sectorBytes;
  return ((random >>> 0) % Math.floor(sectors / each)) * each;
}

const slotOf = new Uint32Array(queueSize);

function submit(slot: number, length: number): void {
  const offset = dataOffset + slot * slotBytes;
  encode(blkRequestHead, { type: blkRequestType.IN, reserved: 0, sector: BigInt(nextSector(length)) }, bytes, offset);
  bytes[offset + 16] = 0xff;
  const token = rings.add([range(offset, 16)], [range(offset + transferMax, length), range(offset + 16, 1)]);
  assert(token !== undefined, 'the ring has room');
  slotOf[token] = slot;
}

const poller = new EpollPoller(1);
poller.watchEdges(call, () => {});

/** Takes what is done, `next` for each. @returns how many; none when it would have to wait */
function take(next: (slot: number) => void): number {
  for (let count = 0; ; count++) {
    const used = rings.next();
    if (used instanceof QueueFault) throw new Error(used.detail);
    if (used === undefined) return count;
    const slot = slotOf[used.token]!;
    assert(bytes[dataOffset + slot * slotBytes + 16] === blkStatus.OK, 'the read succeeds');
    next(slot);
  }
}

function run(length: number, depth: number, ms: number): string {
  const start = performance.now();
  let [done, open] = [0, depth];
  for (let slot = 0; slot < depth; slot++) submit(slot, length);
  while (open > 0) {
    if (rings.kick()) signalEventfd(kick);
    const isOver = performance.now() > start + ms;
    const count = take((slot) => {
      if (isOver) open--;
      else submit(slot, length);
    });
    done += count;
    if (count === 0 && !rings.enableInterrupts()) poller.dispatch(-1);
  }
  drainEventfd(call);
  return `${done} ${(performance.now() - start) / 1000}`;
}

await connect();
console.log('ready');
const lines = createInterface({ input: process.stdin });
lines.on('line', (line) => {
  const [length = 0, depth = 0, ms = 0] = line.split(' ').slice(1).map(Number);
  console.log(run(length, depth, ms));
});
await once(lines, 'close');
process.exit(0);
