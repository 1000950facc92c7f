import { Channel, type ChannelHandler, newCounters } from '../../src/device/channel.ts';
import { FlightRecorder } from '../../src/device/flight-recorder.ts';
import { RingPort } from '../../src/device/ring-port.ts';
import { systemClock } from '../../src/kit/clock.ts';
import { limits } from '../../src/kit/limits.ts';
import { systemScheduler } from '../../src/kit/scheduler.ts';
import { drainDoorbell, ringDoorbell } from '../../src/libc/doorbell.ts';
import { Mapping } from '../../src/libc/mapping.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { dialectD5 } from '../../src/virtio-msg/dialect.ts';
import { RingConsumer, RingProducer } from '../../src/virtio-msg/ring.ts';

/**
 * A relay between a driver and a device made of the bridge's channels: every message is checked, decoded and encoded
 * again under a token of the other bus. RING-BYTES SLOT MESSAGE-BYTES; memory and doorbell of the driver's link are
 * descriptors 3 and 4, of the device's 5 and 6.
 */
const [ringBytes = 0, slot = 0] = process.argv.slice(2).map(Number);
const doorbellReads = 64;
const poller = new LoopPoller();

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
  const channel = new Channel(port, dialectD5, slot, handler, systemScheduler, newCounters(), recorder);
  poller.watch(bell, () => {
    if (drainDoorbell(bell, doorbellReads) === 'closed') process.exit(0);
    channel.onDoorbell();
  });
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
