import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import {
  bytes,
  bytesTail,
  decode,
  encode,
  encodedLength,
  i32,
  layout,
  Malformed,
  u8,
  u16,
  u32,
  u32sTail,
  u64,
} from '../../src/wire/layout.ts';

const every = layout('every', 'test', 32, {
  small: u8(0, 'one byte'),
  odd: u32(1, 'not aligned'),
  half: u16(5, 'not aligned'),
  signed: i32(8, 'signed'),
  raw: bytes(12, 3, 'bytes'),
  wide: u64(17, 'not aligned'),
});
const blob = layout(
  'blob',
  'test',
  4,
  { first: u16(0, 'any'), count: u16(2, 'bytes') },
  bytesTail('data', 'count', 'data'),
);
const words = layout('words', 'test', 4, { count: u32(0, 'words') }, u32sTail('words', 'count', 'words'));
const bits = layout(
  'bits',
  'test',
  2,
  { count: u16(0, 'bits') },
  bytesTail('map', 'count', 'map', (n) => (n + 7) >>> 3),
);

const value = {
  small: 0xff,
  odd: 0x8000_0001,
  half: 0x8001,
  signed: -2,
  raw: Uint8Array.of(1, 0x80, 0xff),
  wide: 0x8000_0000_0000_0001n,
};
const encoded = 'ff01000080018000feffffff0180ff0000010000000000008000000000000000';
const hexOf = (data: Uint8Array): string => Buffer.from(data).toString('hex');
const reasonOf = (result: unknown): string => {
  assert.ok(result instanceof Malformed);
  return result.reason;
};

describe('wire/layout declarations', () => {
  it('keep the offset of each field', () => {
    assert.deepEqual(every.at, { small: 0, odd: 1, half: 5, signed: 8, raw: 12, wide: 17 });
  });

  it('must not overlap', () => {
    assert.throws(() => layout('bad', 'test', 8, { a: u32(0, ''), b: u16(3, '') }), /bad\.b overlaps no other field/);
    assert.throws(() => layout('bad', 'test', 16, { a: u64(0, ''), b: bytes(7, 2, '') }), /overlaps/);
    layout('good', 'test', 6, { b: u16(4, ''), a: u32(0, '') });
  });

  it('must lie inside the fixed part', () => {
    assert.throws(() => layout('bad', 'test', 3, { a: u32(0, '') }), /bad\.a lies inside 3 bytes/);
    assert.throws(() => layout('bad', 'test', 8, { a: u64(1, '') }), /lies inside/);
  });

  it('must count the tail in a field', () => {
    assert.throws(() => layout('bad', 'test', 4, { a: u32(0, '') }, bytesTail('t', 'b', '')), /tail count is a field/);
  });
});

describe('wire/layout encode', () => {
  it('writes every kind of field and zeroes what no field covers', () => {
    const to = new Uint8Array(36).fill(0xa5);
    assert.equal(encode(every, value, to, 2), 32);
    assert.equal(hexOf(to), `a5a5${encoded}a5a5`);
  });

  it('writes tails', () => {
    const to = new Uint8Array(12);
    assert.equal(encode(blob, { first: 7, count: 3, data: Uint8Array.of(9, 8, 7) }, to), 7);
    assert.equal(hexOf(to), '070003000908070000000000');
    assert.equal(encode(words, { count: 2, words: [0x8000_0000, 0xffff_ffff] }, to), 12);
    assert.equal(hexOf(to), '0200000000000080ffffffff');
    assert.equal(encode(bits, { count: 9, map: Uint8Array.of(1, 1) }, to), 4);
    assert.equal(encodedLength(bits, { count: 9, map: Uint8Array.of(1, 1) }), 4);
    assert.equal(encodedLength(words, { count: 0, words: [] }), 4);
  });

  it('refuses our own mistakes', () => {
    const to = new Uint8Array(32);
    assert.throws(() => encode(every, value, to, 1), /every fits into 31 bytes/);
    assert.throws(() => encode(every, { ...value, raw: new Uint8Array(2) }, to), /a 3-byte value/);
    assert.throws(() => encode(blob, { first: 0, count: 2, data: new Uint8Array(3) }, to), /blob tail length/);
    assert.throws(() => encode(words, { count: 1, words: [] }, to), /words tail length/);
    assert.throws(() => encode(bits, { count: 8, map: new Uint8Array(2) }, to), /bits tail length/);
  });
});

