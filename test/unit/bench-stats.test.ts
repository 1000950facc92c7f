import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { parseCpuList } from '../bench/placement.ts';
import { compare, interleave, type Metric, median, percentile } from '../bench/stats.ts';

const rate: Metric = { kind: 'rate', unit: '/s', scale: 1 };
const time: Metric = { kind: 'time', unit: 'us', scale: 1e6 };
const second = (count: number) => ({ count, seconds: 1 });

describe('percentiles', () => {
  it('are exact where a value lies and interpolated between two', () => {
    assert.equal(median([3]), 3);
    assert.equal(median([9, 1, 5]), 5);
    assert.equal(median([4, 1, 3, 2]), 2.5);
    assert.equal(percentile([10, 20, 30, 40, 50], 0), 10);
    assert.equal(percentile([10, 20, 30, 40, 50], 1), 50);
    assert.equal(percentile([50, 40, 30, 20, 10], 0.1), 14);
    assert.equal(percentile([10, 20, 30, 40, 50], 0.9), 46);
    assert.throws(() => percentile([], 0.5), RangeError);
  });

  it('sort by value and leave their argument alone', () => {
    const values = [100, 9, 20];
    assert.equal(median(values), 20);
    assert.deepEqual(values, [100, 9, 20]);
  });

  it('rise with the fraction and stay inside the values', () => {
    const finite = fc.double({ noNaN: true, min: -1e9, max: 1e9 });
    const fraction = fc.double({ noNaN: true, min: 0, max: 1 });
    fc.assert(
      fc.property(fc.array(finite, { minLength: 1 }), fraction, fraction, (values, a, b) => {
        const [low, high] = [percentile(values, Math.min(a, b)), percentile(values, Math.max(a, b))];
        const rounding = 1e-3;
        assert.ok(low <= high + rounding);
        assert.ok(low >= Math.min(...values) - rounding && high <= Math.max(...values) + rounding);
      }),
      { seed: 7 },
    );
  });
});

describe('comparisons', () => {
  it('are above 1 when ours does more in the same time', () => {
    const result = compare(rate, [second(20), second(20)], [second(10), second(10)]);
    assert.deepEqual(result, { ours: 20, baseline: 10, ratio: 2, low: 2, high: 2 });
  });

  it('are above 1 when ours takes less time', () => {
    const result = compare(time, [second(200_000)], [second(100_000)]);
    assert.deepEqual(result, { ours: 5, baseline: 10, ratio: 2, low: 2, high: 2 });
  });

  it('form the ratio inside each pair, not between the medians', () => {
    const ours = [second(10), second(100), second(30)];
    const baseline = [second(20), second(200), second(15)];
    const { ours: our, baseline: base, ratio } = compare(rate, ours, baseline);
    assert.deepEqual([our, base, ratio], [30, 20, 0.5]);
  });

  it('have the spread of the pairs', () => {
    const ours = [1, 2, 3, 4, 5].map(second);
    const { low, high } = compare(
      rate,
      ours,
      ours.map(() => second(1)),
    );
    assert.ok(Math.abs(low! - 1.4) < 1e-9 && Math.abs(high! - 4.6) < 1e-9);
  });

  it('say nothing without a baseline, and refuse what is not paired', () => {
    assert.deepEqual(compare(rate, [second(7)], null), { ours: 7, baseline: null, ratio: null, low: null, high: null });
    assert.throws(() => compare(rate, [second(1), second(1)], [second(1)]), RangeError);
  });
});

describe('interleaving', () => {
  it('alternates which side of a pair is first and keeps the pairs together', async () => {
    const log: string[] = [];
    const runner = (name: string) => async () => `${name}${log.push(name)}`;
    const { first, second: other } = await interleave(3, runner('a'), runner('b'));
    assert.equal(log.join(''), 'abbaab');
    assert.deepEqual(
      [first, other],
      [
        ['a1', 'a4', 'a5'],
        ['b2', 'b3', 'b6'],
      ],
    );
  });

  it('runs one side alone', async () => {
    assert.deepEqual(await interleave(2, async () => 1, null), { first: [1, 1], second: null });
  });
});

describe('processor lists', () => {
  it('are read with ranges', () => {
    assert.deepEqual(parseCpuList('0-2,5'), [0, 1, 2, 5]);
    assert.deepEqual(parseCpuList('3'), [3]);
    assert.deepEqual(parseCpuList(''), []);
  });
});
