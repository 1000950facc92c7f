import assert from 'node:assert/strict';
import type { Clock, Timer } from '../../src/kit/clock.ts';
import type { ErrnoName } from '../../src/kit/errno.ts';
import type { Random } from '../../src/kit/random.ts';
import type { Scheduler } from '../../src/kit/scheduler.ts';
import type {
  Admission,
  BusPort,
  BusTransport,
  BusTransportHandler,
  CallTarget,
  GuestConnection,
  GuestIdentity,
  GuestMemory,
  GuestResources,
  ResumeClaim,
} from '../../src/ports/bus.ts';
import type { RecoveryMemory, RecoveryStore } from '../../src/ports/recovery.ts';

/** Time that passes only in `advance`. */
export class FakeClock implements Clock {
  #now = 0;
  readonly #timers = new Set<{ readonly at: number; readonly callback: () => void }>();

  nowMs(): number {
    return this.#now;
  }

  after(delayMs: number, callback: () => void): Timer {
    const timer = { at: this.#now + delayMs, callback };
    this.#timers.add(timer);
    return { cancel: () => void this.#timers.delete(timer) };
  }

  get timers(): number {
    return this.#timers.size;
  }

  advance(ms: number): void {
    const end = this.#now + ms;
    for (;;) {
      const due = [...this.#timers].filter((timer) => timer.at <= end).sort((a, b) => a.at - b.at)[0];
      if (due === undefined) break;
      this.#timers.delete(due);
      this.#now = Math.max(this.#now, due.at);
      due.callback();
    }
    this.#now = end;
  }
}

/** Deferred work that runs only when told. */
export class FakeScheduler implements Scheduler {
  readonly #soon: Array<() => void> = [];
  readonly #later: Array<() => void> = [];

  soon(work: () => void): void {
    this.#soon.push(work);
  }

  later(work: () => void): void {
    this.#later.push(work);
  }

  /** Ends the current turn. */
  endTurn(): void {
    for (let work = this.#soon.shift(); work !== undefined; work = this.#soon.shift()) work();
  }

  /** Ends the current turn, then runs one deferred job. @returns false when there was none */
  nextTurn(): boolean {
    this.endTurn();
    const work = this.#later.shift();
    work?.();
    this.endTurn();
    return work !== undefined;
  }

  run(): void {
    for (let turns = 0; this.nextTurn(); turns++) assert.ok(turns < 100_000, 'the work comes to an end');
  }
}

/** Bytes 1, 2, 3 and so on: never twice the same token. */
export class CountingRandom implements Random {
  #next = 1;

  fill(target: Uint8Array): void {
    for (let i = 0; i < target.length; i++) target[i] = this.#next++ & 0xff;
  }
}

/** A ring pair without the ring: frames in arrays. */
export class FakePort implements BusPort {
  readonly slotBytes: number;
  /** Frames that the guest does not take: more do not fit. */
  capacity: number;
  broken = false;
  sendBroken = false;
  asleep = false;
  readonly incoming: Uint8Array[] = [];
  /** What the guest can see. */
  readonly visible: Uint8Array[] = [];
  readonly #unpublished: Uint8Array[] = [];
  flushes = 0;

  constructor(slotBytes: number, capacity = 1024) {
    this.slotBytes = slotBytes;
    this.capacity = capacity;
  }

  receive(target: Uint8Array): 'message' | 'empty' | 'broken' {
    if (this.broken) return 'broken';
    const frame = this.incoming.shift();
    if (frame === undefined) return 'empty';
    // What lies behind the message in a slot is whatever the guest left there.
    target.fill(0xa5);
    target.set(frame.subarray(0, this.slotBytes));
    return 'message';
  }

  send(frame: Uint8Array): 'sent' | 'full' | 'broken' {
    if (this.sendBroken) return 'broken';
    if (this.visible.length + this.#unpublished.length >= this.capacity) return 'full';
    this.#unpublished.push(frame.slice());
    return 'sent';
  }

  flush(): boolean {
    this.flushes += 1;
    this.visible.push(...this.#unpublished.splice(0));
    return true;
  }

  sleep(): boolean {
    this.asleep = this.incoming.length === 0;
    return this.asleep;
  }
}

export class FakeMemory implements GuestMemory {
  readonly bytes: Uint8Array;
  closed = false;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
  }

  close(): void {
    assert.ok(!this.closed, 'memory is unmapped once');
    this.closed = true;
  }
}

export class FakeCall implements CallTarget {
  rings = 0;
  closed = false;

  ring(): void {
    this.rings += 1;
  }

  close(): void {
    this.closed = true;
  }
}

/** Memories, kicks and calls by reference, as if a guest had sent them. */
export class FakeResources implements GuestResources {
  readonly memories = new Map<number, FakeMemory | ErrnoName>();
  readonly kicks = new Map<number, { onKick: (() => void) | undefined; closed: boolean }>();
  readonly calls = new Map<number, FakeCall>();
  readonly opened: FakeMemory[] = [];
  readonly discarded: number[] = [];
  /** Only where a test gives it: a guest with descriptors. */
  takeEventfd?: NonNullable<GuestResources['takeEventfd']>;
  takePort?: NonNullable<GuestResources['takePort']>;

  openRegion(reference: number, _offset: bigint, length: bigint): GuestMemory | ErrnoName {
    const memory = this.memories.get(reference);
    this.memories.delete(reference);
    if (memory === undefined) return 'ENOENT';
    if (typeof memory === 'string') return memory;
    if (BigInt(memory.bytes.length) < length) return 'EINVAL';
    this.opened.push(memory);
    return memory;
  }

  openKick(reference: number, onKick: () => void): { close(): void } | ErrnoName {
    const kick = this.kicks.get(reference);
    if (kick === undefined) return 'ENOENT';
    kick.onKick = onKick;
    return {
      close: () => {
        kick.closed = true;
        kick.onKick = undefined;
      },
    };
  }

  openCall(reference: number): CallTarget | ErrnoName {
    return this.calls.get(reference) ?? 'ENOENT';
  }

  give(): number | ErrnoName {
    return 'EOPNOTSUPP';
  }

  discard(reference: number): void {
    this.discarded.push(reference);
  }
}

export class FakeConnection implements GuestConnection {
  readonly port: FakePort;
  readonly resources = new FakeResources();
  readonly admission: Admission;
  readonly maxMessageSize: number;
  readonly outOfBandKicks = true;
  closed = false;
  #listener: (() => void) | undefined;

  constructor(admission: Admission, maxMessageSize: number, capacity?: number) {
    this.admission = admission;
    this.maxMessageSize = maxMessageSize;
    this.port = new FakePort(Math.max(64, (maxMessageSize + 7) & ~7), capacity);
  }

  onDoorbell(listener: () => void): void {
    this.#listener = listener;
  }

  doorbell(): void {
    this.#listener?.();
  }

  close(): void {
    this.closed = true;
    this.#listener = undefined;
  }
}

export const testPeer: GuestIdentity = { pid: 4711, uid: 1000, gid: 1000 };

/** A bus that guests enter by a call. */
export class FakeTransport implements BusTransport {
  state: 'listening' | 'handshake' | 'connected' = 'listening';
  closed = false;
  #handler: BusTransportHandler | undefined;

  start(handler: BusTransportHandler): void {
    this.#handler = handler;
  }

  /** @param early frames that are in the ring before anyone listens */
  connect(
    claim: ResumeClaim,
    maxMessageSize: number,
    capacity?: number,
    early: readonly Uint8Array[] = [],
  ): FakeConnection {
    const handler = this.#handler;
    assert.ok(handler !== undefined, 'the bus listens');
    const connection = new FakeConnection(handler.admit(claim), maxMessageSize, capacity);
    connection.port.incoming.push(...early);
    this.state = 'connected';
    handler.connected(connection, testPeer);
    return connection;
  }

  leave(reason: string): void {
    this.state = 'listening';
    this.#handler?.disconnected(reason);
  }

  close(): void {
    this.closed = true;
  }
}

/** Recovery memory that outlives a service, as files do. */
export class FakeStore implements RecoveryStore {
  readonly files = new Map<string, Uint8Array>();
  openMemories = 0;

  open(name: string, length: number): RecoveryMemory {
    let bytes = this.files.get(name);
    if (bytes?.length !== length) {
      bytes = new Uint8Array(length);
      this.files.set(name, bytes);
    }
    this.openMemories += 1;
    let open = true;
    return {
      bytes,
      close: () => {
        if (open) this.openMemories -= 1;
        open = false;
      },
    };
  }

  names(): string[] {
    return [...this.files.keys()];
  }

  remove(name: string): void {
    this.files.delete(name);
  }
}
