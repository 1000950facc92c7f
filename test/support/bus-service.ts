import assert from 'node:assert/strict';
import { BlkBackend } from '../../src/bridge/backend/blk.ts';
import type { DiskFile } from '../../src/bridge/backend/disk-file.ts';
import type { IoDone } from '../../src/bridge/backend/disk-io.ts';
import { openRng } from '../../src/bridge/backend/rng.ts';
import { BusRuntime } from '../../src/bridge/bus/runtime.ts';
import type { LaneEvent } from '../../src/bridge/lane/protocol.ts';
import { type Clock, systemClock, type Timer } from '../../src/kit/clock.ts';
import { type Scheduler, systemScheduler } from '../../src/kit/scheduler.ts';
import type { Backend, BackendHost } from '../../src/ports/backend.ts';
import type { BusTransport } from '../../src/ports/bus.ts';
import { dialectD5 } from '../../src/virtio-msg/dialect.ts';
import { MemoryDisk } from './bridge-disk.ts';
import { CountingRandom, FakeStore } from './bridge-fakes.ts';

const diskBytes = 512 * 1024;

/** A disk that holds back what requests ask for; the backend looks at the size by itself, every second. */
class BusDisk extends MemoryDisk {
  override refresh(done: IoDone): void {
    const { waiting } = this;
    this.waiting = undefined;
    super.refresh(done);
    this.waiting = waiting;
  }
}

/** What a process has of time and disks: when it is killed, nothing that it began goes on. */
export class Life {
  #alive = true;
  readonly #timers = new Set<Timer>();
  readonly #atDisk = new Set<IoDone>();

