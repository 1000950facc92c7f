import type { DeviceLink } from '../../../../device/endpoint.ts';
import type { EnabledQueue, QueueEngine, QueueEngineOwner } from '../../../../device/queue-engine.ts';
import type { RegionWatcher, SharedRegion } from '../../../../device/shared-memory.ts';
import type { Clock, Timer } from '../../../../kit/clock.ts';
import { VmsgError } from '../../../../kit/errors.ts';
import { limits } from '../../../../kit/limits.ts';
import type { Closable } from '../../../../kit/scope.ts';
import type { QueueDescriptors, QueueWay } from '../../../../ports/bus.ts';
import type { QueueStart, VhostDevice } from '../../../../vhost-user/device.ts';
import { FeatureSet, feature } from '../../../../virtio/features.ts';
import { isGrantAddress } from '../../../../virtio-msg/xen-bus.ts';
import type { DataPlane } from '../../../data-plane/data-plane.ts';
import type { Connection } from '../connection.ts';
import type { Program } from './program.ts';
import { DirectQueue, type WakingParts } from './queue.ts';
import { GuestRegions, giveAll, giveOne, type PassedRegion, takeBack } from './regions.ts';
import { QueueWays } from './ways.ts';

/** Features between the driver and the bridge only. */
const ofTheBridge = FeatureSet.of(feature.ACCESS_PLATFORM, feature.RING_RESET, feature.NOTIFICATION_DATA);

export interface DirectQueuesParts extends WakingParts {
  readonly program: Program;
  readonly clock: Clock;
  readonly dataPlane: DataPlane;
  /** What the program is to be told of the configuration space when features are agreed. */
  readonly setConfig: (
    has: (bit: number) => boolean,
  ) => readonly { readonly offset: number; readonly data: Uint8Array }[];
  /** What the guest shares, or the program, rules this way out. */
  readonly unsuited: (why: string) => void;
}

/** Lets a program work on the queues of a device: it has the guest's memory, and the guest's own kicks and calls. */
export class DirectQueues implements QueueEngine, RegionWatcher {
  readonly work = null;
  readonly #program: Program;
  readonly #parts: DirectQueuesParts;
  readonly #owner: QueueEngineOwner;
  readonly #queues = new Map<number, DirectQueue>();
  readonly #ways: QueueWays;
  #link: DeviceLink | undefined;
  #watch: Closable | undefined;
  #regions = new GuestRegions();
  /** The program has the regions of the guest that is there now. */
  #shared = false;
  /** It has memory of that guest, or of one before it. */
  #holds = false;
  /** Queues that the program does not have yet. */
  #prepared: DirectQueue[] = [];
  /** Queues that are not stopped yet. */
  #stopping = 0;
  #watchdog: Timer | undefined;
  /** The device goes, and is not used by another guest. */
  #ending = false;

