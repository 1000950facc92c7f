import assert from 'node:assert/strict';
import { test } from 'node:test';
import { RemoteBus } from '../../src/bridge/remote/remote-bus.ts';
import { RemoteDevice } from '../../src/bridge/remote/remote-device.ts';
import type { DeviceLink } from '../../src/device/endpoint.ts';
import { SharedMemory } from '../../src/device/shared-memory.ts';
import { limits } from '../../src/kit/limits.ts';
import { type CanonicalMessage, dialectD5, headerFault } from '../../src/virtio-msg/dialect.ts';
import { headerBytes, messageHeader } from '../../src/virtio-msg/header.ts';
import type { TransportRequest, TransportResponse } from '../../src/virtio-msg/transport-messages.ts';
import { type Decoded, decode, encode, Malformed } from '../../src/wire/layout.ts';
import { FakeClock, FakeResources } from '../support/bridge-fakes.ts';
import { SeededRandom } from '../support/random.ts';

const rounds = 40;
const stepsPerRound = 2500;
const maxMessageSize = 64;

interface Sent {
  readonly message: CanonicalMessage;
  readonly device: number;
  readonly token: number;
}

/** A driver's link that counts what it is told about each of its requests. */
class DriverEnd implements DeviceLink {
  readonly memory: SharedMemory;
  readonly space = { translate: () => assert.fail('a relayed device translates nothing') };
  readonly maxMessageSize = maxMessageSize;
  readonly outOfBandKicks = true;
  readonly sharedMemory = new Map<number, bigint>();
  readonly open = new Map<number, TransportRequest['name']>();
  readonly ended = { answered: 0, failed: 0, events: 0, used: 0 };

  constructor(memory: SharedMemory) {
    this.memory = memory;
  }

  respond(token: number, response: TransportResponse): void {
    assert.equal(this.open.get(token), response.name, 'an answer to an open request');
    assert.ok(dialectD5.encodedLength(response) <= maxMessageSize, 'an answer that the driver can take');
    this.open.delete(token);
    this.ended.answered += 1;
  }

  fail(token: number, name: TransportRequest['name']): void {
    assert.equal(this.open.get(token), name, 'a failure of an open request');
    this.open.delete(token);
    this.ended.failed += 1;
  }

  event(event: CanonicalMessage): void {
    assert.ok(dialectD5.encodedLength(event) <= maxMessageSize);
    this.ended.events += 1;
  }

  used(queue: number): void {
    assert.ok(queue < limits.queuesPerDevice);
    this.ended.used += 1;
  }
}

const requests: readonly TransportRequest[] = [
  { kind: 'request', name: 'GET_DEVICE_INFO', body: {} },
  { kind: 'request', name: 'GET_DEVICE_STATUS', body: {} },
  { kind: 'request', name: 'SET_DEVICE_STATUS', body: { status: 1 } },
  { kind: 'request', name: 'GET_CONFIG', body: { offset: 0, length: 8 } },
  { kind: 'request', name: 'GET_DEVICE_FEATURES', body: { blockIndex: 0, blockCount: 2 } },
  { kind: 'request', name: 'GET_SHM', body: { index: 0 } },
];

/** A serving side that answers, lies, repeats, forges tokens and sends garbage. */
class HostileServer {
  readonly sent: Sent[] = [];
  readonly #random: SeededRandom;
  readonly #frame = new Uint8Array(1024);
  readonly seen = { understood: 0, dropped: 0, malformed: 0 };

  constructor(random: SeededRandom) {
    this.#random = random;
  }

