import assert from 'node:assert/strict';
import type { DiskFile, IoDone } from '../../src/bridge/backend/disk-file.ts';
import { gather, scatter } from '../../src/bridge/backend/parts.ts';
import type { Backend } from '../../src/ports/backend.ts';
import { blkRequestHead } from '../../src/virtio/blk.ts';
import { blkFeature } from '../../src/virtio/features.ts';
import { encode } from '../../src/wire/layout.ts';
import { run, TestRequest } from './bridge-request.ts';

/** A disk image in memory, with a log, injected errors, and operations that wait when told. */
export class MemoryDisk implements DiskFile {
  readonly bytes: Uint8Array;
  readonly readOnly: boolean;
  readonly log: string[] = [];
  /** The next operations of a kind fail, one entry each; null succeeds. */
  readonly errors: { read: (Error | null)[]; write: (Error | null)[]; datasync: (Error | null)[] } = {
    read: [],
    write: [],
    datasync: [],
  };
  /** When set, operations end only when the test runs them. */
  waiting: Array<() => void> | undefined;
  closed = false;

  constructor(sizeBytes: number, readOnly = false) {
    this.bytes = Uint8Array.from({ length: sizeBytes }, (_, i) => (i * 7 + (i >> 9)) & 0xff);
    this.readOnly = readOnly;
  }

  get sizeBytes(): number {
    return this.bytes.length;
  }

  read(parts: readonly Uint8Array[], offset: number, done: IoDone): void {
    const length = this.#check(parts, offset);
    this.#begin('read', `read ${offset} ${length}`, done, () =>
      scatter(this.bytes.subarray(offset, offset + length), parts),
    );
  }

  write(parts: readonly Uint8Array[], offset: number, done: IoDone): void {
    assert.ok(!this.readOnly, 'a read-only image is not written');
    const length = this.#check(parts, offset);
    this.#begin('write', `write ${offset} ${length}`, done, () => this.bytes.set(gather(parts, length)!, offset));
  }

  #check(parts: readonly Uint8Array[], offset: number): number {
    const length = parts.reduce((sum, part) => sum + part.length, 0);
    assert.ok(!this.closed && length > 0 && offset >= 0 && offset + length <= this.sizeBytes, 'inside the file');
    return length;
  }

  datasync(done: IoDone): void {
    assert.ok(!this.closed);
    this.#begin('datasync', 'datasync', done, () => {});
  }

  #begin(kind: 'read' | 'write' | 'datasync', what: string, done: IoDone, act: () => void): void {
    this.log.push(what);
    const end = (): void => {
      const error = this.errors[kind].shift() ?? null;
      if (error === null) act();
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
