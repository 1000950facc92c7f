import type { Clock, Timer } from '../../../kit/clock.ts';
import { VmsgError } from '../../../kit/errors.ts';
import { limits } from '../../../kit/limits.ts';
import type { Closable, Scope } from '../../../kit/scope.ts';
import { createEventfd, drainEventfd, signalSharedEventfd } from '../../../libc/eventfd.ts';
import type { Fd } from '../../../libc/fd.ts';
import type { QueueStart, VhostDevice } from '../../../vhost-user/device.ts';
import { FeatureSet, feature, isDeviceBit } from '../../../virtio/features.ts';
import type { RingAddresses } from '../../../virtio/queue.ts';
import { type BounceMemory, memfdBounce } from '../../shadow/bounce-memory.ts';
import { bounceArea, ShadowMemory } from '../../shadow/shadow-memory.ts';
import { type Connection, type ConnectionEvents, type ConnectionParts, openConnection } from './connection.ts';
import type { ServedDescription } from './describe.ts';

/** What the rings towards the back-end use when they may. */
const wantedOfRings = FeatureSet.of(feature.INDIRECT_DESC, feature.EVENT_IDX);
const required = FeatureSet.of(feature.VERSION_1);
/** One connection to a back-end, with memory of ours that it works on. */
export class Session implements Closable {
  readonly description: ServedDescription;
  readonly memory: ShadowMemory;
  /** Requests were put into the memory. */
  isUsed = false;
  /** The back-end has completed some. */
  isProven = false;
  readonly #clock: Clock;
  readonly #opened: Connection;
  readonly #bounce: BounceMemory;
  readonly #kicks: readonly Fd[];
  readonly #calls: readonly Fd[];
  readonly #error: Fd;
  /** Queues to start together. */
  #prepared: QueueStart[] = [];
  #running = false;
  #closed = false;
  #watchdog: Timer | undefined;
  /** Something was completed since the watchdog looked. */
  #moves = false;