describe('wire/layout decode', () => {
  it('reads every kind of field at any offset', () => {
    const from = new Uint8Array(Buffer.from(`a5a5a5${encoded}a5`, 'hex'));
    assert.deepEqual(decode(every, from, 3, 32), value);
  });

  it('wants the exact length', () => {
    const from = new Uint8Array(64);
    assert.equal(reasonOf(decode(every, from, 0, 31)), 'every: 31 bytes, at least 32 needed');
    assert.equal(reasonOf(decode(every, from, 0, 33)), 'every: 33 bytes, 32 expected');
    assert.equal(reasonOf(decode(blob, from, 0, 5)), 'blob: 5 bytes, 4 expected');
  });

  it('takes longer input only where trailing bytes are to be ignored, never shorter', () => {
    const from = Uint8Array.of(1, 0, 2, 0, 3, 4, 5, 6);
    assert.deepEqual(decode(blob, from, 0, 8, 'ignore'), { first: 1, count: 2, data: Uint8Array.of(3, 4) });
    assert.ok(decode(blob, from, 0, 5, 'ignore') instanceof Malformed);
    assert.ok(decode(blob, from, 0, 3, 'ignore') instanceof Malformed);
    assert.ok(decode(blob, from, 0, 8, 'reject') instanceof Malformed);
    assert.ok(decode(blob, from, 0, 8) instanceof Malformed);
  });

  it('never reads a tail beyond the length, whatever the count claims', () => {
    const from = new Uint8Array(64).fill(0xff);
    assert.equal(reasonOf(decode(words, from, 0, 64)), 'words: 64 bytes, 17179869184 expected');
    assert.equal(reasonOf(decode(blob, from, 0, 64)), 'blob: 64 bytes, 65539 expected');
    assert.equal(reasonOf(decode(bits, from, 0, 64, 'ignore')), 'bits: 64 bytes, 8194 expected');
    assert.deepEqual(decode(words, new Uint8Array(4), 0, 4), { count: 0, words: [] });
  });

  it('derives the tail bytes from the count', () => {
    for (const [count, length] of [
      [0, 0],
      [1, 1],
      [7, 1],
      [8, 1],
      [9, 2],
      [16, 2],
      [17, 3],
    ] as const) {
      const from = new Uint8Array(2 + length).fill(0xff);
      from.set([count, 0]);
      assert.deepEqual(decode(bits, from, 0, from.length), { count, map: new Uint8Array(length).fill(0xff) });
    }
  });

  const sources: Record<string, (data: string) => Uint8Array> = {
    'a plain array': (data) => new Uint8Array(Buffer.from(data, 'hex')),
    'a Buffer': (data) => Buffer.from(data, 'hex'),
    'shared memory': (data) => {
      const shared = new Uint8Array(new SharedArrayBuffer(data.length / 2));
      shared.set(Buffer.from(data, 'hex'));
      return shared;
    },
  };
  for (const [what, make] of Object.entries(sources)) {
    it(`shares no memory with ${what}`, () => {
      const fixed = make(encoded);
      const body = decode(every, fixed, 0, 32);
      fixed.fill(0);
      assert.deepEqual(body, value);

      const tailed = make('0100030009080700');
      const withTail = decode(blob, tailed, 0, 7);
      tailed.fill(0);
      assert.deepEqual(withTail, { first: 1, count: 3, data: Uint8Array.of(9, 8, 7) });
    });
  }
});