  #honest({ message, device, token }: Sent): number {
    const { name } = message;
    const info = {
      deviceId: 2,
      vendorId: 0,
      uuid: new Uint8Array(16),
      featureBlockCount: 2,
      configSize: 8,
      maxVirtqueues: 4,
    };
    const bodies: Record<string, object> = {
      GET_DEVICES: { offset: 0, nextOffset: 0, count: 8, bitmap: new Uint8Array([0xff]) },
      GET_DEVICE_INFO: { ...info, adminStart: 0, adminCount: 0 },
      GET_DEVICE_STATUS: { status: this.#random.below(16) },
      SET_DEVICE_STATUS: { status: this.#random.below(2) },
      GET_CONFIG: { generation: 0, offset: 0, length: 8, data: new Uint8Array(8) },
      GET_DEVICE_FEATURES: { blockIndex: 0, blockCount: 2, blocks: [0xffffffff, 0xffffffff] },
      GET_SHM: { index: 0, reserved: 0, length: 4096n, address: 1n << 63n },
    };
    const body = bodies[name] ?? { errno: 0 };
    return dialectD5.encode({ kind: 'response', name, body } as CanonicalMessage, device, token, this.#frame);
  }

  #event(): number {
    const random = this.#random;
    const length = random.below(40);
    const config = {
      status: random.below(256),
      generation: random.u32(),
      offset: 0,
      length,
      data: new Uint8Array(length),
    };
    const event: CanonicalMessage =
      random.below(2) === 0
        ? { kind: 'event', name: 'EVENT_USED', body: { index: random.below(8) } }
        : { kind: 'event', name: 'EVENT_CONFIG', body: config };
    return dialectD5.encode(event, random.below(4), 0, this.#frame);
  }

  /** The next frame: half honest, half not. */
  next(): Uint8Array {
    const random = this.#random;
    const kind = random.below(10);
    const sent = this.sent[random.below(Math.max(1, this.sent.length))];
    let size = headerBytes + random.below(80);
    for (let i = 0; i < size; i++) this.#frame[i] = random.below(256);
    if (kind < 6 && sent !== undefined) {
      size = this.#honest(sent);
      if (kind > 3) this.#frame[random.below(size)] = random.below(256);
    } else if (kind === 6) size = this.#event();
    else if (kind < 9) {
      // A header of ours over random bytes.
      const rows = [...dialectD5.rows()];
      const row = rows[random.below(rows.length)]!;
      const header = { type: row.type, id: row.id, deviceNumber: random.below(9), token: random.below(64), size };
      encode(messageHeader, header, this.#frame);
    }
    if (this.sent.length > 64) this.sent.splice(0, 32);
    return this.#frame.subarray(0, size);
  }

  /** Delivers a frame as a channel does: what is malformed never reaches the bus. */
  deliver(bus: RemoteBus): void {
    const frame = this.next();
    const header = decode(messageHeader, frame, 0, headerBytes) as Decoded<typeof messageHeader>;
    const message = headerFault(header, frame.length, 264) === undefined ? dialectD5.decode(frame, header) : undefined;
    if (message === undefined || message instanceof Malformed) this.seen.malformed += 1;
    else if (bus.onMessage(message, header)) this.seen.understood += 1;
    else this.seen.dropped += 1;
  }
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

async function round(seed: number) {
  const random = new SeededRandom(seed);
  const clock = new FakeClock();
  const server = new HostileServer(random);
  const peer = {
    maxMessageSize: 264,
    byPeer: true,
    lengthOf: (message: CanonicalMessage) => dialectD5.encodedLength(message),
    send: (message: CanonicalMessage, device: number, token: number) => {
      if (message.kind === 'request') server.sent.push({ message, device, token });
    },
    giveDescriptor: () => 'EBUSY' as const,
  };
  const bus = new RemoteBus(peer, clock, { onDevices: () => {} });
  const listed = bus.enumerate();
  while (server.sent.length > 0 && bus.devices.size === 0) {
    server.deliver(bus);
    await turn();
    clock.advance(1);
    if (clock.timers === 0) break;
  }
  clock.advance(limits.requestTimeoutMs);
  await listed;
  const end = new DriverEnd(new SharedMemory(new FakeResources(), clock, false));
  let device: RemoteDevice | undefined;
  for (let step = 0; step < stepsPerRound; step++) {
    const number = [...bus.devices][0];
    if (device === undefined && number !== undefined) {
      const hooks = { owner: { bus: 'drv', domid: 1 }, onStatus: () => {}, onGone: () => {} };
      const opening = RemoteDevice.open(bus, number, clock, hooks).catch(() => undefined);
      for (let i = 0; i < 200 && clock.timers > 0; i++) {
        server.deliver(bus);
        await turn();
      }
      clock.advance(limits.requestTimeoutMs);
      device = await opening;
      device?.connect(end);
    }
    if (random.below(3) === 0 && device !== undefined) {
      const token = random.below(0x10000);
      const request = requests[random.below(requests.length)]!;
      if (!end.open.has(token)) {
        end.open.set(token, request.name);
        device.onRequest(request, token);
      }
    }
    if (random.below(20) === 0) device?.onAvailable(random.below(4), random.u32());
    server.deliver(bus);
    if (random.below(8) === 0) {
      await turn();
      clock.advance(random.below(100));
    }
    assert.ok(end.open.size <= 2 * limits.devicePendingRequests, 'the number of open requests is bounded');
    assert.ok(bus.devices.size <= limits.devicesPerBus);
  }
  await turn();
  clock.advance(limits.requestTimeoutMs);
  await turn();
  bus.close('the end');
  await turn();
  assert.equal(end.open.size, 0, 'every request was answered or has failed');
  return { ...server.seen, ...end.ended, connected: device !== undefined };
}

test(`${rounds * stepsPerRound} messages of a hostile serving side end every request once and break nothing`, async (t) => {
  const total = { understood: 0, dropped: 0, malformed: 0, answered: 0, failed: 0, events: 0, used: 0 };
  let connected = 0;
  for (let seed = 1; seed <= rounds; seed++) {
    const result = await round(seed);
    for (const key of Object.keys(total) as (keyof typeof total)[]) total[key] += result[key];
    connected += result.connected ? 1 : 0;
  }
  t.diagnostic(`${JSON.stringify(total)}, ${connected} devices used`);
  assert.ok(connected > rounds / 2, 'the test used devices');
  for (const [name, count] of Object.entries(total)) assert.ok(count > 100, `${name}: ${count}`);
});

/** The devices that a side is believed to have which answers GET_DEVICES so. */
async function listed(
  answer: (offset: number, count: number) => { nextOffset: number; count: number },
): Promise<number[]> {
  const peer = {
    maxMessageSize: 264,
    byPeer: true,
    lengthOf: (message: CanonicalMessage) => dialectD5.encodedLength(message),
    send: (message: CanonicalMessage, _device: number, token: number) => {
      if (message.kind !== 'request' || message.name !== 'GET_DEVICES') return;
      const { offset } = message.body;
      const { nextOffset, count } = answer(offset, message.body.count);
      const body = { offset, nextOffset, count, bitmap: new Uint8Array((count + 7) >>> 3).fill(0xff) };
      const header = { type: 3, id: 2, deviceNumber: 0, token, size: 0 };
      queueMicrotask(() => void bus.onMessage({ kind: 'response', name: 'GET_DEVICES', body }, header));
    },
    giveDescriptor: () => 'EBUSY' as const,
  };
  const bus = new RemoteBus(peer, new FakeClock(), { onDevices: () => {} });
  await bus.enumerate();
  return [...bus.devices];
}

test('a list of devices is bounded, and one that contradicts its request is not believed', async () => {
  const all = await listed((offset, count) => ({ nextOffset: offset + count > 0xffff ? 0 : offset + count, count }));
  assert.equal(all.length, limits.devicesPerBus);
  assert.deepEqual(await listed(() => ({ nextOffset: 0, count: 3 })), [0, 1, 2]);
  assert.deepEqual(await listed((_, count) => ({ nextOffset: 0, count: count + 1 })), [], 'more than was asked for');
  assert.deepEqual(await listed((offset) => ({ nextOffset: Math.max(1, offset), count: 1 })), [], 'no end');
});
