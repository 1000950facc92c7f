import assert from 'node:assert/strict';
import type { Backend, BackendRequest } from '../../src/ports/backend.ts';

const canary = 0xc5;
const margin = 16;

/** A part of guest memory between canary bytes. */
function guarded(bytes: Uint8Array): Uint8Array {
  const all = new Uint8Array(bytes.length + 2 * margin).fill(canary);
  const part = all.subarray(margin, margin + bytes.length);
  part.set(bytes);
  return part;
}

const surrounding = (part: Uint8Array): Uint8Array[] => [
  new Uint8Array(part.buffer, part.byteOffset - margin, margin),
  new Uint8Array(part.buffer, part.byteOffset + part.length, margin),
];

/** A request as a queue makes it, that checks how the backend treats it. */
export class TestRequest implements BackendRequest {
  readonly queue: number;
  readonly readable: readonly Uint8Array[];
  readonly writable: readonly Uint8Array[];
  readonly readableBytes: number;
  readonly writableBytes: number;
  readonly done: Promise<number>;
  completions = 0;
  /** It was given back without an answer. */
  released = false;
  readonly #before: readonly Uint8Array[];
  #resolve: (writtenBytes: number) => void = () => {};

  /** @param writable lengths of the parts; they are filled with 0xaa */
  constructor(readable: readonly Uint8Array[], writable: readonly number[], queue = 0) {
    this.queue = queue;
    this.readable = readable.map(guarded);
    this.writable = writable.map((length) => guarded(new Uint8Array(length).fill(0xaa)));
    this.readableBytes = readable.reduce((sum, part) => sum + part.length, 0);
    this.writableBytes = writable.reduce((sum, length) => sum + length, 0);
    this.#before = this.readable.map((part) => part.slice());
    this.done = new Promise((resolve) => {
      this.#resolve = resolve;
    });
  }

  complete(writtenBytes: number): void {
    this.completions += 1;
    assert.equal(this.completions, 1, 'a request is completed exactly once');
    assert.ok(
      Number.isInteger(writtenBytes) && writtenBytes >= 0 && writtenBytes <= this.writableBytes,
      'written bytes',
    );
    for (const [i, part] of this.readable.entries()) assert.deepEqual(part, this.#before[i], 'what is readable stays');
    for (const part of [...this.readable, ...this.writable].flatMap(surrounding)) {
      assert.ok(
        part.every((byte) => byte === canary),
        'nothing outside the parts is written',
      );
    }
    this.#resolve(writtenBytes);
  }

  release(): void {
    this.released = true;
    this.complete(0);
  }

  /** All writable bytes in one. */
  written(): Uint8Array {
    return Uint8Array.from(this.writable.flatMap((part) => [...part]));
  }
}

/** Hands a request over and waits for its end. @returns the written bytes it was completed with */
export function run(backend: Backend, request: TestRequest): Promise<number> {
  backend.handle(request);
  return request.done;
}

/** Cuts bytes into parts of the given lengths; the last part takes the rest. */
export function split(bytes: Uint8Array, ...lengths: readonly number[]): Uint8Array[] {
  const parts: Uint8Array[] = [];
  let at = 0;
  for (const length of lengths) {
    parts.push(bytes.subarray(at, at + length));
    at += length;
  }
  return [...parts, bytes.subarray(at)];
}
