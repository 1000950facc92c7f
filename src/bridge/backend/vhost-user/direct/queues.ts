import type { DeviceLink } from '../../../../device/endpoint.ts';
import type { EnabledQueue, QueueEngine, QueueEngineOwner } from '../../../../device/queue-engine.ts';
import type { RegionWatcher, SharedRegion } from '../../../../device/shared-memory.ts';
import type { Clock, Timer } from '../../../../kit/clock.ts';
import type { ErrnoName } from '../../../../kit/errno.ts';
import { VmsgError } from '../../../../kit/errors.ts';
import { limits } from '../../../../kit/limits.ts';
import { type Closable, Scope } from '../../../../kit/scope.ts';
import type { Poller } from '../../../../libc/poll.ts';
import type { HandedMemory, QueueDescriptors } from '../../../../ports/bus.ts';
import type { DeviceRegion, VhostDevice } from '../../../../vhost-user/device.ts';
import { protocolFeature } from '../../../../vhost-user/features.ts';
import type { RegionDescription } from '../../../../vhost-user/regions.ts';
import { FeatureSet, feature } from '../../../../virtio/features.ts';
import { isGrantAddress } from '../../../../virtio-msg/xen-bus.ts';
import type { Connection } from '../connection.ts';
import type { Program } from './program.ts';
import { DirectQueue } from './queue.ts';

/** Features between the driver and the bridge only. */
const ofTheBridge = FeatureSet.of(feature.ACCESS_PLATFORM, feature.RING_RESET, feature.NOTIFICATION_DATA);

export interface DirectQueuesParts {
  readonly program: Program;
  readonly poller: Poller;
  readonly clock: Clock;
  /** What the guest shares, or the program, rules this way out. */
  readonly unsuited: (why: string) => void;
}

/** A region, and how a descriptor for it is opened. */
interface HandedRegion extends Omit<RegionDescription, 'mmapOffset'> {
  readonly handOver: () => HandedMemory | ErrnoName;
}

/** Lets a program work on the queues of a device: it has the guest's memory, and the guest's own kicks and calls. */
export class DirectQueues implements QueueEngine, RegionWatcher {
  readonly work = null;
  readonly #program: Program;
  readonly #parts: DirectQueuesParts;
  readonly #owner: QueueEngineOwner;
  readonly #queues = new Map<number, DirectQueue>();
  readonly #descriptors = new Map<number, QueueDescriptors>();
  #link: DeviceLink | undefined;
  #watch: Closable | undefined;
  /** What the guest shares, by area. */
  #regions = new Map<number, HandedRegion>();
  /** Why the program cannot have something that the guest shares. */
  #unreachable: string | undefined;
  /** The program has the regions. */
  #shared = false;
  /** Queues that the program does not have yet. */
  #prepared: DirectQueue[] = [];
  #watchdog: Timer | undefined;

  constructor(parts: DirectQueuesParts, owner: QueueEngineOwner) {
    this.#parts = parts;
    this.#program = parts.program;
    this.#owner = owner;
  }

  connect(link: DeviceLink): void {
    this.#watch?.close();
    this.#link = link;
    this.#regions = new Map();
    this.#unreachable = undefined;
    this.#watch = link.memory.watch(this);
  }

  disconnect(link: DeviceLink, done: () => void): void {
    if (this.#link === link) {
      this.#watch?.close();
      this.#watch = undefined;
      this.#link = undefined;
    }
    if (this.#shared) void this.#renew().then(done);
    else done();
  }

  /** Takes the guest's memory from the program. */
  async #renew(): Promise<void> {
    this.#shared = false;
    await this.#program.renew();
  }

  regionAdded(region: SharedRegion, done: (result: number) => void): void {
    const passed = passedOn(region);
    if (typeof passed === 'string') {
      this.#unreachable = passed;
      if (this.#shared) this.#parts.unsuited(passed);
      done(0);
      return;
    }
    this.#regions.set(region.area, passed);
    if (this.#shared) void this.#program.do(({ device }) => this.#add(device, passed)).then(() => done(0));
    else done(0);
  }

  async #add(device: VhostDevice, region: HandedRegion): Promise<void> {
    if (takesSingle(device)) await this.#give([region], ([only]) => device.addRegion(only!));
    else await this.#giveAll(device);
  }

  async #giveAll(device: VhostDevice): Promise<void> {
    await this.#give([...this.#regions.values()], (regions) => device.setMemory(regions));
  }

