import { feature } from '../../src/virtio/features.ts';
import { ringBytes, ringLayout } from '../../src/virtio/geometry.ts';
import { type BufferRange, QueueFault } from '../../src/virtio/queue.ts';
import { openDriverQueue, type RingDriverQueue } from '../../src/virtio/rings.ts';
import { status } from '../../src/virtio/status.ts';
import { setVqueueFlags, vqueueEnabled } from '../../src/virtio-msg/transport-messages.ts';
import { Aborted, running, SimDevice, stuckAfterMs } from './sim-device.ts';
import type { SimDeviceDriver, SimGuest } from './sim-guest.ts';
import { SimMemory, type SimSlot } from './sim-memory.ts';

/** A request of a device driver on its queue. */
export interface SimIo {
  readonly slot: SimSlot;
  readonly issuedMs: number;
  /** Whether `writtenBytes` and the memory are as they have to be; says what is wrong. */
  complete(writtenBytes: number): string | undefined;
  /** Nobody will tell how it ended. */
  abandon(): void;
}

export interface SimChain {
  readonly io: SimIo;
  readonly readable: readonly BufferRange[];
  readonly writable: readonly BufferRange[];
}

/** The life of one device with one queue under a well-behaved driver: set-up, requests, resets, resuming. */
export abstract class SimQueueDriver extends SimDevice implements SimDeviceDriver {
  protected readonly memory: SimMemory;
  /** Issues nothing new. */
  quiet = false;
  #draining = false;
  completed = 0;
  resets = 0;
  queueResets = 0;
  resumes = 0;
  #phase: 'starting' | 'running' | 'queue-reset' | 'gone' = 'starting';
  #queue: RingDriverQueue | undefined;
  #queueSize = 0;
  readonly #outstanding = new Map<number, SimIo>();
  #kick: { kind: 'kick'; listener: (() => void) | undefined; pending: boolean } | undefined;
  #wantsSignals = false;
  #reconnections = 0;
  #isResuming = false;
  #endServing: (() => void) | undefined;
  #unpublished = false;

  constructor(guest: SimGuest, deviceNumber: number) {
    super(guest, deviceNumber);
    this.memory = new SimMemory(guest, deviceNumber);
    void this.#life();
  }

  /** The device was reset: nothing that was issued before happens any more. */
  protected abstract onReset(): void;
  protected abstract checkConfig(): Promise<string | undefined>;
  /** A request in this slot, or undefined for none now. */
  protected abstract next(slot: SimSlot): SimChain | undefined;

  get isIdle(): boolean {
    return this.#phase === 'running' && this.#outstanding.size === 0;
  }

  get isGone(): boolean {
    return this.#phase === 'gone';
  }

  describe(): string {
    return `${this.deviceNumber} ${this.#phase} with ${this.#outstanding.size} requests`;
  }

  /** Memory that was taken back from the service has changed. */
  get wasTrespassed(): boolean {
    return this.memory.wasTrespassed();
  }

