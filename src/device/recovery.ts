import { limits } from '../kit/limits.ts';
import type { Closable } from '../kit/scope.ts';
import type { RecoveryMemory } from '../ports/recovery.ts';
import { FeatureSet } from '../virtio/features.ts';
import type { RingLayout } from '../virtio/geometry.ts';
import { type InflightLog, inflightBytes, openInflightLog } from '../virtio/inflight.ts';
import { bytes, type Decoded, decode, encode, layout, Malformed, u32, u64 } from '../wire/layout.ts';
import type { DeviceModel, DeviceState } from './model.ts';

const pageBytes = 4096;
const source = 'this file';
const featureWords = 4;
const configMaxBytes = 1024;

const fileHead = layout('recovery file head', source, 64, {
  magic: u32(0, 'the letters VMRD'),
  version: u32(4, '1'),
  /** Written last, with one store: the slot that holds the truth. */
  current: u32(8, '0: nothing; 1 or 2: the state slot that is valid'),
  queues: u32(12, 'queues of the device'),
  identity: bytes(16, 32, 'SHA-256 of the attachment and its backend'),
});

const stateHead = layout('device state slot', source, 32, {
  status: u32(0, 'device status'),
  generation: u32(4, 'configuration generation'),
  features: bytes(8, featureWords * 4, 'driver features'),
  configSize: u32(24, 'configuration bytes'),
  queueCount: u32(28, 'queue records'),
});

const queueRecord = layout('queue record', source, 32, {
  size: u32(0, 'descriptors'),
  enabled: u32(4, '1 when enabled'),
  descAddr: u64(8, 'bus address'),
  driverAddr: u64(16, 'bus address'),
  deviceAddr: u64(24, 'bus address'),
});

const keptBytes = layout('backend memory', source, 4 + limits.backendMemoryMaxBytes, {
  length: u32(0, 'bytes that the backend keeps'),
  bytes: bytes(4, limits.backendMemoryMaxBytes, 'these, then zeroes'),
});

const magic = 0x44524d56;
const recordsAt = stateHead.size + configMaxBytes;
const keptAt = recordsAt + limits.queuesPerDevice * queueRecord.size;
const slotAt = (slot: number): number => slot * pageBytes;
const logAt = (index: number): number => 3 * pageBytes + index * logStride;
const logStride =
  (Math.max(inflightBytes('split', limits.queueSizeMax), inflightBytes('packed', limits.queueSizeMax)) + 63) & ~63;

/** Bytes of the recovery memory of a device. */
export const recoveryBytes = (queues: number): number => (logAt(queues) + pageBytes - 1) & ~(pageBytes - 1);

/**
 * What a restarted service needs to go on with a device: its state in two slots, switched by one store, and an
 * in-flight log for each queue. A kill between any two stores leaves one complete state.
 */
export class DeviceRecovery implements Closable {
  readonly #memory: RecoveryMemory;
  readonly #words: Uint32Array;
  readonly #queues: number;
  #slot: number;

  /** Memory of another identity, or that makes no sense, starts empty. */
  constructor(memory: RecoveryMemory, identity: Uint8Array, queues: number) {
    this.#memory = memory;
    this.#queues = queues;
    this.#words = new Uint32Array(memory.bytes.buffer, memory.bytes.byteOffset, fileHead.size / 4);
    const head = decode(fileHead, memory.bytes, 0, fileHead.size) as Decoded<typeof fileHead>;
    const ours =
      head.magic === magic &&
      head.version === 1 &&
      head.queues === queues &&
      Buffer.compare(head.identity, identity) === 0;
    this.#slot = ours && (head.current === 1 || head.current === 2) ? head.current : 0;
    if (this.#slot === 0) this.#initialise(identity);
  }

  #initialise(identity: Uint8Array): void {
    this.clear();
    encode(fileHead, { magic, version: 1, current: 0, queues: this.#queues, identity }, this.#memory.bytes);
  }

  /** Forgets state and logs: the device is in reset. */
  clear(): void {
    this.#words[fileHead.at.current / 4] = 0;
    this.#slot = 0;
    for (let i = 0; i < this.#queues; i++) this.resetLog(i);
  }

  /** The log of one queue, for the layout and size the driver chose. */
  log(index: number, layout: RingLayout, size: number): InflightLog {
    const at = logAt(index);
    return openInflightLog(layout, this.#memory.bytes.subarray(at, at + inflightBytes(layout, size)), size);
  }

  /** Forgets the log of one queue, of either layout: both start with the same fields. */
  resetLog(index: number): void {
    this.log(index, 'split', limits.queueSizeMax).reset();
  }

  /** @param kept bytes of the backend, at most `limits.backendMemoryMaxBytes` */
  save(state: DeviceState, kept = new Uint8Array(0)): void {
    const next = this.#slot === 1 ? 2 : 1;
    const to = this.#memory.bytes.subarray(slotAt(next), slotAt(next) + pageBytes);
    const words = new Uint8Array(featureWords * 4);
    for (let i = 0; i < featureWords; i++)
      new DataView(words.buffer).setUint32(i * 4, state.driverFeatures.block(i), true);
    const { status, generation, config, queues } = state;
    encode(
      stateHead,
      { status, generation, features: words, configSize: config.length, queueCount: queues.length },
      to,
    );
    to.set(config, stateHead.size);
    for (const [i, queue] of queues.entries()) {
      encode(queueRecord, { ...queue, enabled: queue.enabled ? 1 : 0 }, to, recordsAt + i * queueRecord.size);
    }
    const padded = new Uint8Array(limits.backendMemoryMaxBytes);
    padded.set(kept);
    encode(keptBytes, { length: kept.length, bytes: padded }, to, keptAt);
    Atomics.store(this.#words, fileHead.at.current / 4, next);
    this.#slot = next;
  }

  /**
   * The saved state of a device that was in use, or undefined. `config` is what the backend says now and becomes part
   * of the state; `savedConfig` is what the driver knew.
   */
  load(
    model: DeviceModel,
    config: Uint8Array,
  ): { state: DeviceState; savedConfig: Uint8Array; kept: Uint8Array<ArrayBuffer> } | undefined {
    if (this.#slot === 0) return undefined;
    const from = this.#memory.bytes.subarray(slotAt(this.#slot), slotAt(this.#slot) + pageBytes);
    const head = decode(stateHead, from, 0, stateHead.size);
    if (head instanceof Malformed || head.queueCount !== this.#queues || head.configSize !== config.length)
      return undefined;
    const view = new DataView(head.features.buffer, head.features.byteOffset);
    const words = Array.from({ length: featureWords }, (_, i) => view.getUint32(i * 4, true));
    const driverFeatures = FeatureSet.fromBlocks(words);
    if (!driverFeatures.isSubsetOf(model.offered)) return undefined;
    const queues = Array.from({ length: this.#queues }, (_, i) => {
      const record = decode(queueRecord, from, recordsAt + i * queueRecord.size, queueRecord.size) as Decoded<
        typeof queueRecord
      >;
      return { ...record, enabled: record.enabled === 1 };
    });
    const savedConfig = from.slice(stateHead.size, stateHead.size + config.length);
    const { status, generation } = head;
    const state = { status, generation, driverFeatures, queues, config, resetting: false, waiting: null };
    const memory = decode(keptBytes, from, keptAt, keptBytes.size) as Decoded<typeof keptBytes>;
    return { state, savedConfig, kept: new Uint8Array(memory.bytes.subarray(0, memory.length)) };
  }

  close(): void {
    this.#memory.close();
  }
}
