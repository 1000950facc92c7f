import assert from 'node:assert/strict';
import { FeatureSet, feature } from '../../src/virtio/features.ts';
import { type RingLayout, ringBytes } from '../../src/virtio/geometry.ts';
import type { InflightLog } from '../../src/virtio/inflight.ts';
import {
  type Chain,
  type DeviceQueue,
  type DriverQueueSetup,
  type IndirectTable,
  QueueFault,
  type QueueSetup,
} from '../../src/virtio/queue.ts';
import { openDeviceQueue, openDriverQueue, type RingDriverQueue } from '../../src/virtio/rings.ts';
import { readU16, readU32 } from '../../src/wire/bytes.ts';
import { type AreaOptions, TestArea, TestMemory } from './virtqueue-memory.ts';

/** A small generator with a seed (mulberry32): the same numbers on every run. */
export class Prng {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** 0 <= value < 2^32 */
  u32(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  }

  /** 0 <= value < bound */
  below(bound: number): number {
    return Math.floor((this.u32() / 2 ** 32) * bound);
  }

  chance(probability: number): boolean {
    return this.u32() < probability * 2 ** 32;
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)]!;
  }
}

export const RING_AREA = 1;
export const DATA_AREA = 2;

export interface Rings {
  readonly memory: TestMemory;
  readonly rings: TestArea;
  readonly data: TestArea;
  readonly setup: QueueSetup;
  readonly driverSetup: DriverQueueSetup;
}

/** The kinds of queue that every suite runs on. */
export interface RingKind {
  readonly name: string;
  readonly layout: RingLayout;
  readonly inOrder: boolean;
}

export const ringKinds: readonly RingKind[] = [
  { name: 'split', layout: 'split', inOrder: false },
  { name: 'split in order', layout: 'split', inOrder: true },
  { name: 'packed', layout: 'packed', inOrder: false },
  { name: 'packed in order', layout: 'packed', inOrder: true },
];

export interface RingOptions {
  /** Split by default. */
  readonly layout?: RingLayout;
  readonly inOrder?: boolean;
  readonly indirect?: boolean;
  readonly eventIdx?: boolean;
  readonly dataBytes?: number;
  readonly data?: AreaOptions;
  readonly allocate?: (bytes: number) => ArrayBufferLike;
}

/** Ring memory in one area and buffers in another, with the set-up of both halves. */
export function makeRings(size: number, options: RingOptions = {}): Rings {
  const bits: number[] = [feature.VERSION_1];
  if (options.indirect === true) bits.push(feature.INDIRECT_DESC);
  if (options.eventIdx === true) bits.push(feature.EVENT_IDX);
  const layout = options.layout ?? 'split';
  if (layout === 'packed') bits.push(feature.RING_PACKED);
  if (options.inOrder === true) bits.push(feature.IN_ORDER);
  const features = FeatureSet.of(...bits);
  const bytes = ringBytes(layout, size);
  const driverAt = bytes.desc;
  const deviceAt = (driverAt + bytes.driver + 3) & ~3;
  const host = options.allocate === undefined ? {} : { allocate: options.allocate };
  const memory = new TestMemory();
  const rings = memory.add(new TestArea(RING_AREA, deviceAt + bytes.device, host));
  const data = memory.add(new TestArea(DATA_AREA, options.dataBytes ?? 65536, { ...host, ...options.data }));
  const addresses = {
    descAddr: rings.address(0),
    driverAddr: rings.address(driverAt),
    deviceAddr: rings.address(deviceAt),
  };
  return {
    memory,
    rings,
    data,
    setup: { index: 0, size, features, ...addresses },
    driverSetup: {
      size,
      features,
      ...addresses,
      memory: {
        desc: rings.bytes.subarray(0, bytes.desc),
        driver: rings.bytes.subarray(driverAt, driverAt + bytes.driver),
        device: rings.bytes.subarray(deviceAt, deviceAt + bytes.device),
      },
    },
  };
}

/** Bus range of `length` bytes in the data area. */
export const dataRange = (offset: number, length: number): { hi: number; lo: number; length: number } => ({
  hi: DATA_AREA << 16,
  lo: offset,
  length,
});

export function openDevice(rings: Rings, log?: InflightLog): DeviceQueue {
  const queue = openDeviceQueue(rings.setup, rings.memory, log);
  assert.ok(!(queue instanceof QueueFault), 'the queue opens');
  return queue;
}

export interface Pair extends Rings {
  readonly driver: RingDriverQueue;
  readonly device: DeviceQueue;
}

export function makePair(size: number, options: RingOptions = {}): Pair {
  const rings = makeRings(size, options);
  const driver = openDriverQueue(rings.driverSetup);
  return { ...rings, driver, device: openDevice(rings) };
}

/** @throws when `value` is a fault or undefined */
export function expectValue<T>(value: T | QueueFault | undefined): T {
  assert.ok(value !== undefined, 'there is a value');
  assert.ok(!(value instanceof QueueFault), value instanceof QueueFault ? `${value.reason}: ${value.detail}` : '');
  return value as T;
}

/** Memory for an indirect table in the data area. */
export function indirectTable(pair: Pair, offset: number, entries: number): IndirectTable {
  const { hi, lo } = dataRange(offset, 1);
  const { bytes } = pair.data;
  return { words: new Uint32Array(bytes.buffer, bytes.byteOffset + offset, entries * 4), hi, lo };
}

/** Popped chains until there is none. */
export function drain(pair: Pair): Chain[] {
  const chains: Chain[] = [];
  for (let chain = pair.device.pop(); chain !== undefined; chain = pair.device.pop()) chains.push(expectValue(chain));
  return chains;
}

/** One descriptor of a packed ring: address low and high, length, id, flags. */
export function packedDescriptor({ driverSetup }: Rings, index: number): number[] {
  const { desc } = driverSetup.memory;
  const at = index * 16;
  const words = [0, 4, 8].map((offset) => readU32(desc, at + offset));
  return [...words, readU16(desc, at + 12), readU16(desc, at + 14)];
}