  /** What the program does not take it may take by another way. */
  async #give(
    regions: readonly HandedRegion[],
    send: (regions: readonly DeviceRegion[]) => Promise<void>,
  ): Promise<void> {
    const scope = new Scope();
    try {
      const opened = regions.map(({ handOver, ...region }) => {
        const handed = handOver();
        if (typeof handed === 'string') throw new VmsgError('system-call', `it cannot be handed over: ${handed}`);
        const { fd, offset } = scope.own(handed);
        return { ...region, fd, mmapOffset: offset };
      });
      await send(opened);
    } catch (error) {
      if (error instanceof VmsgError)
        this.#parts.unsuited(`the program does not take the guest's memory: ${error.message}`);
      throw error;
    } finally {
      // It has copies of the descriptors. Grants stay mapped as long as there is one.
      scope.close();
    }
  }

  regionRemoved(area: number, done: (result: number) => void): void {
    const region = this.#regions.get(area);
    this.#regions.delete(area);
    if (region === undefined || !this.#shared) {
      done(0);
      return;
    }
    void this.#program.do(({ device }) => this.#remove(device, region)).then(() => done(0));
  }

  async #remove(device: VhostDevice, region: HandedRegion): Promise<void> {
    // A new program may have been started meanwhile.
    if (!device.regions.some(({ guestAddress }) => guestAddress === region.guestAddress)) return;
    if (takesSingle(device)) await device.removeRegion({ ...region, mmapOffset: 0n });
    else if (this.#regions.size > 0) await this.#giveAll(device);
    // Back-ends do not take a table without regions.
    else throw new VmsgError('backend-lost', 'the guest took its memory back');
  }

  activate(features: FeatureSet): void {
    if (this.#unreachable !== undefined) {
      this.#parts.unsuited(this.#unreachable);
      return;
    }
    this.#shared = true;
    void this.#program.do(async ({ device }) => {
      await device.agree(features.minus(ofTheBridge).minus(this.#program.description.added));
      await this.#giveAll(device);
      await this.#startPrepared(device);
    });
    this.#watchProgress();
  }

  start(queue: EnabledQueue): void {
    const link = this.#link;
    if (link === undefined) return;
    const { index } = queue;
    const { poller } = this.#parts;
    const events = {
      used: () => this.#link?.used(index),
      broken: () => this.#owner.failed(`queue ${index}: the program says that it is broken`),
    };
    if (isGrantAddress(Number(queue.descAddr >> 32n))) {
      this.#parts.unsuited('the guest grants its buffers one by one; a program needs a pool');
      return;
    }
    const opened = DirectQueue.open(queue, link.space, poller, events);
    if (typeof opened === 'string') {
      this.#owner.failed(`queue ${index}: ${opened}`);
      return;
    }
    opened.descriptors = this.#descriptors.get(index);
    this.#queues.set(index, opened);
    this.#prepared.push(opened);
    void this.#program.do(({ device }) => this.#startPrepared(device));
  }

  async #startPrepared(device: VhostDevice): Promise<void> {
    // Those that were stopped before they began are not there any more.
    const queues = this.#prepared.splice(0).filter((queue) => this.#queues.get(queue.index) === queue);
    if (queues.length === 0) return;
    for (const queue of queues) queue.started = true;
    await device.startQueues(queues.map((queue) => queue.startAt(0)));
    // What the driver did before is not kicked for again.
    for (const queue of queues) queue.kick();
  }

  kick(index: number): boolean {
    const queue = this.#queues.get(index);
    queue?.kick();
    return queue !== undefined;
  }

  inFlight(index: number): number {
    return this.#queues.get(index)?.inFlight ?? 0;
  }

  stop(index: number, done: () => void): void {
    const queue = this.#queues.get(index);
    if (queue === undefined) {
      done();
      return;
    }
    this.#queues.delete(index);
    const stopped = this.#program.do(async ({ device }) => {
      if (queue.started) await this.#halt(device, queue);
    });
    void stopped.then(() => {
      queue.close();
      done();
    });
  }

  /**
   * Its answer is no proof that the program has let go of the queue: most tell where they stopped to take requests, and
   * go on with those that they have.
   * @returns where to go on
   */
  async #halt(device: VhostDevice, queue: DirectQueue): Promise<number> {
    const base = await device.stopQueue(queue.index);
    const { clock } = this.#parts;
    const end = clock.nowMs() + limits.vhostUserDrainMs;
    for (let pauseMs = 1; queue.usedIndex !== base; pauseMs = Math.min(2 * pauseMs, 50)) {
      if (clock.nowMs() > end) throw new VmsgError('timeout', 'it does not complete what it has taken');
      await new Promise<void>((resolve) => {
        clock.after(pauseMs, resolve);
      });
    }
    return base;
  }

  halt(): void {
    for (const index of [...this.#queues.keys()]) this.stop(index, () => {});
  }

  stopAll(done: () => void): void {
    for (const index of [...this.#queues.keys()]) this.stop(index, () => {});
    // Also behind what is under way.
    void this.#program.do(async () => {}).then(done);
  }

  drainAll(done: () => void): void {
    this.stopAll(done);
  }

  deactivate(): void {
    this.#watchdog?.cancel();
    void this.#program.do(async ({ device }) => {
      if (device.features !== undefined) await device.reset();
    });
  }

  useDescriptors(index: number, descriptors: QueueDescriptors | undefined): void {
    const before = this.#descriptors.get(index);
    if (descriptors === undefined) this.#descriptors.delete(index);
    else this.#descriptors.set(index, descriptors);
    const queue = this.#queues.get(index);
    if (queue === undefined) {
      closeBoth(before);
      return;
    }
    queue.descriptors = descriptors;
    void this.#program.do(({ device }) => this.#restart(device, queue)).then(() => closeBoth(before));
  }

  /** With other descriptors. */
  async #restart(device: VhostDevice, queue: DirectQueue): Promise<void> {
    if (!queue.started || this.#queues.get(queue.index) !== queue) return;
    await device.startQueues([queue.startAt(await this.#halt(device, queue))]);
    queue.kick();
    this.#link?.used(queue.index);
  }

  /** A program that completes nothing for a while is asked something: no answer ends it. */
  #watchProgress(): void {
    const before = new Map([...this.#queues].map(([index, queue]) => [index, queue.usedIndex]));
    this.#watchdog?.cancel();
    this.#watchdog = this.#parts.clock.after(limits.vhostUserWatchdogMs, () => {
      const stands = ([index, queue]: [number, DirectQueue]): boolean =>
        queue.inFlight > 0 && before.get(index) === queue.usedIndex;
      if ([...this.#queues].some(stands)) void this.#program.do(isThere);
      this.#watchProgress();
    });
  }

  /** Nothing of a guest is used any more; the program has ended. */
  close(): void {
    this.#watchdog?.cancel();
    this.#watch?.close();
    for (const queue of this.#queues.values()) queue.close();
    this.#queues.clear();
    for (const descriptors of this.#descriptors.values()) closeBoth(descriptors);
    this.#descriptors.clear();
  }
}

const isThere = async ({ frontEnd }: Connection): Promise<void> => void (await frontEnd.getFeatures());

const takesSingle = ({ description }: VhostDevice): boolean =>
  description.protocolFeatures.has(protocolFeature.CONFIGURE_MEM_SLOTS);

function closeBoth(descriptors: QueueDescriptors | undefined): void {
  descriptors?.kick.close();
  descriptors?.call.close();
}

/** @returns why a program cannot have it */
function passedOn({ area, readOnly, memory, foreign }: SharedRegion): HandedRegion | string {
  if (foreign !== undefined) return `area ${area} of the guest is for domain ${foreign.domid}`;
  const { handOver, bytes } = memory;
  if (readOnly) return `area ${area} of the guest is read-only`;
  if (handOver === undefined) return `area ${area} of the guest cannot be handed over`;
  const address = BigInt(area) << 48n;
  // Nothing of ours tells where memory is mapped here: user addresses are those of the bus.
  return { guestAddress: address, userAddress: address, size: BigInt(bytes.length), handOver };
}
