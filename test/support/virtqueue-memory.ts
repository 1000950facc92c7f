import assert from 'node:assert/strict';
import { type Access, type AddressSpace, type Lease, TranslateFault } from '../../src/ports/memory.ts';

const CANARY_BYTES = 64;
const CANARY = 0xc5;

export interface AreaOptions {
  /** What translations may ask for; the default is both. */
  readonly access?: readonly Access[];
  /** The area is contiguous on the bus but scattered in host memory, in pieces of so many bytes. */
  readonly pieceBytes?: number;
  /** Where the host memory comes from. */
  readonly allocate?: (bytes: number) => ArrayBufferLike;
}

/** One area of bus addresses; each piece of its host memory lies between canary bytes. */
export class TestArea {
  readonly id: number;
  readonly size: number;
  readonly access: readonly Access[];
  readonly pieceBytes: number;
  readonly pieces: readonly Uint8Array[];

  constructor(id: number, size: number, options: AreaOptions = {}) {
    this.id = id;
    this.size = size;
    this.access = options.access ?? ['read', 'write'];
    this.pieceBytes = options.pieceBytes ?? size;
    const allocate = options.allocate ?? ((bytes) => new ArrayBuffer(bytes));
    this.pieces = Array.from({ length: Math.ceil(size / this.pieceBytes) }, (_, index) => {
      const length = Math.min(this.pieceBytes, size - index * this.pieceBytes);
      const buffer = allocate(length + 2 * CANARY_BYTES);
      new Uint8Array(buffer).fill(CANARY);
      return new Uint8Array(buffer, CANARY_BYTES, length).fill(0);
    });
  }

  /** The host memory of an area in one piece. */
  get bytes(): Uint8Array {
    assert.equal(this.pieces.length, 1);
    return this.pieces[0]!;
  }

  address(offset: number): bigint {
    return (BigInt(this.id) << 48n) | BigInt(offset);
  }

  assertCanaries(): void {
    for (const piece of this.pieces) {
      const before = new Uint8Array(piece.buffer, 0, CANARY_BYTES);
      const after = new Uint8Array(piece.buffer, CANARY_BYTES + piece.length, CANARY_BYTES);
      assert.ok(
        before.every((byte) => byte === CANARY) && after.every((byte) => byte === CANARY),
        `area ${this.id}: bytes outside were written`,
      );
    }
  }
}

/** Bus addresses are area id << 48 | offset. Counts the leases that are open. */
export class TestMemory implements AddressSpace {
  readonly areas = new Map<number, TestArea>();
  openLeases = 0;
  translations = 0;

  add(area: TestArea): TestArea {
    this.areas.set(area.id, area);
    return area;
  }

  translate(hi: number, lo: number, length: number, access: Access, out: Uint8Array[]): Lease | TranslateFault {
    assert.ok(length >= 1 && hi >>> 0 === hi && lo >>> 0 === lo, 'translate is called within its contract');
    this.translations += 1;
    const area = this.areas.get(hi >>> 16);
    if (area === undefined) return new TranslateFault('no such area');
    const offset = (hi & 0xffff) * 2 ** 32 + lo;
    if (offset + length > area.size) return new TranslateFault('crosses the end of the area');
    if (!area.access.includes(access)) return new TranslateFault(`no ${access} access`);
    for (let at = offset; at < offset + length; ) {
      const piece = area.pieces[Math.floor(at / area.pieceBytes)]!;
      const from = at % area.pieceBytes;
      const part = piece.subarray(from, Math.min(piece.length, from + offset + length - at));
      out.push(part);
      at += part.length;
    }
    this.openLeases += 1;
    let held = true;
    return {
      release: () => {
        if (held) this.openLeases -= 1;
        held = false;
      },
    };
  }

  assertCanaries(): void {
    for (const area of this.areas.values()) area.assertCanaries();
  }
}
