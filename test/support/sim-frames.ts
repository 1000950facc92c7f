import { FeatureSet, feature } from '../../src/virtio/features.ts';
import { dialectD5 } from '../../src/virtio-msg/dialect.ts';
import { headerBytes, messageHeader } from '../../src/virtio-msg/header.ts';
import type { AnyLayout } from '../../src/virtio-msg/tables.ts';
import { encode, type Field } from '../../src/wire/layout.ts';
import type { Prng } from './virtqueue-pair.ts';

export interface ForgeOptions {
  readonly maxMessageSize: number;
  /** Device numbers that exist. */
  readonly devices: readonly number[];
  /** Area ids that exist, or did. */
  readonly areas: readonly number[];
  /** Offsets in the areas where the parts of a ring may lie. */
  readonly ringOffsets: readonly number[];
}

const oddNumbers = [0, 1, 2, 3, 4, 15, 64, 255, 256, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];
const statuses = [0, 1, 3, 11, 15, 64, 75, 128, 0x8000_000f];
type Body = Record<string, number | bigint | Uint8Array | number[]>;

/** Makes messages as no well-behaved guest sends them, and enough valid ones to get far. */
export class FrameForge {
  readonly #random: Prng;
  readonly #o: ForgeOptions;
  readonly #rows = [...dialectD5.rows()];
  readonly #scratch = new Uint8Array(0x20000);
  /** Between 0, which leads the devices far, and 1, which never lets them. */
  wildness = 1;
  /** How far each device was led through its set-up. */
  readonly #progress = new Map<number, number>();

  constructor(random: Prng, options: ForgeOptions) {
    this.#random = random;
    this.#o = options;
  }

  /** A frame of at most the maximum message size, perhaps with a header that says otherwise. */
  next(): Uint8Array {
    const random = this.#random;
    const choice = random.below(100) / this.wildness;
    if (choice < 8) return this.#noise();
    if (choice < 18) return this.#headed(this.#noise());
    if (choice < 58) return this.#valid();
    if (choice < 73) return this.#flipped(random.chance(0.5) ? this.#valid() : this.#step());
    return this.#step();
  }

  #noise(): Uint8Array {
    return Uint8Array.from({ length: this.#o.maxMessageSize }, () => this.#random.below(256));
  }

  /** A plausible header before anything. */
  #headed(frame: Uint8Array): Uint8Array {
    const random = this.#random;
    const row = random.pick(this.#rows);
    const size = random.chance(0.7) ? headerBytes + row.layout.size : random.below(frame.length + 8);
    const header = { type: row.type, id: row.id, deviceNumber: this.#device(), token: random.below(64), size };
    encode(messageHeader, header, frame, 0);
    return frame;
  }

  #flipped(frame: Uint8Array): Uint8Array {
    for (let i = 1 + this.#random.below(3); i > 0; i--)
      frame[this.#random.below(frame.length)]! ^= 1 << this.#random.below(8);
    return frame;
  }

  #device(): number {
    return this.#random.chance(0.9) ? this.#random.pick(this.#o.devices) : this.#random.below(0x1_0000);
  }

  /** Any message with any values, mostly those that mean something. */
  #valid(): Uint8Array {
    const row = this.#random.pick(this.#rows);
    return this.#encode({ kind: row.kind, name: row.name, body: this.#body(row.layout) });
  }

  #encode(message: unknown, device: number = this.#device()): Uint8Array {
    const size = dialectD5.encode(message as never, device, this.#random.below(64), this.#scratch);
    return this.#scratch.slice(0, Math.min(size, this.#o.maxMessageSize));
  }

  #body(layout: AnyLayout): Body {
    const body: Body = {};
    for (const [name, field] of Object.entries(layout.fields) as Array<[string, Field]>)
      body[name] = this.#value(name, field);
    if (layout.tail === undefined) return body;
    const { count, kind, name, byteLength } = layout.tail;
    const length = this.#random.below(20);
    body[count] = length;
    body[name] =
      kind === 'bytes' ? new Uint8Array(byteLength(length)) : Array.from({ length }, () => this.#random.u32());
    return body;
  }

  #value(name: string, field: Field): number | bigint | Uint8Array {
    const random = this.#random;
    if (field.kind === 'bytes') return new Uint8Array(field.size);
    if (field.kind === 'u64') return this.#u64(name);
    if (name === 'status') return random.pick(statuses);
    if (name === 'area') return random.chance(0.8) ? random.pick(this.#o.areas) : random.pick(oddNumbers);
    if (name === 'device') return this.#device();
    if (random.chance(0.5)) return random.below(4);
    return random.chance(0.5) ? random.pick(oddNumbers) : random.u32();
  }

  #u64(name: string): bigint {
    const random = this.#random;
    if (name === 'length' || name === 'offset') return BigInt(random.below(8)) * 4096n;
    if (random.chance(0.3)) return (BigInt(random.u32()) << 32n) | BigInt(random.pick(oddNumbers));
    return this.#address();
  }

