import { Channel, type ChannelHandler, newCounters } from '../../src/device/channel.ts';
import { FlightRecorder } from '../../src/device/flight-recorder.ts';
import { RingPort } from '../../src/device/ring-port.ts';
import { systemClock } from '../../src/kit/clock.ts';
import { limits } from '../../src/kit/limits.ts';
import { type Scheduler, systemScheduler } from '../../src/kit/scheduler.ts';
import { drainDoorbell, ringDoorbell } from '../../src/libc/doorbell.ts';
import { Mapping } from '../../src/libc/mapping.ts';
import { pollNative } from '../../src/libc/native.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { dialectD5 } from '../../src/virtio-msg/dialect.ts';
import { RingConsumer, RingProducer } from '../../src/virtio-msg/ring.ts';

/**
 * A relay between a driver and a device made of the bridge's channels: every message is checked, decoded and encoded
 * again under a token of the other bus. WAIT RING-BYTES SLOT MESSAGE-BYTES; memory and doorbell of the driver's link are
 * descriptors 3 and 4, of the device's 5 and 6. WAIT is `loop`, the event loop, as a lane of the service waits, or `poll`,
 * a blocking poll(2), as a worker could that does nothing else.
 */
const [way, ...numbers] = process.argv.slice(2);
const [ringBytes = 0, slot = 0] = numbers.map(Number);
const doorbellReads = 64;
const pollReadable = 1;
const bells: { readonly fd: number; readonly onReady: () => void }[] = [];

/** Work of this turn and of later ones, where no event loop runs: there is no other work to let through first. */
const planned: (() => void)[] = [];
const ownScheduler: Scheduler = { soon: (work) => void planned.push(work), later: (work) => void planned.push(work) };

function runPlanned(): void {
  for (let i = 0; i < planned.length; i++) planned[i]!();
  planned.length = 0;
}

function openChannel(memoryFd: number, bell: number, isDevice: boolean, handler: ChannelHandler): Channel {
  const { bytes } = Mapping.map(memoryFd, 0, 2 * ringBytes, { writable: true });
  const first = bytes.subarray(0, ringBytes);
  const second = bytes.subarray(ringBytes);
  const port = new RingPort(
    slot,
    new RingConsumer(isDevice ? second : first, slot, true),
    new RingProducer(isDevice ? first : second, slot, true),
    () => void ringDoorbell(bell),
  );
  const recorder = new FlightRecorder(systemClock, limits.flightRecords);
  const scheduler = way === 'poll' ? ownScheduler : systemScheduler;
  const channel = new Channel(port, dialectD5, slot, handler, scheduler, newCounters(), recorder);
  const onReady = (): void => {
    if (drainDoorbell(bell, way === 'poll' ? 1 : doorbellReads) === 'closed') process.exit(0);
    channel.onDoorbell();
  };
  bells.push({ fd: bell, onReady });
  return channel;
}

const tokens = new Uint16Array(0x10000);
let lastToken = 0;
const unexpected = (): never => {
  throw new Error('not a message that this relay expects');
};

const driver: Channel = openChannel(3, 4, false, {
  transportMessage: (message, header) => {
    lastToken = (lastToken + 1) & 0xffff;
    tokens[lastToken] = header.token;
    device.send(message, header.deviceNumber, lastToken);
  },
  busMessage: unexpected,
  available: unexpected,
  broken: unexpected,
});
const device: Channel = openChannel(5, 6, true, {
  transportMessage: (message, header) => driver.send(message, header.deviceNumber, tokens[header.token]!),
  busMessage: unexpected,
  available: unexpected,
  broken: unexpected,
});
// What came before this program listened rang no doorbell.
driver.onDoorbell();
device.onDoorbell();

function waitInPoll(): never {
  const words = new Uint32Array(bells.flatMap(({ fd }) => [fd, pollReadable]));
  for (;;) {
    runPlanned();
    pollNative(words, bells.length, -1);
    for (const [i, { onReady }] of bells.entries()) if (words[2 * i + 1]! >>> 16 !== 0) onReady();
  }
}

if (way === 'poll') waitInPoll();
const poller = new LoopPoller();
for (const { fd, onReady } of bells) poller.watch(fd, onReady);