  async #life(): Promise<void> {
    const { random } = this.guest.loop;
    while (!this.isGone) {
      const before = this.disturbances;
      try {
        this.#phase = 'starting';
        await this.memory.share();
        await this.#start();
        await this.#serve();
      } catch (error) {
        if (!(error instanceof Aborted)) throw error;
        this.guest.loop.log(`${this.name}: ${error.message}`);
        if (this.disturbances === before && !this.isGone) this.fault(`set-up failed: ${error.message}`);
        await this.sleep(5 + random.below(50));
      }
    }
  }

  async #reset(): Promise<void> {
    await this.resetDevice();
    this.#abandonAll();
    this.onReset();
    this.memory.scribble();
    this.#kick = undefined;
    this.resets += 1;
  }

  #abandonAll(): void {
    for (const io of this.#outstanding.values()) {
      io.abandon();
      this.memory.give(io.slot);
    }
    this.#outstanding.clear();
    this.#queue = undefined;
  }

  /** virtio 1.3, 3.1.1. */
  async #start(): Promise<void> {
    const { random } = this.guest.loop;
    const reconnections = this.#reconnections;
    await this.#reset();
    await this.negotiate();
    const config = await this.checkConfig();
    this.require(config === undefined, config ?? '');
    await this.#enableQueue();
    this.#wantsSignals = random.chance(0.3);
    await this.#wire();
    this.require((await this.setStatus(running)) === running, 'DRIVER_OK was refused');
    this.#phase = 'running';
    this.guest.loop.log(`${this.name}: runs`);
    if (this.#reconnections !== reconnections) this.#notify();
  }

  async #enableQueue(): Promise<void> {
    const { random } = this.guest.loop;
    const found = await this.ask({ name: 'GET_VQUEUE', body: { index: 0 } });
    const possible = this.features.has(feature.RING_PACKED) ? [4, 5, 7, 16, 61, 256] : [2, 4, 8, 16, 64, 256];
    const sizes = possible.filter((size) => size >= 4 && size <= (found.maxSize as number));
    this.require(sizes.length > 0, `queues of ${found.maxSize} entries`);
    this.#queueSize = random.pick(sizes);
    this.#openQueue();
    const { descAddr, driverAddr, deviceAddr } = this.memory;
    const setup = { index: 0, size: this.#queueSize, descAddr, driverAddr, deviceAddr };
    await this.ask({ name: 'SET_VQUEUE', body: { ...setup, flags: setVqueueFlags.enable, reserved: 0 } });
    const now = await this.ask({ name: 'GET_VQUEUE', body: { index: 0 } });
    const same = now.size === setup.size && now.descAddr === descAddr && now.flags === vqueueEnabled;
    this.require(same, `SET_VQUEUE gave size ${now.size} for ${setup.size}, flags ${now.flags}`);
  }

  #openQueue(): void {
    const { descAddr, driverAddr, deviceAddr } = this.memory;
    const bytes = ringBytes(ringLayout(this.features), this.#queueSize);
    this.#queue = openDriverQueue({
      size: this.#queueSize,
      features: this.features,
      descAddr,
      driverAddr,
      deviceAddr,
      memory: this.memory.ringParts(bytes),
    });
  }

  /** Hands over kick and call, when this driver wants them. */
  async #wire(): Promise<void> {
    if (!this.#wantsSignals) return;
    const kick = { kind: 'kick' as const, listener: undefined, pending: false };
    const call = { kind: 'call' as const, ring: () => this.used(0) };
    const references = { kick: this.guest.regions.reference(kick), call: this.guest.regions.reference(call) };
    const body = { device: this.deviceNumber, flags: 3, queue: 0, ...references };
    const outcome = await this.guest.request(0, { kind: 'request', name: 'QUEUE_NOTIFY', body });
    if (outcome.kind !== 'response' || this.isGone) this.disturbed();
    this.require(!this.isGone && outcome.kind === 'response' && outcome.body.errno === 0, 'QUEUE_NOTIFY was refused');
    this.#kick = kick;
  }

  #notify(): void {
    if (this.#kick?.listener !== undefined) this.#kick.listener();
    else this.guest.notify(this.deviceNumber, 0);
  }

  /** Issues requests until the device has to be set up anew. */
  async #serve(): Promise<void> {
    const { loop } = this.guest;
    let ended = false;
    const end = new Promise<void>((resolve) => {
      this.#endServing = () => {
        ended = true;
        resolve();
      };
    });
    let pauseMs = 1;
    while (!ended && !this.isGone) {
      const before = this.completed;
      this.#issue(1 + loop.random.below(6));
      await this.#sometimes();
      this.#checkStuck();
      await Promise.race([end, this.sleep(pauseMs * (loop.random.below(100) / 50))]);
      pauseMs = this.completed > before ? 1 : Math.min(pauseMs * 1.5, 400);
    }
  }

  #checkStuck(): void {
    for (const io of this.#outstanding.values()) {
      const since = Math.max(io.issuedMs, this.lastDisturbanceMs);
      if (this.guest.isConnected && this.guest.loop.nowMs - since > stuckAfterMs) {
        if (this.guest.noisy) this.end();
        else this.fault(`a request of ${io.issuedMs.toFixed(2)} ms is not completed`);
      }
    }
  }

  /** What drivers do beside requests. */
  async #sometimes(): Promise<void> {
    const { random } = this.guest.loop;
    const choice = random.below(this.quiet ? 1000 : 150);
    if (choice === 0) this.end();
    else if (choice === 1) await this.#resetQueue();
    else if (choice === 2) await this.#status();
    else if (choice === 6) await this.#burst();
    else if (choice === 3) await this.#drain();
    else if (choice === 4) await this.memory.extend();
    else if (choice === 5 && (await this.memory.shrink(random.chance(0.5))) === 'busy') this.end();
  }

  /** Waits for everything that is under way: with nothing else going on, no wake-up may be missing. */
  async #drain(): Promise<void> {
    this.#draining = true;
    let pauseMs = 1;
    while (this.#outstanding.size > 0 && this.#phase === 'running' && this.guest.loop.violation === undefined) {
      this.#checkStuck();
      await this.sleep(pauseMs);
      pauseMs = Math.min(pauseMs * 2, 2000);
    }
    this.#draining = false;
  }

  async #status(): Promise<void> {
    // Whether the device was kept is being found out.
    if (this.#isResuming) return;
    try {
      const before = this.disturbances;
      const found = await this.getStatus();
      if (this.disturbances === before && found !== running) this.fault(`status ${found} while it is in use`);
    } catch (error) {
      if (!(error instanceof Aborted)) throw error;
    }
  }

  /** Many requests at a time, and nothing else of this driver until all are answered. */
  async #burst(): Promise<void> {
    const ping = (data: number) => this.guest.request(0, { kind: 'request', name: 'PING', body: { data } });
    const numbers = Array.from({ length: 2 + this.guest.loop.random.below(12) }, (_, i) => i);
    for (const [i, outcome] of (await Promise.all(numbers.map(ping))).entries()) {
      if (outcome.kind === 'response' && outcome.body.data !== i) this.fault('PING does not give back what was sent');
    }
  }

  /** virtio 1.3, 2.6.1. @throws Aborted */
  async #resetQueue(): Promise<void> {
    if (!this.features.has(feature.RING_RESET) || this.#phase !== 'running') return;
    const reconnections = this.#reconnections;
    this.#phase = 'queue-reset';
    this.guest.loop.log(`${this.name}: reset of the queue`);
    await this.ask({ name: 'RESET_VQUEUE', body: { index: 0 } });
    if (this.#phase !== 'queue-reset') return;
    const found = await this.ask({ name: 'GET_VQUEUE', body: { index: 0 } });
    this.require(found.flags === 0 && found.size === 0, 'RESET_VQUEUE was not applied');
    this.#abandonAll();
    this.onReset();
    await this.#enableQueue();
    this.queueResets += 1;
    if (this.#phase !== 'queue-reset') return;
    this.#phase = 'running';
    if (this.#reconnections !== reconnections) this.#notify();
  }

  #issue(count: number): void {
    const queue = this.#queue;
    if (this.#phase !== 'running' || queue === undefined) return;
    const { random } = this.guest.loop;
    for (let i = 0; i < count && !this.quiet && !this.#draining; i++) {
      const slot = this.memory.take();
      if (slot === undefined) break;
      const chain = this.next(slot);
      const token = chain === undefined ? undefined : this.#add(queue, chain);
      if (chain === undefined || token === undefined) {
        chain?.io.abandon();
        this.memory.give(slot);
        break;
      }
      this.#outstanding.set(token, chain.io);
      this.#unpublished = true;
      if (random.chance(0.5)) this.#publish(queue);
    }
    this.#publish(queue);
  }

  #add(queue: RingDriverQueue, { io, readable, writable }: SimChain): number | undefined {
    const indirect = this.features.has(feature.INDIRECT_DESC) && this.guest.loop.random.chance(0.5);
    const count = readable.length + writable.length;
    if (!indirect && count > queue.size) return undefined;
    return queue.add(readable, writable, indirect ? { indirect: io.slot.table } : {});
  }

  #publish(queue: RingDriverQueue): void {
    if (!this.#unpublished) return;
    this.#unpublished = false;
    if (queue.kick()) this.#notify();
  }

  used(queueIndex: number): void {
    const queue = this.#queue;
    if (queueIndex !== 0) this.fault(`EVENT_USED of queue ${queueIndex}`);
    if (queue === undefined || this.#phase !== 'running') return;
    queue.suppressInterrupts();
    do {
      for (let used = queue.next(); used !== undefined; used = queue.next()) {
        if (used instanceof QueueFault) {
          this.fault(`the device broke the queue: ${used.reason}, ${used.detail}`);
          this.end();
          return;
        }
        this.#complete(used.token, used.writtenBytes);
      }
    } while (queue.enableInterrupts());
  }

  #complete(token: number, writtenBytes: number): void {
    const io = this.#outstanding.get(token)!;
    this.#outstanding.delete(token);
    this.completed += 1;
    const isLost = this.memory.isTakenBack(io.slot);
    if (isLost) io.abandon();
    const wrong = isLost ? undefined : io.complete(writtenBytes);
    if (wrong !== undefined) this.fault(wrong);
    this.memory.give(io.slot);
  }

  configEvent(value: number): void {
    if ((value & status.DEVICE_NEEDS_RESET) === 0) return;
    this.disturbed();
    this.end();
  }

  /** Sets the device up anew. */
  protected end(): void {
    if (this.#phase === 'running') this.#phase = 'starting';
    this.#endServing?.();
    this.#endServing = undefined;
  }

  removed(): void {
    this.disturbed();
    this.#phase = 'gone';
    this.#endServing?.();
    void this.memory.takeBack();
  }

  async reconnected(kept: boolean): Promise<void> {
    this.disturbed();
    this.#reconnections += 1;
    this.#kick = undefined;
    if (!kept) this.end();
    if (this.#phase !== 'running') return;
    this.#isResuming = true;
    try {
      const value = await this.getStatus();
      if (this.#phase !== 'running') return;
      if (value !== running) {
        if (value !== 0 && (value & status.DEVICE_NEEDS_RESET) === 0) this.fault(`status ${value} after resuming`);
        this.end();
        return;
      }
      await this.#wire();
      this.#notify();
      this.resumes += 1;
    } catch (error) {
      if (!(error instanceof Aborted)) throw error;
      this.end();
    } finally {
      this.#isResuming = false;
    }
  }

  preempt(): void {
    const { random } = this.guest.loop;
    if (random.chance(0.2)) this.used(0);
    if (random.chance(0.3)) this.#issue(1);
  }
}
