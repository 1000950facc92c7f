import { assert } from '../kit/assert.ts';
import { VmsgError } from '../kit/errors.ts';
import { limits } from '../kit/limits.ts';
import type { ForeignFd } from '../libc/fd.ts';
import { type FeatureSet, feature } from '../virtio/features.ts';
import { status } from '../virtio/status.ts';
import { PROTOCOL_FEATURES_BIT, protocolFeature } from './features.ts';
import type { FrontEnd, InflightArea, QueueAddresses } from './front-end.ts';
import type { DeviceDescription } from './negotiation.ts';
import type { RegionDescription } from './regions.ts';

/**
 * Memory of the driver and the file that it is in. The descriptor stays the caller's. It is needed during the call, and,
 * where the back-end takes only whole tables, by later `addRegion` and `removeRegion` too: there it stays open for as
 * long as the region is in use.
 */
export interface DeviceRegion extends RegionDescription {
  readonly fd: number;
}

/** A queue as it is started. Descriptors stay the caller's and are needed during the call only. */
export interface QueueStart extends QueueAddresses {
  readonly index: number;
  /** Entries. */
  readonly size: number;
  /**
   * Where the back-end begins: 0 for new rings, else what `stopQueue` returned. New packed rings begin at
   * `packedRingStart`.
   */
  readonly base: number;
  /** Eventfds. */
  readonly kick: number;
  readonly call: number;
  /** Signalled when the back-end finds the queue broken. */
  readonly error: number;
}

/** Both wrap counters of a packed ring begin at 1. */
export const packedRingStart = 0x8000_8000;

const sameRegion = (a: RegionDescription, b: RegionDescription): boolean =>
  a.guestAddress === b.guestAddress && a.userAddress === b.userAddress && a.size === b.size;

/**
 * The life of one device behind a front-end: features, memory, queues, reset. Calls are made one after the other. A call
 * that rejects may have been carried out in part; `reset`, or a new connection, makes a clean start.
 */
export class VhostDevice {
  readonly description: DeviceDescription;
  readonly #frontEnd: FrontEnd;
  #features: FeatureSet | undefined;
  #regions: DeviceRegion[] = [];
  readonly #started = new Set<number>();
  #status = 0;

  /** @param description from `openDevice` on this front-end */
  constructor(frontEnd: FrontEnd, description: DeviceDescription) {
    this.#frontEnd = frontEnd;
    this.description = description;
  }

  /** What the driver chose; undefined before, and after a reset. */
  get features(): FeatureSet | undefined {
    return this.#features;
  }

  /** Regions that the back-end has. */
  get regions(): readonly RegionDescription[] {
    return this.#regions;
  }