  constructor(parts: DirectQueuesParts, owner: QueueEngineOwner) {
    this.#parts = parts;
    this.#program = parts.program;
    this.#owner = owner;
    this.#ways = new QueueWays(parts.dataPlane, {
      changed: (index, descriptors) => this.#rewire(index, descriptors),
      afterAll: (then) => this.#afterAll(then),
      lost: (index, reason) => owner.failed(`notifications of queue ${index} are not passed on any more: ${reason}`),
    });
  }

  connect(link: DeviceLink): void {
    this.#forget();
    this.#link = link;
    this.#watch = link.memory.watch(this);
  }

  disconnect(link: DeviceLink, done: () => void): void {
    if (this.#link === link) this.#forget();
    if (!this.#holds) {
      done();
      return;
    }
    // The next guest may be there already; the program has nothing of it.
    this.#holds = false;
    void (this.#ending ? this.#program.retire() : this.#program.renew()).then(done);
  }

  /** The guest has gone. What the program has of it stays there until `disconnect`. */
  #forget(): void {
    this.#watch?.close();
    this.#watch = undefined;
    this.#link = undefined;
    this.#shared = false;
    const regions = this.#regions;
    this.#regions = new GuestRegions();
    this.#afterAll(() => regions.close());
  }

  /** What was asked of the program before may still need it. */
  #afterAll(then: () => void): void {
    void this.#program.do(async () => {}).then(then);
  }

  regionAdded(region: SharedRegion, done: (result: number) => void): void {
    const passed = this.#regions.add(region);
    if (typeof passed === 'string') {
      if (this.#shared) this.#parts.unsuited(passed);
      done(0);
    } else if (!this.#shared) done(0);
    else {
      // Another guest may be there when it is done.
      const regions = this.#regions;
      const give = ({ device }: Connection): Promise<void> =>
        this.#orUnsuited(regions, () => giveOne(device, passed, regions.all));
      void this.#program.do(give).then(() => done(0));
    }
  }

  /** What the program does not take it may take by another way. */
  async #orUnsuited(regions: GuestRegions, share: () => Promise<void>): Promise<void> {
    try {
      await share();
    } catch (error) {
      // One that ended over something else takes it from the next program; and the next guest may share other memory.
      const refused = error instanceof VmsgError && ['backend-refused', 'limit-reached'].includes(error.code);
      if (refused && regions === this.#regions)
        this.#parts.unsuited(`the program does not take the guest's memory: ${error.message}`);
      throw error;
    }
  }

  regionRemoved(area: number, done: (result: number) => void): void {
    const regions = this.#regions;
    const taken = regions.take(area);
    if (taken === undefined) {
      done(0);
      return;
    }
    void this.#program
      .do((connection) => this.#takeBack(connection, taken, regions))
      .then(() => {
        taken.handle.close();
        done(0);
      });
  }

  /** Nothing is under way in memory that goes: a program may unmap what it reads or writes just then. */
  async #takeBack(connection: Connection, region: PassedRegion, regions: GuestRegions): Promise<void> {
    const running = [...this.#queues.values()].filter(({ started }) => started);
    const bases = await this.#halt(connection, running);
    await takeBack(connection.device, region, regions.all);
    await this.#goOn(connection, bases);
  }

  /** Starts again what was halted, and what nobody has stopped for good meanwhile. */
  async #goOn({ device }: Connection, bases: ReadonlyMap<DirectQueue, number>): Promise<void> {
    const starts: QueueStart[] = [];
    for (const [queue, base] of bases) {
      queue.started = this.#queues.get(queue.index) === queue;
      if (queue.started) starts.push(queue.startAt(base));
    }
    if (starts.length === 0) return;
    await device.startQueues(starts);
    // Either side may have missed a notification while the queue stood.
    for (const queue of bases.keys()) if (queue.started) queue.notifyBoth();
  }

  activate(features: FeatureSet): void {
    const { problem, all: regions } = this.#regions;
    if (problem !== undefined) {
      this.#parts.unsuited(problem);
      return;
    }
    this.#shared = true;
    this.#holds = true;
    const shared = this.#regions;
    const prepared: DirectQueue[] = [];
    this.#prepared = prepared;
    void this.#program.do(async ({ device }) => {
      await device.agree(features.minus(ofTheBridge).minus(this.#program.description.added));
      // Back-ends do not take a table without regions; a guest that shares none has no queue.
      if (regions.length > 0) await this.#orUnsuited(shared, () => giveAll(device, regions));
      for (const { offset, data } of this.#parts.setConfig((bit) => features.has(bit)))
        await device.writeConfig(offset, data);
      await this.#startPrepared(device, prepared);
    });
    this.#watchProgress();
  }

  start(queue: EnabledQueue): void {
    const link = this.#link;
    if (link === undefined) return;
    const { index } = queue;
    const events = {
      used: () => this.#link?.used(index),
      broken: () => this.#owner.failed(`queue ${index}: the program says that it is broken`),
    };
    if (isGrantAddress(Number(queue.descAddr >> 32n))) {
      this.#parts.unsuited('the guest grants its buffers one by one; a program needs a pool');
      return;
    }
    const opened = DirectQueue.open(queue, link.space, this.#parts, events);
    if (typeof opened === 'string') {
      this.#owner.failed(`queue ${index}: ${opened}`);
      return;
    }
    opened.descriptors = this.#ways.descriptorsOf(index);
    this.#queues.set(index, opened);
    const prepared = this.#prepared;
    prepared.push(opened);
    void this.#program.do(({ device }) => this.#startPrepared(device, prepared));
  }

  /** @param prepared for one activation of the device: a later one has queues of its own */
  async #startPrepared(device: VhostDevice, prepared: DirectQueue[]): Promise<void> {
    // Those that were stopped before they began are not there any more.
    const queues = prepared.splice(0).filter((queue) => this.#queues.get(queue.index) === queue);
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
    this.#stopping += 1;
    const stopped = this.#program.do(async (connection) => {
      if (queue.started) await this.#halt(connection, [queue]);
    });
    void stopped.then(() => {
      this.#stopping -= 1;
      queue.close();
      done();
    });
  }

  /**
   * Its answer is no proof that the program has let go of the queue: most tell where they stopped to take requests, and
   * go on with those that they have.
   * @returns where to go on
   */
  async #halt({ device, scope }: Connection, queues: readonly DirectQueue[]): Promise<Map<DirectQueue, number>> {
    const bases = new Map<DirectQueue, number>();
    for (const queue of queues) bases.set(queue, await device.stopQueue(queue.index));
    const { clock } = this.#parts;
    const end = clock.nowMs() + limits.vhostUserDrainMs;
    const isBusy = (): boolean => queues.some((queue) => queue.usedIndex !== bases.get(queue));
    for (let pauseMs = 1; isBusy(); pauseMs = Math.min(2 * pauseMs, 50)) {
      if (scope.closed) throw new VmsgError('backend-lost', 'it has gone');
      if (clock.nowMs() > end) throw new VmsgError('timeout', 'it does not complete what it has taken');
      await new Promise<void>((resolve) => {
        clock.after(pauseMs, resolve);
      });
    }
    return bases;
  }

  halt(): void {
    for (const index of [...this.#queues.keys()]) this.stop(index, () => {});
  }

  stopAll(done: () => void): void {
    for (const index of [...this.#queues.keys()]) this.stop(index, () => {});
    // A device whose queues have stopped is not in the middle of a reset, whatever else the program has to do.
    if (this.#stopping === 0) done();
    else this.#afterAll(done);
  }

  drainAll(done: () => void): void {
    this.#ending = true;
    // One that is not there yet has nothing of a guest.
    if (this.#program.isOpening) void this.#program.retire();
    // Before the driver hears that its device has gone, and uses the memory again.
    this.stopAll(() => void this.#program.retire().then(done));
  }

  deactivate(): void {
    this.#watchdog?.cancel();
    void this.#program.do(async ({ device }) => {
      if (device.features !== undefined) await device.reset();
    });
  }

  useWay(index: number, way: QueueWay | undefined): number | Promise<number> {
    return this.#ways.use(index, way);
  }

  #rewire(index: number, descriptors: QueueDescriptors | undefined): void {
    const queue = this.#queues.get(index);
    if (queue === undefined) return;
    queue.descriptors = descriptors;
    void this.#program.do((connection) => this.#restart(connection, queue));
  }

  /** With other descriptors. */
  async #restart(connection: Connection, queue: DirectQueue): Promise<void> {
    if (!queue.started || this.#queues.get(queue.index) !== queue) return;
    await this.#goOn(connection, await this.#halt(connection, [queue]));
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
    this.#regions.close();
    for (const queue of this.#queues.values()) queue.close();
    this.#queues.clear();
    this.#ways.close();
  }
}

const isThere = async ({ frontEnd }: Connection): Promise<void> => void (await frontEnd.getFeatures());