  #address(): bigint {
    return (BigInt(this.#random.pick(this.#o.areas)) << 48n) | BigInt(this.#random.pick(this.#o.ringOffsets));
  }

  /** The next step of a device's set-up, or its use when that is done. */
  #step(): Uint8Array {
    const random = this.#random;
    const device = random.pick(this.#o.devices);
    const at = random.chance(0.02) ? random.below(9) : (this.#progress.get(device) ?? 0);
    this.#progress.set(device, at === 9 ? (random.chance(0.02) ? 0 : 9) : at + 1);
    const request = (name: string, body: object) => this.#encode({ kind: 'request', name, body }, device);
    const set = (status: number) => request('SET_DEVICE_STATUS', { status });
    const optional = [feature.EVENT_IDX, feature.INDIRECT_DESC, feature.RING_RESET].filter(() => random.chance(0.8));
    const blocks = FeatureSet.of(feature.VERSION_1, feature.ACCESS_PLATFORM, ...optional).toBlocks(2);
    switch (at) {
      case 0:
        return this.#region();
      case 1:
        return set(0);
      case 2:
        return set(1);
      case 3:
        return set(3);
      case 4:
        return request('SET_DRIVER_FEATURES', { blockIndex: 0, blockCount: 2, blocks });
      case 5:
        return set(11);
      case 6:
        return this.#queue(device);
      case 7:
        return random.chance(0.7) ? this.#region() : request('GET_VQUEUE', { index: 0 });
      case 8:
        return set(15);
      default:
        return this.#encode({ kind: 'event', name: 'EVENT_AVAIL', body: { index: 0, next: random.below(4) } }, device);
    }
  }

  #region(): Uint8Array {
    const random = this.#random;
    const area = random.chance(this.wildness) ? random.pick(this.#o.areas) : this.#o.areas[0]!;
    const reference = random.below(4);
    const body = { peer: 0, area, flags: 0, reference, domain: 0, offset: 0n, length: 16384n };
    return this.#encode({ kind: 'request', name: 'REGION_ADD', body });
  }

  #queue(device: number): Uint8Array {
    const random = this.#random;
    // The first three offsets make a good queue.
    const [descAddr, driverAddr, deviceAddr] = random.chance(1 - this.wildness / 2)
      ? this.#o.ringOffsets.slice(0, 3).map((offset) => (BigInt(this.#o.areas[0]!) << 48n) | BigInt(offset))
      : [this.#address(), this.#address(), this.#address()];
    const addresses = { descAddr, driverAddr, deviceAddr };
    const body = { index: 0, flags: 1, size: random.pick([1, 4, 16, 64]), reserved: 0, ...addresses };
    return this.#encode({ kind: 'request', name: 'SET_VQUEUE', body }, device);
  }
}
