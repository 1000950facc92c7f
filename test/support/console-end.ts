import assert from 'node:assert/strict';
import type { HostEnd, HostEndEvents } from '../../src/bridge/backend/console/host-end.ts';
import { ConsoleBackend } from '../../src/bridge/backend/console.ts';
import type { WindowSize } from '../../src/libc/pty.ts';
import type { BackendMemory } from '../../src/ports/backend.ts';
import { consoleFeature } from '../../src/virtio/features.ts';
import { TestRequest } from './bridge-request.ts';

/** A host program that does what the test says. */
export class FakeEnd implements HostEnd {
  connected = false;
  /** Bytes that the program has sent and nobody read yet. */
  readonly toGuest: number[] = [];
  /** Bytes that the program got. */
  readonly toHost: number[] = [];
  /** Bytes that the program has room for. */
  room = Number.POSITIVE_INFINITY;
  /** The program leaves as soon as all it sent was read. */
  leaving = false;
  reading = false;
  writing = false;
  hangUps = 0;
  closed = false;
  reads = 0;
  events: HostEndEvents | undefined;

  start(events: HostEndEvents): void {
    this.events = events;
  }

  connect(): void {
    assert.equal(this.connected, false);
    this.connected = true;
    this.leaving = false;
    this.events?.connected();
  }

  leave(): void {
    this.connected = false;
    this.toGuest.length = 0;
    this.events?.disconnected();
  }

  send(text: string): void {
    this.toGuest.push(...Buffer.from(text));
    this.poll();
  }

  /** What the loop does: calls back while somebody wants it. */
  poll(): void {
    for (let turn = 0; this.reading && (this.toGuest.length > 0 || this.leaving) && turn < 1000; turn++) {
      if (!this.connected) return;
      this.events?.readable();
    }
    if (this.writing && this.room > 0) this.events?.writable();
  }

  read(into: Uint8Array): number {
    assert.ok(this.connected && !this.closed, 'nothing is read from nobody');
    this.reads += 1;
    const bytes = this.toGuest.splice(0, into.length);
    into.set(bytes);
    if (bytes.length === 0 && this.leaving) this.leave();
    return bytes.length;
  }

  write(from: Uint8Array): number {
    assert.ok(this.connected && !this.closed, 'nothing is written to nobody');
    const count = Math.min(from.length, this.room);
    this.room -= count;
    this.toHost.push(...from.subarray(0, count));
    return count;
  }

  wantRead(wanted: boolean): void {
    this.reading = wanted;
  }

  wantWrite(wanted: boolean): void {
    this.writing = wanted;
  }

  hangUp(): void {
    if (!this.connected) return;
    this.hangUps += 1;
    this.leave();
  }

  close(): void {
    this.closed = true;
    this.connected = false;
  }

  get heard(): string {
    return Buffer.from(this.toHost).toString();
  }
}

/** One whose program is always there, sends without end and takes everything. */
export class EndlessEnd extends FakeEnd {
  override connected = true;
  #planned = false;

  override wantRead(wanted: boolean): void {
    super.wantRead(wanted);
    if (!wanted || this.#planned) return;
    this.#planned = true;
    setImmediate(() => {
      this.#planned = false;
      if (!this.reading || this.closed) return;
      this.events?.readable();
      this.wantRead(this.reading);
    });
  }

  override read(into: Uint8Array): number {
    assert.ok(!this.closed);
    into.fill(7);
    return into.length;
  }

  override write(from: Uint8Array): number {
    assert.ok(!this.closed);
    return from.length;
  }
}

/** What is kept for a backend, as a device does. */
export class TestMemory implements BackendMemory {
  kept = new Uint8Array(0);
  keeps = 0;

  keep(bytes: Uint8Array): void {
    this.keeps += 1;
    this.kept = new Uint8Array(bytes);
  }
}

/** A message on a control queue. */
export function control(id: number, event: number, value: number, tail = new Uint8Array(0)): Uint8Array {
  const bytes = new Uint8Array(8 + tail.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, id, true);
  view.setUint16(4, event, true);
  view.setUint16(6, value, true);
  bytes.set(tail, 8);
  return bytes;
}

export interface RigOptions {
  readonly names?: readonly string[];
  readonly size?: WindowSize;
  readonly multiport?: boolean;
  readonly memory?: TestMemory;
  readonly activate?: boolean;
}

/** A console backend on fake host ends, and requests to it as queues make them. */
export class ConsoleRig {
  readonly ends: readonly FakeEnd[];
  readonly backend: ConsoleBackend;
  readonly configs: { offset: number; data: number[] }[] = [];
  readonly memory: TestMemory;

  constructor(options: RigOptions = {}) {
    const { names = ['con', 'data'], multiport = true, activate = true } = options;
    this.memory = options.memory ?? new TestMemory();
    this.ends = names.map(() => new FakeEnd());
    const specs = names.map((name, i) => ({ name, end: this.ends[i]! }));
    this.backend = new ConsoleBackend(specs, options.size, {
      configChanged: (offset, data) => void this.configs.push({ offset, data: [...data] }),
      failed: (reason) => assert.fail(reason),
    });
    if (activate) this.activate(multiport);
  }

  activate(multiport = true): void {
    this.backend.activate(
      (bit) => bit === consoleFeature.SIZE || (multiport && bit === consoleFeature.MULTIPORT),
      this.memory,
    );
  }

  /** A receive buffer. */
  offer(queue: number, ...lengths: number[]): TestRequest {
    const request = new TestRequest([], lengths, queue);
    this.backend.handle(request);
    return request;
  }

  /** Bytes of the guest. */
  give(queue: number, ...parts: (string | Uint8Array)[]): TestRequest {
    const readable = parts.map((part) => (typeof part === 'string' ? Buffer.from(part) : part));
    const request = new TestRequest(readable, [], queue);
    this.backend.handle(request);
    return request;
  }

  /** A control message of the guest. */
  tell(id: number, event: number, value: number): void {
    assert.equal(this.give(3, control(id, event, value)).completions, 1);
  }

  /** What the guest is told now, as [id, event, value, tail]. */
  told(): [number, number, number, string][] {
    const messages: [number, number, number, string][] = [];
    for (;;) {
      const buffer = this.offer(2, 100);
      if (buffer.completions === 0) {
        this.backend.cancel(2);
        return messages;
      }
      const bytes = buffer.written();
      const view = new DataView(bytes.buffer);
      const tail = Buffer.from(bytes.subarray(8))
        .toString('latin1')
        .replace(/\u00aa*$/, '');
      messages.push([view.getUint32(0, true), view.getUint16(4, true), view.getUint16(6, true), tail]);
    }
  }

  /** Brings the device to where the guest has ports set up and open. */
  ready(...ports: number[]): void {
    this.tell(0, 0, 1);
    for (const port of ports) this.tell(port, 3, 1);
    for (const port of ports) this.tell(port, 6, 1);
    this.told();
  }
}