  readonly clock: Clock = {
    nowMs: () => systemClock.nowMs(),
    after: (delayMs, callback) => this.#after(delayMs, callback),
  };
  readonly scheduler: Scheduler = {
    soon: (work) => systemScheduler.soon(this.#mortal(work)),
    later: (work) => systemScheduler.later(this.#mortal(work)),
  };

  get alive(): boolean {
    return this.#alive;
  }

  #after(delayMs: number, callback: () => void): Timer {
    const timer = systemClock.after(delayMs, () => {
      this.#timers.delete(own);
      callback();
    });
    const own: Timer = {
      cancel: () => {
        this.#timers.delete(own);
        timer.cancel();
      },
    };
    // A process that is dead waits for nothing.
    if (this.#alive) this.#timers.add(own);
    else timer.cancel();
    return own;
  }

  #mortal(work: () => void): () => void {
    return () => {
      if (this.#alive) work();
    };
  }

  disk(disk: MemoryDisk): DiskFile {
    const run = (done: IoDone, begin: (done: IoDone) => void): void => {
      if (!this.#alive) {
        done(new Error('killed'));
        return;
      }
      this.#atDisk.add(done);
      begin((error) => {
        if (this.#alive && this.#atDisk.delete(done)) done(error);
      });
    };
    return {
      readOnly: disk.readOnly,
      blockBytes: disk.blockBytes,
      canPunch: disk.canPunch,
      get sizeBytes() {
        return disk.sizeBytes;
      },
      read: (parts, offset, done) => run(done, (end) => disk.read(parts, offset, end)),
      write: (parts, offset, done) => run(done, (end) => disk.write(parts, offset, end)),
      punch: (offset, length, done) => run(done, (end) => disk.punch(offset, length, end)),
      zero: (offset, length, done) => run(done, (end) => disk.zero(offset, length, end)),
      datasync: (done) => run(done, (end) => disk.datasync(end)),
      refresh: (done) => run(done, (end) => disk.refresh(end)),
      close: async () => {
        // The image may be open in the next process already.
        if (this.#alive) await disk.close();
      },
    };
  }

  end(): void {
    this.#alive = false;
    for (const timer of [...this.#timers]) timer.cancel();
  }

  /** After `end`, where no kernel takes memory away: gives up what is at the disk, so that its memory is let go of. */
  abandonDisk(): void {
    for (const done of [...this.#atDisk]) {
      this.#atDisk.delete(done);
      done(new Error('killed'));
    }
  }
}

/** The way of a service to the bus that it serves. */
export interface BusEnd<T extends BusTransport = BusTransport> {
  readonly transport: T;
  /** What is left of a process that was killed goes, without a word to the guest. */
  kill(runtime: BusRuntime): void;
  /** After the bus was closed in order. */
  close(): void;
}

export interface BusServiceOptions<T extends BusTransport> {
  readonly domid: number;
  readonly maxMessageSizeBytes: number;
  /** Makes the way of a new process. */
  readonly open: (life: Life) => BusEnd<T>;
}

interface Running<T extends BusTransport> {
  readonly life: Life;
  readonly end: BusEnd<T>;
  readonly runtime: BusRuntime;
}

/** The real service of one bus, with a disk (device 1) and entropy (device 2); it can be killed and started again. */
export class BusService<T extends BusTransport = BusTransport> {
  readonly disk: MemoryDisk = new BusDisk(diskBytes);
  readonly events: LaneEvent[] = [];
  readonly #o: BusServiceOptions<T>;
  #store = new FakeStore();
  #running: Running<T> | undefined;

  constructor(options: BusServiceOptions<T>) {
    this.#o = options;
  }

  get #live(): Running<T> {
    assert.ok(this.#running !== undefined, 'the service runs');
    return this.#running;
  }

  get runtime(): BusRuntime {
    return this.#live.runtime;
  }

  get transport(): T {
    return this.#live.end.transport;
  }

  /** Why connections ended, in order. */
  get endings(): string[] {
    return this.events.flatMap((event) => (event.type === 'bus-disconnected' ? [event.reason] : []));
  }

  /** For the first time or after `kill`: what the process before had stored is there. */
  async start(): Promise<void> {
    this.disk.closed = false;
    const life = new Life();
    const { clock, scheduler } = life;
    const end = this.#o.open(life);
    const runtime = new BusRuntime({
      bus: 'b',
      domid: this.#o.domid,
      maxMessageSize: this.#o.maxMessageSizeBytes,
      dialect: dialectD5,
      transport: end.transport,
      store: this.#store,
      clock,
      scheduler,
      random: new CountingRandom(),
      emit: (event) => {
        if (life.alive) this.events.push(event);
      },
    });
    this.#running = { life, end, runtime };
    await this.attach('disk', 1, async (host) => new BlkBackend(life.disk(this.disk), 'disk', { host, clock }));
    await this.attachEntropy('random', 2);
    runtime.listen();
  }

  async attach(attachment: string, deviceNumber: number, open: (host: BackendHost) => Promise<Backend>): Promise<void> {
    let device: BackendHost | undefined;
    const backend = await open({
      configChanged: (offset, data) => device?.configChanged(offset, data),
      failed: (reason) => device?.failed(reason),
    });
    const spec = { bus: 'b', attachment, deviceNumber, backend: { type: 'rng', source: attachment } as const };
    this.runtime.attach(spec, backend, (host) => {
      device = host;
    });
  }

  /** A device whose random bytes are all alike. */
  attachEntropy(attachment: string, deviceNumber: number, byte = 0xa5): Promise<void> {
    const random = { fill: (target: Uint8Array) => void target.fill(byte) };
    return this.attach(attachment, deviceNumber, (host) => openRng({ source: '/dev/urandom' }, random, host));
  }

  /** SIGKILL: nothing of it acts any more; what its disk had not begun is never done. */
  kill(): void {
    const { life, end, runtime } = this.#live;
    this.#running = undefined;
    life.end();
    this.disk.waiting = undefined;
    // Nothing that is done to the old memory from now on is seen by the next process.
    const store = new FakeStore();
    for (const [name, bytes] of this.#store.files) store.files.set(name, bytes.slice());
    this.#store = store;
    end.kill(runtime);
  }

  async close(): Promise<void> {
    const running = this.#running;
    this.#running = undefined;
    // A test that failed may have left requests at the disk, for which the runtime would wait.
    const { waiting } = this.disk;
    this.disk.waiting = undefined;
    for (const end of waiting ?? []) end();
    await running?.runtime.close(true);
    running?.end.close();
  }
}