  private constructor(
    { poller, clock }: ConnectionParts,
    events: ConnectionEvents,
    opened: Connection,
    bounce: BounceMemory,
  ) {
    const { scope, description } = opened;
    this.#clock = clock;
    this.#opened = opened;
    this.#bounce = bounce;
    this.description = description;
    const queues = Array.from({ length: description.queues }, (_, queue) => queue);
    this.memory = new ShadowMemory(
      bounce.bytes,
      queues.map(() => limits.shadowRingEntries),
    );
    this.#kicks = queues.map(() => scope.own(createEventfd()));
    this.#calls = queues.map(() => scope.own(createEventfd()));
    this.#error = scope.own(createEventfd());
    const watch = (fd: Fd, signalled: () => void): void => {
      const onReadable = (): void => {
        if (drainEventfd(fd.number)) signalled();
      };
      scope.own(poller.watch(fd.number, onReadable));
    };
    const used = (queue: number): void => {
      this.#moves = true;
      this.isProven = true;
      events.used(queue);
    };
    for (const queue of queues) watch(this.#calls[queue]!, () => used(queue));
    watch(this.#error, () => events.broken());
  }

  /**
   * Connects, learns what the back-end serves, and shares memory with it.
   * @throws VmsgError as `openConnection`
   */
  static open(parts: ConnectionParts, events: ConnectionEvents, opening: Scope): Promise<Session> {
    return openConnection(parts, events, opening, async (connection, stillThere) => {
      const bounce = await share(connection.device);
      try {
        stillThere();
        return new Session(parts, events, connection, bounce);
      } catch (error) {
        bounce.close();
        throw error;
      }
    });
  }

  /**
   * After it the back-end touches no memory, and has what it had after `open`.
   * @throws VmsgError timeout: requests in flight do not come to an end; else as the back-end answers
   */
  async reset(): Promise<void> {
    this.#watchdog?.cancel();
    const { device } = this.#opened;
    for (const queue of device.startedQueues) await this.stopQueue(queue);
    await device.reset();
    this.#prepared = [];
    this.#running = false;
  }

  /** @param has what the driver has agreed on. @returns all that are in use. @throws VmsgError */
  async agree(has: (bit: number) => boolean): Promise<FeatureSet> {
    this.isUsed = true;
    const { features, added } = this.description;
    const deviceBits = features.bits().filter((bit) => isDeviceBit(bit) && has(bit));
    const chosen = required.or(features.and(wantedOfRings)).with(...deviceBits);
    await this.#opened.device.agree(chosen.minus(added));
    return chosen;
  }

  /** Queues are started together by `start`; one that was stopped alone starts at once. @throws VmsgError */
  async enableQueue(index: number, size: number, { descAddr, driverAddr, deviceAddr }: RingAddresses): Promise<void> {
    if (this.#closed) throw closedError();
    const [kick, call, error] = [this.#kicks[index]!.number, this.#calls[index]!.number, this.#error.number];
    const addresses = { desc: descAddr, driver: driverAddr, device: deviceAddr };
    this.#prepared.push({ index, size, base: 0, kick, call, error, ...addresses });
    if (this.#running) await this.start();
  }

  /** @throws VmsgError */
  async start(): Promise<void> {
    if (this.#closed) throw closedError();
    const queues = this.#prepared;
    this.#prepared = [];
    this.#running = true;
    await this.#opened.device.startQueues(queues);
    this.#watch();
  }

  /**
   * After it the back-end does not touch the queue. Its answer is no proof of that: most tell where they stopped to take
   * requests, and go on with those that they have.
   * @throws VmsgError as `reset`
   */
  async stopQueue(index: number): Promise<void> {
    const taken = (await this.#opened.device.stopQueue(index)) & 0xffff;
    const end = this.#clock.nowMs() + limits.vhostUserDrainMs;
    for (
      let pauseMs = 1;
      !this.#closed && this.memory.usedIndex(index) !== taken;
      pauseMs = Math.min(2 * pauseMs, 50)
    ) {
      if (this.#clock.nowMs() > end) throw new VmsgError('timeout', 'the back-end does not complete what it has taken');
      await new Promise<void>((resolve) => {
        this.#clock.after(pauseMs, resolve);
      });
    }
    if (this.#closed) throw closedError();
  }

  kick(queue: number): void {
    if (!this.#closed) signalSharedEventfd(this.#kicks[queue]!.number);
  }

  /** A back-end that completes nothing for a while is asked something: no answer ends the connection. */
  #watch(): void {
    this.#watchdog?.cancel();
    this.#watchdog = this.#clock.after(limits.vhostUserWatchdogMs, () => {
      const waits = this.#kicks.some((_, queue) => this.memory.isBusy(queue));
      // The end of the connection is told as such.
      if (waits && !this.#moves) this.#opened.frontEnd.getFeatures().catch(() => {});
      this.#moves = false;
      if (!this.#closed) this.#watch();
    });
  }

  /** @throws VmsgError */
  async readConfig(offset: number, length: number): Promise<Uint8Array> {
    const { config: known, added } = this.description;
    // With features that we add the configuration is ours too.
    const config = added.bits().length > 0 ? known : await this.#opened.device.readConfig(known.length);
    return config.subarray(offset, offset + length);
  }

  /** @throws VmsgError */
  writeConfig(offset: number, data: Uint8Array): Promise<void> {
    return this.#opened.device.writeConfig(offset, data);
  }

  /** The memory stays, for who has still to look at it. */
  disconnect(): void {
    this.#closed = true;
    this.#watchdog?.cancel();
    this.#opened.scope.close();
  }

  close(): void {
    this.disconnect();
    this.#bounce.close();
  }
}

const closedError = (): VmsgError => new VmsgError('backend-lost', 'the connection to the back-end has ended');

async function share(device: VhostDevice): Promise<BounceMemory> {
  const bounce = memfdBounce(limits.shadowMemoryBytes);
  const address = BigInt(bounceArea) << 48n;
  const region = { guestAddress: address, userAddress: address, size: BigInt(bounce.bytes.length), mmapOffset: 0n };
  try {
    let shared: Promise<void> | undefined;
    bounce.name((fd) => {
      shared = device.setMemory([{ ...region, fd }]);
      return fd;
    });
    await shared;
    bounce.named();
    return bounce;
  } catch (error) {
    bounce.close();
    throw error;
  }
}
