import { assert } from '../kit/assert.ts';
import { deviceId } from './device-ids.ts';

/** Device-independent feature bits (virtio 1.3, section 6). */
export const feature = {
  INDIRECT_DESC: 28,
  EVENT_IDX: 29,
  VERSION_1: 32,
  ACCESS_PLATFORM: 33,
  RING_PACKED: 34,
  IN_ORDER: 35,
  ORDER_PLATFORM: 36,
  SR_IOV: 37,
  NOTIFICATION_DATA: 38,
  NOTIF_CONFIG_DATA: 39,
  RING_RESET: 40,
  ADMIN_VQ: 41,
} as const;

/** Block device (virtio 1.3, section 5.2.3). */
export const blkFeature = {
  SIZE_MAX: 1,
  SEG_MAX: 2,
  GEOMETRY: 4,
  RO: 5,
  BLK_SIZE: 6,
  FLUSH: 9,
  TOPOLOGY: 10,
  CONFIG_WCE: 11,
  MQ: 12,
  DISCARD: 13,
  WRITE_ZEROES: 14,
  LIFETIME: 15,
  SECURE_ERASE: 16,
  ZONED: 17,
} as const;

/** Console device (virtio 1.3, section 5.3.3). */
export const consoleFeature = { SIZE: 0, MULTIPORT: 1, EMERG_WRITE: 2 } as const;

type BitTable = Readonly<Record<string, number>>;

const deviceFeatures: Readonly<Record<number, BitTable>> = {
  [deviceId.blk]: blkFeature,
  [deviceId.console]: consoleFeature,
};

/** Bits that belong to the device type (virtio 1.3, 2.2). */
export const isDeviceBit = (bit: number): boolean => bit < 24 || (bit >= 50 && bit < 128);

/** Number of the u32 block that holds `bit`. */
const blockOf = (bit: number): number => Math.floor(bit / 32);
const maskOf = (bit: number): number => (1 << (bit % 32)) >>> 0;

/** An immutable set of feature bits of any number, kept as u32 blocks (bit n is bit n % 32 of block n / 32). */
export class FeatureSet {
  static readonly empty = new FeatureSet([]);
  /** No trailing zero block. */
  readonly #blocks: readonly number[];

  private constructor(blocks: number[]) {
    while (blocks.length > 0 && blocks[blocks.length - 1] === 0) blocks.pop();
    this.#blocks = blocks;
  }

  static of(...bits: readonly number[]): FeatureSet {
    return FeatureSet.empty.with(...bits);
  }

  /** `blocks[0]` holds bits 0..31. The array is copied. */
  static fromBlocks(blocks: Iterable<number>): FeatureSet {
    return new FeatureSet(Array.from(blocks, (block) => block >>> 0));
  }

  has(bit: number): boolean {
    return ((this.#blocks[blockOf(bit)] ?? 0) & maskOf(bit)) !== 0;
  }

  /** One u32 block; zero where nothing is set. */
  block(index: number): number {
    return this.#blocks[index] ?? 0;
  }

  /** The set as blocks from 0; `count` pads with zero, and must hold every set bit. */
  toBlocks(count: number = this.#blocks.length): number[] {
    assert(count >= this.#blocks.length, `feature bits fit into ${count} blocks`);
    return Array.from({ length: count }, (_, index) => this.block(index));
  }

  with(...bits: readonly number[]): FeatureSet {
    const blocks = [...this.#blocks];
    for (const bit of bits) {
      assert(Number.isInteger(bit) && bit >= 0, 'a feature bit is a number from 0');
      while (blocks.length <= blockOf(bit)) blocks.push(0);
      blocks[blockOf(bit)] = (blocks[blockOf(bit)]! | maskOf(bit)) >>> 0;
    }
    return new FeatureSet(blocks);
  }

  and(other: FeatureSet): FeatureSet {
    return new FeatureSet(this.#blocks.map((block, index) => (block & other.block(index)) >>> 0));
  }

  or(other: FeatureSet): FeatureSet {
    const length = Math.max(this.#blocks.length, other.#blocks.length);
    return new FeatureSet(Array.from({ length }, (_, index) => (this.block(index) | other.block(index)) >>> 0));
  }

  /** The bits that are not in `other`. */
  minus(other: FeatureSet): FeatureSet {
    return new FeatureSet(this.#blocks.map((block, index) => (block & ~other.block(index)) >>> 0));
  }

  isSubsetOf(other: FeatureSet): boolean {
    return this.#blocks.every((block, index) => (block & ~other.block(index)) === 0);
  }

  equals(other: FeatureSet): boolean {
    return this.isSubsetOf(other) && other.isSubsetOf(this);
  }

  /** The set bits, ascending. */
  bits(): number[] {
    return this.#blocks.flatMap((block, index) =>
      Array.from({ length: 32 }, (_, bit) => bit).flatMap((bit) => ((block >>> bit) & 1 ? [index * 32 + bit] : [])),
    );
  }

  /** Names for people, ascending by bit; those of a device type need its id. A bit without a name gives `bit-<n>`. */
  names(device?: number): string[] {
    const table: BitTable = { ...(device === undefined ? {} : deviceFeatures[device]), ...feature };
    const byBit = new Map(Object.entries(table).map(([name, bit]) => [bit, name]));
    return this.bits().map((bit) => byBit.get(bit) ?? `bit-${bit}`);
  }
}
