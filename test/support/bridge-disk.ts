import assert from 'node:assert/strict';
import type { DiskFile } from '../../src/bridge/backend/disk-file.ts';
import type { IoDone } from '../../src/bridge/backend/disk-io.ts';
import { bytesIn, gather, scatter } from '../../src/bridge/backend/parts.ts';
import type { Backend } from '../../src/ports/backend.ts';
import { blkRange, blkRequestHead } from '../../src/virtio/blk.ts';
import { blkFeature } from '../../src/virtio/features.ts';
import { encode } from '../../src/wire/layout.ts';
import { run, TestRequest } from './bridge-request.ts';

type DiskOperation = 'read' | 'write' | 'punch' | 'zero' | 'datasync' | 'refresh';

/** A disk image in memory, with a log, injected errors, and operations that wait when told. */
export class MemoryDisk implements DiskFile {
  bytes: Uint8Array;
  readonly readOnly: boolean;
  readonly log: string[] = [];
  /** The next operations of a kind fail, one entry each; null succeeds. */
  readonly errors: Record<DiskOperation, (Error | null)[]> = {
    read: [],
    write: [],
    punch: [],
    zero: [],
    datasync: [],
    refresh: [],
  };
  readonly blockBytes = 4096;
  canPunch: boolean;
  /** When set, operations end only when the test runs them. */
  waiting: Array<() => void> | undefined;
  closed = false;
  /** As `refresh` last found it. */
  sizeBytes: number;

  constructor(sizeBytes: number, readOnly = false) {
    this.bytes = Uint8Array.from({ length: sizeBytes }, (_, i) => (i * 7 + (i >> 9)) & 0xff);
    this.readOnly = readOnly;
    this.canPunch = !readOnly;
    this.sizeBytes = sizeBytes;
  }

  /** Changes the file; the backend knows with its next `refresh`. */
  resize(sizeBytes: number): void {
    const bytes = new Uint8Array(sizeBytes);
    bytes.set(this.bytes.subarray(0, sizeBytes));
    this.bytes = bytes;
  }

  read(parts: readonly Uint8Array[], offset: number, done: IoDone): void {
    const length = this.#check(bytesIn(parts), offset);
    this.#begin('read', `read ${offset} ${length}`, done, () => {
      if (offset + length > this.bytes.length) throw new Error('shorter');
      scatter(this.bytes.subarray(offset, offset + length), parts);
    });
  }

  write(parts: readonly Uint8Array[], offset: number, done: IoDone): void {
    assert.ok(!this.readOnly, 'a read-only image is not written');
    const length = this.#check(bytesIn(parts), offset);
    this.#begin('write', `write ${offset} ${length}`, done, () => {
      // A write behind the end lets a file grow.
      if (offset + length > this.bytes.length) this.resize(offset + length);
      this.bytes.set(gather(parts, length)!, offset);
    });
  }

  punch(offset: number, length: number, done: IoDone): void {
    assert.ok(this.canPunch, 'holes can be punched');
    this.#erase('punch', offset, length, done);
  }

  zero(offset: number, length: number, done: IoDone): void {
    this.#erase('zero', offset, length, done);
  }

  #erase(kind: 'punch' | 'zero', offset: number, length: number, done: IoDone): void {
    assert.ok(!this.readOnly, 'a read-only image is not changed');
    this.#check(length, offset);
    this.#begin(kind, `${kind} ${offset} ${length}`, done, () => void this.bytes.fill(0, offset, offset + length));
  }

  refresh(done: IoDone): void {
    assert.ok(!this.closed);
    this.#begin('refresh', 'refresh', done, () => {
      this.sizeBytes = this.bytes.length;
    });
  }

  #check(length: number, offset: number): number {
    assert.ok(!this.closed && length > 0 && offset >= 0 && offset + length <= this.sizeBytes, 'inside the file');
    return length;
  }

  datasync(done: IoDone): void {
    assert.ok(!this.closed);
    this.#begin('datasync', 'datasync', done, () => {});
  }

  #begin(kind: DiskOperation, what: string, done: IoDone, act: () => void): void {
    this.log.push(what);
    const end = (): void => {
      let error = this.errors[kind].shift() ?? null;
      try {
        if (error === null) act();
      } catch (thrown) {
        error = thrown as Error;
      }
      this.log.push(`${what} ${error === null ? 'done' : 'failed'}`);
      done(error);
    };
    if (this.waiting === undefined) setImmediate(end);
    else this.waiting.push(end);
  }

  async close(): Promise<void> {
    assert.ok(!this.closed, 'closed once');
    this.closed = true;
  }
}

/** The head of a blk request. */
export function blkHead(type: number, sector: bigint): Uint8Array {
  const head = new Uint8Array(blkRequestHead.size);
  encode(blkRequestHead, { type, reserved: 0, sector }, head);
  return head;
}

export interface TestRange {
  readonly sector: number | bigint;
  readonly sectors: number;
  readonly flags?: number;
}

/** The data of a DISCARD or WRITE_ZEROES request. */
export function rangeBytes(...ranges: readonly TestRange[]): Uint8Array {
  const data = new Uint8Array(ranges.length * blkRange.size);
  for (const [i, { sector, sectors, flags = 0 }] of ranges.entries()) {
    encode(blkRange, { sector: BigInt(sector), sectors, flags }, data, i * blkRange.size);
  }
  return data;
}

export interface BlkResult {
  readonly status: number | undefined;
  readonly writtenBytes: number;
  readonly data: Uint8Array;
}

/** Runs a blk request with its parts as given. */
export async function blk(
  backend: Backend,
  readable: readonly Uint8Array[],
  writable: readonly number[],
): Promise<BlkResult> {
  const request = new TestRequest(readable, writable);
  const writtenBytes = await run(backend, request);
  const all = request.written();
  return { status: all[all.length - 1], writtenBytes, data: all.subarray(0, -1) };
}

export const withFlush = (bit: number): boolean => bit === blkFeature.FLUSH;
export const writeThrough = (): boolean => false;
