import assert from 'node:assert/strict';
import { test } from 'node:test';
import { encodeRanges, splitRanges } from '../../src/guest/blk-ranges.ts';
import { rangeBytes } from '../support/bridge-disk.ts';
import { Prng } from '../support/virtqueue-pair.ts';

test('a driver cuts what it erases as the device likes it', () => {
  assert.deepEqual(splitRanges(5, 0, { sectors: 8, ranges: 2, alignment: 0 }), []);
  assert.deepEqual(splitRanges(5, 8, { sectors: 8, ranges: 2, alignment: 8 }), [[{ sector: 5, sectors: 8 }]]);
  assert.deepEqual(splitRanges(5, 20, { sectors: 8, ranges: 2, alignment: 0 }), [
    [
      { sector: 5, sectors: 8 },
      { sector: 13, sectors: 8 },
    ],
    [{ sector: 21, sectors: 4 }],
  ]);
  // Cuts lie on the alignment where there is one within reach.
  assert.deepEqual(splitRanges(5, 20, { sectors: 8, ranges: 9, alignment: 4 }), [
    [
      { sector: 5, sectors: 7 },
      { sector: 12, sectors: 8 },
      { sector: 20, sectors: 5 },
    ],
  ]);
  assert.deepEqual(splitRanges(5, 6, { sectors: 3, ranges: 9, alignment: 64 }), [
    [
      { sector: 5, sectors: 3 },
      { sector: 8, sectors: 3 },
    ],
  ]);
});

test('whatever the limits of a device, the ranges cover all sectors once and keep to them', () => {
  const prng = new Prng(52);
  for (let round = 0; round < 2000; round++) {
    const [first, count] = [prng.below(1000), prng.below(500)];
    const limits = { sectors: 1 + prng.below(40), ranges: 1 + prng.below(5), alignment: prng.below(20) };
    const requests = splitRanges(first, count, limits);
    let at = first;
    for (const ranges of requests) {
      assert.ok(ranges.length >= 1 && ranges.length <= limits.ranges);
      for (const { sector, sectors } of ranges) {
        assert.equal(sector, at);
        assert.ok(sectors >= 1 && sectors <= limits.sectors);
        at += sectors;
      }
    }
    assert.equal(at, first + count);
  }
});

test('ranges are encoded one after the other', () => {
  const to = new Uint8Array(40).fill(0xee);
  const ranges = [
    { sector: 2 ** 40 + 1, sectors: 7 },
    { sector: 3, sectors: 0xffff_ffff },
  ];
  assert.equal(encodeRanges(ranges, true, to), 32);
  assert.deepEqual(to.subarray(0, 32), rangeBytes(...ranges.map((range) => ({ ...range, flags: 1 }))));
  assert.equal(encodeRanges(ranges.slice(1), false, to), 16);
  assert.deepEqual(to.subarray(0, 16), rangeBytes(ranges[1]!));
  assert.ok(to.subarray(32).every((byte) => byte === 0xee));
});
