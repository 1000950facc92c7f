import { RingProducer, ringBytesFor, slotBytes } from '../../src/virtio-msg/ring.ts';
import { FrameForge } from './sim-frames.ts';
import type { SimLoop, SimProcess } from './sim-loop.ts';
import type { SimReference } from './sim-resources.ts';
import type { SimBus } from './sim-service.ts';
import type { SimCaller, SimConnection, SimRings } from './sim-transport.ts';

const areas = [1, 2, 3];
const areaBytes = 16384;

/** A guest that keeps no rule: forged messages, spoilt rings and queues, no reading, sudden ends. */
export class SimHostileGuest implements SimCaller {
  readonly process: SimProcess;
  readonly references = new Map<number, SimReference>();
  readonly maxMessageSize: number;
  readonly #loop: SimLoop;
  readonly #bus: SimBus;
  readonly #forge: FrameForge;
  readonly #memory = new Uint8Array(areaBytes);
  readonly #slot: number;
  #connection: SimConnection | undefined;
  #producer: RingProducer | undefined;
  #rings: SimRings | undefined;
  /** What this guest does; some do only a part of it, and get further with that. */
  readonly #spoilsRings: boolean;
  readonly #reads: boolean;

  constructor(loop: SimLoop, name: string, bus: SimBus) {
    this.#loop = loop;
    this.#bus = bus;
    this.process = loop.process(name);
    this.maxMessageSize = loop.random.pick([52, 64, bus.maxMessageSize]);
    this.#slot = slotBytes(this.maxMessageSize);
    this.#spoilsRings = loop.random.chance(0.3);
    this.#reads = loop.random.chance(0.8);
    const { maxMessageSize } = this;
    const ringOffsets = [0, 4096, 8192, 12288, 16, 2, 16376];
    this.#forge = new FrameForge(loop.random, { maxMessageSize, devices: [0, 1, 2], areas, ringOffsets });
    this.#connect();
    this.#tick();
  }

  #connect(): void {
    const claim = { epoch: BigInt(this.#loop.random.below(3)), token: new Uint8Array(16) };
    this.#bus.socket.connect(this, claim, { drop: 0, corrupt: 0 });
  }

  welcomed(): SimRings {
    const slot = this.#slot;
    const ring = () => new Uint8Array(ringBytesFor(this.#loop.random.pick([1, 4, 32]), slot));
    const [toService, toGuest] = [ring(), ring()];
    this.#producer = new RingProducer(toService, slot, false);
    this.#rings = { toService, toGuest, slotBytes: slot, sleepWords: false };
    return this.#rings;
  }

  ready(connection: SimConnection): void {
    this.#connection = connection;
  }

  refused(): void {
    this.#loop.at(this.process, 1 + this.#loop.random.below(30), () => this.#connect());
  }

  closed(): void {
    this.#connection = undefined;
    this.refused();
  }

  doorbell(): void {}

  #tick(): void {
    this.preempt();
    this.#loop.at(this.process, this.#loop.random.below(400) / 100, () => this.#tick());
  }

  preempt(): void {
    const connection = this.#connection;
    if (connection === undefined) return;
    const { random } = this.#loop;
    for (let i = random.below(8); i > 0; i--) {
      if (this.#producer!.push(this.#forge.next()) !== 'pushed') break;
    }
    this.#producer!.publish();
    for (const number of [0, 1, 2, 3]) this.#offer(number);
    this.#scribble();
    if (this.#reads) this.#swallow();
    if (random.chance(0.8)) connection.ring();
    if (random.chance(0.004)) connection.leave('the guest went away');
  }

  #offer(number: number): void {
    const { random } = this.#loop;
    if (this.references.has(number)) return;
    if (random.chance(0.6)) this.references.set(number, { kind: 'region', bytes: this.#memory });
    else if (random.chance(0.5)) this.references.set(number, { kind: 'kick', listener: undefined, pending: false });
    else this.references.set(number, { kind: 'call', ring: () => {} });
  }

  /** Pretends to have read everything. */
  #swallow(): void {
    const { toGuest } = this.#rings!;
    const words = new Uint32Array(toGuest.buffer, toGuest.byteOffset, 32);
    words[16] = words[0]!;
  }

  #scribble(): void {
    const { random } = this.#loop;
    const words = new Uint32Array(this.#memory.buffer);
    for (let i = random.below(20); i > 0; i--) {
      words[random.below(words.length)] = random.pick([0, 1, 2, 0x0001_0000, 0x0002_0000, 16, 512, random.u32()]);
    }
    if (!this.#spoilsRings || !random.chance(0.02)) return;
    const { toService, toGuest } = this.#rings!;
    const ring = random.chance(0.5) ? toService : toGuest;
    new Uint32Array(ring.buffer)[random.pick([0, 16, 17])] = random.pick([0, 1, 3, random.u32()]);
  }
}
