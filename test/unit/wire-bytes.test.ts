import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { joinU64, readU16, readU32, readU64, splitU64, writeU16, writeU32, writeU64 } from '../../src/wire/bytes.ts';

const edges16 = [0, 1, 0x7f, 0x80, 0xff, 0x100, 0x1234, 0x7fff, 0x8000, 0xffff];
const edges32 = [0, 1, 0xff, 0x8000, 0x1234_5678, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, 0xffff_ffff];
const edges64 = [
  0n,
  1n,
  0x7fff_ffffn,
  0x8000_0000n,
  0xffff_ffffn,
  0x1_0000_0000n,
  0x0123_4567_89ab_cdefn,
  0x7fff_ffff_ffff_ffffn,
  0x8000_0000_0000_0000n,
  0x8000_0000_8000_0000n,
  0xffff_ffff_ffff_ffffn,
];
const alignments = [0, 1, 2, 3, 4, 5, 6, 7];
const settings = { seed: 0x77697265, numRuns: 2_000 };

/** Writes between guard bytes and checks against DataView, on both sides. */
function check<V>(
  size: number,
  value: V,
  at: number,
  write: (to: Uint8Array, at: number) => void,
  oracle: (v: DataView) => void,
) {
  const actual = new Uint8Array(size + 16).fill(0xa5);
  const expected = actual.slice();
  write(actual, at);
  oracle(new DataView(expected.buffer));
  assert.deepEqual(actual, expected, `${value} at ${at}`);
  return actual;
}

describe('wire/bytes', () => {
  it('reads and writes 16 bits at every alignment', () => {
    for (const at of alignments) {
      for (const value of edges16) {
        const bytes = check(
          2,
          value,
          at,
          (to) => writeU16(to, at, value),
          (view) => view.setUint16(at, value, true),
        );
        assert.equal(readU16(bytes, at), value);
      }
    }
  });

  it('reads and writes 32 bits at every alignment, bit 31 included', () => {
    for (const at of alignments) {
      for (const value of edges32) {
        const bytes = check(
          4,
          value,
          at,
          (to) => writeU32(to, at, value),
          (view) => view.setUint32(at, value, true),
        );
        assert.equal(readU32(bytes, at), value);
      }
    }
  });

  it('reads and writes 64 bits at every alignment, bit 63 included', () => {
    for (const at of alignments) {
      for (const value of edges64) {
        const bytes = check(
          8,
          value,
          at,
          (to) => writeU64(to, at, value),
          (view) => view.setBigUint64(at, value, true),
        );
        assert.equal(readU64(bytes, at), value);
      }
    }
  });

  it('stores a negative 32-bit number as two’s complement', () => {
    const bytes = new Uint8Array(4);
    writeU32(bytes, 0, -2);
    assert.deepEqual([...bytes], [0xfe, 0xff, 0xff, 0xff]);
    assert.equal(readU32(bytes, 0), 0xffff_fffe);
  });

  it('agrees with DataView on random bytes', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 16, maxLength: 16 }), fc.nat(7), (bytes, at) => {
        const view = new DataView(bytes.buffer, bytes.byteOffset);
        assert.equal(readU16(bytes, at), view.getUint16(at, true));
        assert.equal(readU32(bytes, at), view.getUint32(at, true));
        assert.equal(readU64(bytes, at), view.getBigUint64(at, true));
      }),
      settings,
    );
  });

  it('splits into halves without a sign and joins them again', () => {
    assert.deepEqual(splitU64(0x8000_0001_ffff_fffen), { hi: 0x8000_0001, lo: 0xffff_fffe });
    for (const value of edges64) {
      const { hi, lo } = splitU64(value);
      assert.ok(hi >= 0 && lo >= 0);
      assert.equal(joinU64(hi, lo), value);
    }
  });

  it('works on a view that does not begin where its memory does', () => {
    const memory = new Uint8Array(32);
    const view = memory.subarray(5);
    writeU64(view, 2, 0x8877_6655_4433_2211n);
    assert.deepEqual([...memory.subarray(7, 15)], [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
    assert.equal(readU64(view, 2), 0x8877_6655_4433_2211n);
  });
});
