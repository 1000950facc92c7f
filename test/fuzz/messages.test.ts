import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { BlkBackend } from '../../src/bridge/backend/blk.ts';
import { RngBackend } from '../../src/bridge/backend/rng.ts';
import type { BackendHost } from '../../src/ports/backend.ts';
import { blkRequestType, blkStatus, sectorBytes } from '../../src/virtio/blk.ts';
import type { RingDriverQueue } from '../../src/virtio/rings.ts';
import { status } from '../../src/virtio/status.ts';
import { busEvents, busRequests } from '../../src/virtio-msg/bus-messages.ts';
import { dialectD5, headerFault } from '../../src/virtio-msg/dialect.ts';
import { headerBytes, headerId, type MessageHeader, messageHeader, typeBus } from '../../src/virtio-msg/header.ts';
import { readU16, writeU16, writeU32 } from '../../src/wire/bytes.ts';
import { decode, Malformed } from '../../src/wire/layout.ts';
import { Bench, buffer, driverOk, parseFrame, type Seen } from '../support/bridge-bench.ts';
import { blkHead, MemoryDisk } from '../support/bridge-disk.ts';
import { FakeCall, type FakeConnection, FakeMemory } from '../support/bridge-fakes.ts';
import { FrameForge } from '../support/sim-frames.ts';
import { Prng } from '../support/virtqueue-pair.ts';

const frames = 1_000_000;
const framesPerBatch = 50;
const areas = [1, 2, 3];
const areaBytes = 16384;
const [descAt, availAt, usedAt] = [0, 4096, 8192];
const ringOffsets = [descAt, availAt, usedAt, 12288, 16, 2, areaBytes - 8];
const heapGrowthMaxBytes = 48 * 1024 * 1024;

const noHost: BackendHost = { configChanged: () => {}, failed: () => {} };

/** Random bytes without a kernel; some requests end later. */
function rngBackend(random: Prng, later: Array<() => void>): RngBackend {
  const fill = (target: Uint8Array, done: (error: Error | null, bytes: number) => void): void => {
    target.fill(7);
    if (random.chance(0.5)) done(null, target.length);
    else later.push(() => done(null, target.length));
  };
  return new RngBackend({ fill, close: async () => {} }, noHost);
}

/** A well-behaved guest on another bus: it must not notice anything. */
class Neighbour {
  readonly bench = new Bench();
  readonly #queue: RingDriverQueue;
  readonly #memory: FakeMemory;
  turns = 0;

  readonly #disk = new MemoryDisk(64 * sectorBytes);

