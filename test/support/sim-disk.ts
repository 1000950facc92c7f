import type { DiskFile } from '../../src/bridge/backend/disk-file.ts';
import type { IoDone } from '../../src/bridge/backend/disk-io.ts';
import { VmsgError } from '../../src/kit/errors.ts';
import { sectorBytes } from '../../src/virtio/blk.ts';
import type { SimLoop, SimProcess } from './sim-loop.ts';

interface PendingWrite {
  readonly data: readonly Uint8Array[];
  readonly offset: number;
}

/** A disk that outlives the service: what the kernel holds of its image, and what is on stable storage. */
export class SimDisk {
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly durable: Uint8Array;
  readonly readOnly: boolean;
  /** Longest time of an operation. */
  latencyMs = 2;
  errorRate = 0;
  /** Errors given to the backend and not yet seen by a guest, at most. */
  errors = 0;
  /** An answer of that time may be seen much later. */
  syncFailed = false;
  /** Called in the middle of the backend's work, as other programs run in parallel. */
  preempt: () => void = () => {};
  readonly #loop: SimLoop;
  #owner: SimProcess | undefined;
  #inFlight = 0;
  readonly #writes = new Set<PendingWrite>();
  #syncs = 0;
  #syncedTo = 0;

  constructor(loop: SimLoop, name: string, sizeBytes: number, readOnly: boolean) {
    this.#loop = loop;
    this.name = name;
    this.readOnly = readOnly;
    this.bytes = new Uint8Array(sizeBytes);
    this.durable = new Uint8Array(sizeBytes);
  }

  /** Opens and locks the image for a process. @throws VmsgError backend-unusable */
  open(process: SimProcess): DiskFile {
    process.touch();
    if (this.#owner !== undefined) throw new VmsgError('backend-unusable', `${this.name} is in use`);
    this.#owner = process;
    const handle = process.hold('disk');
    process.onDeath(() => {
      if (this.#owner === process) this.#killed();
    });
    return {
      sizeBytes: this.bytes.length,
      readOnly: this.readOnly,
      blockBytes: sectorBytes,
      canPunch: !this.readOnly,
      read: (parts, offset, done) => this.#later(process, done, () => copyOut(this.bytes, parts, offset)),
      write: (parts, offset, done) => this.#write(process, parts, offset, done),
      punch: (offset, length, done) => this.#write(process, [new Uint8Array(length)], offset, done),
      zero: (offset, length, done) => this.#write(process, [new Uint8Array(length)], offset, done),
      datasync: (done) => this.#sync(process, done),
      refresh: (done) => done(null),
      close: async () => {
        process.touch();
        this.#loop.check(this.#inFlight === 0, `${this.name} was closed with ${this.#inFlight} operations in flight`);
        this.#owner = undefined;
        handle.close();
      },
    };
  }

  #write(process: SimProcess, parts: readonly Uint8Array[], offset: number, done: IoDone): void {
    const pending = { data: parts, offset };
    this.#writes.add(pending);
    this.#later(process, done, (failed) => {
      this.#writes.delete(pending);
      this.#apply(pending, failed ? 0.5 : 1);
    });
  }

  #sync(process: SimProcess, done: IoDone): void {
    const number = ++this.#syncs;
    const promised = this.bytes.slice();
    this.#later(process, done, (failed) => {
      if (failed) this.syncFailed = true;
      else if (number > this.#syncedTo) {
        this.#syncedTo = number;
        this.durable.set(promised);
      }
    });
  }

  /** Operations end in any order. */
  #later(process: SimProcess, done: IoDone, effect: (failed: boolean) => void): void {
    process.touch();
    this.#inFlight += 1;
    const owner = this.#owner;
    this.#loop.check(owner === process, `${this.name} is used after it was closed`);
    const delayMs = (this.#loop.random.below(1000) / 1000) * this.latencyMs;
    this.#loop.at(process, delayMs, () => {
      this.#inFlight -= 1;
      const failed = this.#loop.random.chance(this.errorRate);
      effect(failed);
      if (failed) this.errors += 1;
      done(failed ? new Error('injected') : null);
    });
    this.preempt();
  }

  /** Writes each sector with the given probability. */
  #apply({ data, offset }: PendingWrite, probability: number): void {
    const flat = new Uint8Array(data.reduce((sum, part) => sum + part.length, 0));
    let filled = 0;
    for (const part of data) {
      flat.set(part, filled);
      filled += part.length;
    }
    for (let at = 0; at < flat.length; at += sectorBytes) {
      if (this.#loop.random.chance(probability)) this.bytes.set(flat.subarray(at, at + sectorBytes), offset + at);
    }
  }

  /** Writes that a killed process had begun are done, not done or torn. */
  #killed(): void {
    this.#owner = undefined;
    this.#inFlight = 0;
    for (const pending of this.#writes) this.#apply(pending, this.#loop.random.pick([0, 0.5, 1]));
    this.#writes.clear();
  }
}

function copyOut(from: Uint8Array, parts: readonly Uint8Array[], offset: number): void {
  let at = offset;
  for (const part of parts) {
    part.set(from.subarray(at, at + part.length));
    at += part.length;
  }
}