  get startedQueues(): readonly number[] {
    return [...this.#started];
  }

  /**
   * The driver has chosen its features; once before the first queue starts, and again after a reset.
   * @throws VmsgError 'invalid-request' for features that were not offered; 'backend-refused'
   */
  async agree(features: FeatureSet): Promise<void> {
    if (!features.isSubsetOf(this.description.features)) {
      const surplus = features.minus(this.description.features);
      throw new VmsgError('invalid-request', `features that the back-end does not offer: ${surplus.names().join(' ')}`);
    }
    assert(this.#started.size === 0, 'features are chosen before queues start');
    await this.#addStatus(status.ACKNOWLEDGE);
    await this.#addStatus(status.DRIVER);
    const bits = this.description.speaksProtocolFeatures ? [PROTOCOL_FEATURES_BIT] : [];
    await this.#frontEnd.setFeatures(features.with(...bits));
    await this.#addStatus(status.FEATURES_OK);
    if (this.#has(protocolFeature.STATUS) && ((await this.#frontEnd.getStatus()) & status.FEATURES_OK) === 0) {
      throw new VmsgError('backend-refused', 'the back-end does not accept this choice of features');
    }
    this.#features = features;
  }

  /**
   * Makes these regions the whole memory. Where the back-end takes regions one by one only the difference is sent, and
   * memory that stays is not touched; else the whole table is sent again.
   * @throws VmsgError 'limit-reached' for more regions than the back-end takes
   */
  async setMemory(regions: readonly DeviceRegion[]): Promise<void> {
    if (regions.length > this.description.memSlots) {
      const slots = this.description.memSlots;
      throw new VmsgError('limit-reached', `${regions.length} memory regions, the back-end takes ${slots}`);
    }
    if (!this.#has(protocolFeature.CONFIGURE_MEM_SLOTS)) {
      await this.#frontEnd.setMemoryTable(
        regions,
        regions.map((region) => region.fd),
      );
      this.#regions = [...regions];
      return;
    }
    const kept = (list: readonly RegionDescription[], region: RegionDescription): boolean =>
      list.some((each) => sameRegion(each, region));
    for (const region of this.#regions.filter((old) => !kept(regions, old))) await this.removeRegion(region);
    for (const region of regions.filter((each) => !kept(this.#regions, each))) await this.addRegion(region);
  }

  /** Adds to the memory. @throws as `setMemory` */
  async addRegion(region: DeviceRegion): Promise<void> {
    if (!this.#has(protocolFeature.CONFIGURE_MEM_SLOTS)) return this.setMemory([...this.#regions, region]);
    if (this.#regions.length === this.description.memSlots) {
      throw new VmsgError('limit-reached', `the back-end takes ${this.description.memSlots} memory regions`);
    }
    await this.#frontEnd.addRegion(region, region.fd);
    this.#regions.push(region);
  }

  /** Takes from the memory what has the same addresses and size. Nothing of a started queue may be in it. */
  async removeRegion(region: RegionDescription): Promise<void> {
    const rest = this.#regions.filter((each) => !sameRegion(each, region));
    assert(rest.length === this.#regions.length - 1, 'the region is there');
    if (!this.#has(protocolFeature.CONFIGURE_MEM_SLOTS)) return this.setMemory(rest);
    await this.#frontEnd.removeRegion(region);
    this.#regions = rest;
  }

  /** Starts queues whose rings lie in the memory, then tells the back-end that the driver is ready. */
  async startQueues(queues: readonly QueueStart[]): Promise<void> {
    assert(this.#features !== undefined, 'features are chosen before queues start');
    for (const queue of queues) await this.#startQueue(queue);
    await this.#addStatus(status.DRIVER_OK);
  }

  /** One message behind the other: the back-end takes them in order, and a queue runs from its kick on. */
  async #startQueue({ index, size, base, kick, call, error, ...addresses }: QueueStart): Promise<void> {
    const most = this.description.queues ?? limits.vhostUserQueuesMax;
    if (index >= most) throw new VmsgError('invalid-request', `queue ${index}, the back-end has ${most}`);
    assert(!this.#started.has(index), `queue ${index} is started once`);
    const f = this.#frontEnd;
    this.#started.add(index);
    await allOf([
      f.setQueueSize(index, size),
      f.setQueueBase(index, base),
      f.setQueueAddresses(index, addresses),
      f.setError(index, error),
      f.setCall(index, call),
      f.setKick(index, kick),
      ...(this.description.speaksProtocolFeatures ? [f.setQueueEnabled(index, true)] : []),
    ]);
  }

  /**
   * Stops one queue: afterwards the back-end neither looks at its rings nor notifies.
   * @returns `base` for a later start
   */
  async stopQueue(index: number): Promise<number> {
    assert(this.#started.has(index), `queue ${index} is started`);
    const base = await this.#frontEnd.getQueueBase(index);
    this.#started.delete(index);
    return this.#features?.has(feature.RING_PACKED) ? base : base & 0xffff;
  }

  /** Stops every queue that is started. @returns `base` by queue */
  async stopQueues(): Promise<ReadonlyMap<number, number>> {
    const bases = new Map<number, number>();
    for (const index of this.startedQueues) bases.set(index, await this.stopQueue(index));
    return bases;
  }

  /**
   * Back to where `openDevice` left the back-end, but for the memory, which stays. All queues are stopped first, so that
   * nothing of the driver is touched afterwards, whatever the back-end takes a reset for; one that offers neither
   * RESET_DEVICE nor STATUS is told no more than that.
   */
  async reset(): Promise<void> {
    await this.stopQueues();
    if (this.#has(protocolFeature.RESET_DEVICE)) await this.#frontEnd.resetDevice();
    else if (this.#has(protocolFeature.STATUS)) await this.#frontEnd.setStatus(0);
    this.#status = 0;
    this.#features = undefined;
  }

  /** Asks for a log of requests in flight, before queues start. @returns the log and its file, the caller's */
  getInflight(queues: number, queueSize: number): Promise<{ readonly area: InflightArea; readonly fd: ForeignFd }> {
    return this.#frontEnd.getInflight(queues, queueSize);
  }

  /** Gives the back-end the log that it is to go on with, before queues start. */
  setInflight(area: InflightArea, fd: number): Promise<void> {
    return this.#frontEnd.setInflight(area, fd);
  }

  /** @returns the first `bytes` of the configuration space as they are now */
  readConfig(bytes: number): Promise<Uint8Array> {
    return this.#frontEnd.getConfig(0, bytes);
  }

  /** The driver writes a part of the configuration space. */
  writeConfig(offset: number, content: Uint8Array): Promise<void> {
    return this.#frontEnd.setConfig(offset, content);
  }

  #has(bit: number): boolean {
    return this.description.protocolFeatures.has(bit);
  }

  async #addStatus(bit: number): Promise<void> {
    if (!this.#has(protocolFeature.STATUS) || (this.#status & bit) !== 0) return;
    this.#status |= bit;
    await this.#frontEnd.setStatus(this.#status);
  }
}

/** Waits for all, also for those behind one that failed. @throws what the first that failed threw */
async function allOf(promises: readonly Promise<void>[]): Promise<void> {
  for (const result of await Promise.allSettled(promises)) if (result.status === 'rejected') throw result.reason;
}