  constructor() {
    this.#disk.waiting = [];
    this.bench.attach(new BlkBackend(this.#disk, 'neighbour'));
    this.bench.connect();
    const { queue, memory } = this.bench.start();
    this.#queue = queue;
    this.#memory = memory;
  }

  /** Asks, writes, reads back. */
  turn(): void {
    this.turns += 1;
    const data = this.turns >>> 0;
    assert.equal(this.bench.ask('PING', { data }).data, data);
    assert.equal(this.bench.getStatus(), driverOk);
    const sector = this.turns % 64;
    const bytes = this.#memory.bytes.subarray(32768 + 512, 32768 + 1024);
    bytes.fill(this.turns);
    this.#io(blkRequestType.OUT, sector);
    bytes.fill(0);
    this.#io(blkRequestType.IN, sector);
    assert.ok(
      bytes.every((byte) => byte === (this.turns & 0xff)),
      'the neighbour reads what it wrote',
    );
  }

  #io(type: number, sector: number): void {
    this.#memory.bytes.set(blkHead(type, BigInt(sector)), 32768);
    const statusAt = 32768 + 1024;
    this.#memory.bytes[statusAt] = 0xff;
    const [head, data, end] = [buffer(1, 0, 16), buffer(1, 1), buffer(1, 2, 1)];
    const isWrite = type === blkRequestType.OUT;
    const token = this.#queue.add(isWrite ? [head, data] : [head], isWrite ? [end] : [data, end]);
    assert.ok(token !== undefined);
    if (this.#queue.kick()) this.bench.available();
    for (let end = this.#disk.waiting!.shift(); end !== undefined; end = this.#disk.waiting!.shift()) end();
    this.#disk.log.length = 0;
    this.bench.scheduler.run();
    assert.deepEqual(this.#queue.next(), { token, writtenBytes: isWrite ? 1 : sectorBytes + 1 });
    assert.equal(this.#memory.bytes[statusAt], blkStatus.OK);
    this.bench.take();
  }
}

/** Frames go in, and what comes out is checked against what was asked. */
class Attacker {
  readonly bench = new Bench({ maxMessageSize: 264 });
  readonly outcomes = new Map<string, number>();
  readonly #random: Prng;
  readonly #disks = [new MemoryDisk(64 * sectorBytes), new MemoryDisk(9 * sectorBytes + 1)];
  readonly #later: Array<() => void> = [];
  readonly #memory = new Uint8Array(areaBytes);
  /** Requests without an answer, by what identifies them. */
  readonly #asked = new Map<number, number>();
  #guest: FakeConnection | undefined;
  #forge: FrameForge | undefined;
  #deafBatches = 0;

  constructor(random: Prng) {
    this.#random = random;
    this.bench.attach(new BlkBackend(this.#disks[0]!, 'prompt'), 'prompt', 0);
    this.bench.attach(new BlkBackend(this.#disks[1]!, 'slow'), 'slow', 1);
    this.bench.attach(rngBackend(random, this.#later), 'rng', 2);
    for (const disk of this.#disks) disk.waiting = [];
  }

  #count(what: string, times = 1): void {
    this.outcomes.set(what, (this.outcomes.get(what) ?? 0) + times);
  }

  #connect(): FakeConnection {
    const maxMessageSize = this.#random.pick([52, 64, 264]);
    this.#guest = this.bench.connect({ maxMessageSize, capacity: 64 });
    this.#forge = new FrameForge(this.#random, { maxMessageSize, devices: [0, 1, 2], areas, ringOffsets });
    this.#asked.clear();
    this.#count('connections');
    return this.#guest;
  }

  batch(): void {
    const guest = this.#guest === undefined || this.#guest.closed ? this.#connect() : this.#guest;
    this.#offer(guest);
    this.#scribble();
    if (this.#random.chance(0.05)) this.#forge!.wildness = this.#random.pick([0.02, 0.2, 1]);
    for (let i = 0; i < framesPerBatch; i++) {
      const frame = this.#forge!.next();
      this.#noteRequest(frame, guest);
      guest.port.incoming.push(frame);
    }
    guest.doorbell();
    this.bench.scheduler.run();
    for (const { status: value } of this.#devices()) if (value & status.DRIVER_OK) this.#count(describeOk(value));
    this.#endSome(0.5);
    this.bench.clock.advance(this.#random.pick([0, 1, 50, 3000]));
    this.bench.scheduler.run();
    // A guest that does not read for long loses its connection.
    if (this.#random.chance(0.002)) this.#deafBatches = this.#random.below(150);
    this.#deafBatches -= 1;
    if (this.#deafBatches < 0 && this.#random.chance(0.8)) this.#read(guest);
    if (this.#random.chance(0.001) && !guest.closed) this.bench.leave();
  }

  #devices() {
    return this.bench.runtime.snapshot().devices;
  }

  /** Things to hand over, and nothing kept of those that are used up. */
  #offer({ resources }: FakeConnection): void {
    for (const reference of [0, 1, 2, 3]) {
      resources.memories.set(reference, new FakeMemory(this.#memory));
      resources.kicks.set(reference, { onKick: undefined, closed: false });
      resources.calls.set(reference, new FakeCall());
    }
    const open = resources.opened.filter((memory) => !memory.closed);
    resources.opened.splice(0, resources.opened.length, ...open);
    resources.discarded.length = 0;
    for (const disk of this.#disks) disk.log.length = 0;
    this.bench.events.length = 0;
  }

  /** Queues that are partly good: chains of one to three descriptors, and a few more of them each time. */
  #scribble(): void {
    const random = this.#random;
    for (let i = random.below(16); i > 0; i--) {
      const at = descAt + 16 * random.below(64);
      const write = random.chance(0.5);
      writeU32(this.#memory, at, 12288 + random.below(4096));
      writeU32(this.#memory, at + 4, (random.chance(0.95) ? areas[0]! : random.below(0x1_0000)) << 16);
      writeU32(this.#memory, at + 8, random.pick([1, 16, 512, 513, 1024, random.u32()]));
      writeU16(this.#memory, at + 12, (write ? 2 : 0) | (random.chance(0.5) ? 1 : 0) | (random.chance(0.05) ? 4 : 0));
      writeU16(this.#memory, at + 14, random.below(random.chance(0.95) ? 64 : 0x1_0000));
    }
    this.#memory.set(blkHead(random.pick([0, 0, 1, 4, 8, 9]), BigInt(random.below(80))), 12288 + 16 * random.below(16));
    if (random.chance(0.2)) writeU16(this.#memory, usedAt + 2, 0);
    const ahead = random.chance(0.97) ? random.below(3) : random.below(0x1_0000);
    writeU16(this.#memory, availAt + 2, readU16(this.#memory, usedAt + 2) + ahead);
    for (let i = 0; i < 4; i++) writeU16(this.#memory, availAt + 4 + 2 * random.below(64), random.below(16));
  }

  #noteRequest(frame: Uint8Array, { maxMessageSize, port }: FakeConnection): void {
    const header = decode(messageHeader, frame, 0, headerBytes) as MessageHeader;
    if (headerFault(header, port.slotBytes, maxMessageSize) !== undefined) return;
    const slot = new Uint8Array(port.slotBytes).fill(0xa5);
    slot.set(frame);
    const message = dialectD5.decode(slot, header);
    if (message instanceof Malformed || message.kind !== 'request') return;
    const key = keyOf(header.type, header.id, header.deviceNumber, header.token);
    this.#asked.set(key, (this.#asked.get(key) ?? 0) + 1);
  }

  #read(guest: FakeConnection): void {
    for (const frame of guest.port.visible.splice(0)) {
      const seen = parseFrame(frame);
      this.#count(`${seen.kind} ${seen.name}`);
      assert.ok(seen.header.size <= guest.maxMessageSize, 'a message keeps to the agreed size');
      if (seen.kind === 'response') this.#answered(seen.header.type, seen.header.id, seen.header.deviceNumber, seen);
      else if (headerId(frame) === busEvents.FAILURE.id && seen.header.type & typeBus) this.#failed(seen);
    }
  }

  #failed(seen: Seen): void {
    const { type, id, device, token } = seen.body as { type: number; id: number; device: number; token: number };
    this.#answered(type, id, device, { ...seen, header: { ...seen.header, token } });
  }

  #answered(type: number, id: number, device: number, { header, name }: Seen): void {
    const key = keyOf(type, id, device, header.token);
    const left = (this.#asked.get(key) ?? 0) - 1;
    assert.ok(left >= 0, `${name} answers nothing that was asked: device ${device}, token ${header.token}`);
    if (left === 0) this.#asked.delete(key);
    else this.#asked.set(key, left);
  }

  #endSome(probability: number): void {
    const [prompt, slow] = this.#disks.map((disk) => disk.waiting!) as [Array<() => void>, Array<() => void>];
    while (prompt.length > 0) prompt.shift()!();
    while (slow.length > 0 && this.#random.chance(probability)) slow.shift()!();
    while (this.#later.length > 0 && this.#random.chance(probability)) this.#later.shift()!();
    this.bench.scheduler.run();
  }

  /** All that is under way ends, and every request has its answer. */
  settle(): void {
    this.#deafBatches = 0;
    const guest = this.#guest!;
    for (let round = 0; round < 40 && !guest.closed; round++) {
      this.#endSome(1);
      this.#read(guest);
      guest.doorbell();
      this.bench.scheduler.run();
      this.bench.clock.advance(1000);
    }
    if (!guest.closed) assert.deepEqual([...this.#asked], [], 'every request was answered');
  }

  /** The guest leaves: nothing of it stays. */
  leave(): void {
    const guest = this.#guest!;
    if (!guest.closed) this.bench.leave();
    this.#endSome(1);
    this.bench.clock.advance(60_000);
    assert.ok(guest.closed);
    assert.ok(
      guest.resources.opened.every((memory) => memory.closed),
      'every region is unmapped',
    );
    assert.equal(this.bench.clock.timers, 0, 'no timer runs');
    const snapshot = this.bench.runtime.snapshot();
    assert.deepEqual([snapshot.regions, snapshot.regionBytes, snapshot.regionsDraining], [0, 0, 0]);
    for (const device of snapshot.devices) assert.deepEqual([device.status, device.queues], [0, []]);
    for (const device of snapshot.devices) this.#count('chains', device.requests ?? 0);
    this.#count('malformed', snapshot.counters.malformed);
    this.#count('dropped', snapshot.counters.dropped);
  }
}

const keyOf = (type: number, id: number, device: number, token: number): number =>
  (((type & typeBus) << 7) | id) * 2 ** 32 + device * 2 ** 16 + token;
const describeOk = (value: number): string => (value & status.DEVICE_NEEDS_RESET ? 'needs reset' : 'driver ok');

const heapUsed = async (): Promise<number> => {
  await new Promise((resolve) => setTimeout(resolve, 50));
  return process.memoryUsage().heapUsed;
};

describe('a guest that sends anything', () => {
  it('disturbs neither the service nor its neighbour', async (t) => {
    const neighbour = new Neighbour();
    const attacker = new Attacker(new Prng(20));
    let before = 0;
    for (let batch = 0; batch < frames / framesPerBatch; batch++) {
      attacker.batch();
      if (batch % 20 === 0) neighbour.turn();
      if (batch % 1000 === 999) attacker.settle();
      if (batch === 2000) before = await heapUsed();
    }
    attacker.settle();
    attacker.leave();
    neighbour.turn();
    const grown = (await heapUsed()) - before;
    assert.ok(grown < heapGrowthMaxBytes, `the heap has grown by ${grown} bytes`);
    t.diagnostic(JSON.stringify(Object.fromEntries(attacker.outcomes)));
    for (const [what, least] of Object.entries(leastOutcomes)) {
      const count = attacker.outcomes.get(what) ?? 0;
      assert.ok(count >= least, `${what}: ${count}, at least ${least} are needed to mean something`);
    }
    for (const name of Object.keys(busRequests)) assert.ok(attacker.outcomes.has(`response ${name}`), name);
  });
});

/** What a run must have reached; far below what it does reach. */
const leastOutcomes = {
  malformed: 50_000,
  dropped: 50_000,
  connections: 10,
  'driver ok': 5_000,
  'needs reset': 5_000,
  chains: 1_000,
  'event FAILURE': 1_000,
  'event EVENT_CONFIG': 100,
  'event EVENT_USED': 100,
  'response SET_DEVICE_STATUS': 10_000,
};
