import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { parseCpuList } from '../bench/placement.ts';
import { held, inTurns, type Metric, median, percentile, quantile, ratioOf } from '../bench/stats.ts';
import { SeededRandom } from '../support/random.ts';

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

describe('quantiles', () => {
  it('have the order statistics around them that cover 95 %', () => {
    // Tables of the binomial distribution: of 15 values the 4th and the 12th, of 6 the first and the last.
    const upTo = (n: number) => Array.from({ length: n }, (_, i) => i + 1);
    assert.deepEqual(quantile(upTo(15), 0.5), { value: 8, low: 4, high: 12 });
    assert.deepEqual(quantile(upTo(6), 0.5), { value: 3.5, low: 1, high: 6 });
    assert.deepEqual(quantile(upTo(100), 0.5), { value: 50.5, low: 40, high: 61 });
  });

  it('have none with too few values for one', () => {
    assert.deepEqual(quantile([5, 1, 3], 0.5), { value: 3, low: null, high: null });
    assert.equal(quantile(Array.from({ length: 60 }, Math.random), 0.99).high, null);
  });

  it('near the end are bounded by many values', () => {
    const { low, high } = quantile(
      Array.from({ length: 400 }, (_, i) => i + 1),
      0.99,
    );
    assert.ok(low! > 380 && low! < 396, String(low));
    assert.equal(high, 400);
  });

  it('cover the true median as often as they say', () => {
    const random = new SeededRandom(11);
    const tries = 2000;
    let covered = 0;
    for (let i = 0; i < tries; i++) {
      // Skewed: the median of the square of a uniform number is a quarter.
      const values = Array.from({ length: 15 }, () => (random.below(1_000_000) / 1_000_000) ** 2);
      const { low, high } = quantile(values, 0.5);
      if (low! <= 0.25 && high! >= 0.25) covered += 1;
    }
    assert.ok(covered / tries > 0.95 && covered / tries < 0.98, String(covered / tries));
  });
});

describe('bars', () => {
  it('are held by a whole interval only', () => {
    const estimate = { value: 1, low: 0.9, high: 1.1 };
    assert.equal(held(estimate, 0.9, 'more'), 'yes');
    assert.equal(held(estimate, 0.95, 'more'), 'undecided');
    assert.equal(held(estimate, 1.11, 'more'), 'no');
    assert.equal(held(estimate, 1.1, 'less'), 'yes');
    assert.equal(held(estimate, 1, 'less'), 'undecided');
    assert.equal(held(estimate, 0.89, 'less'), 'no');
  });

  it('are undecided without an interval', () => {
    assert.equal(held({ value: 5, low: null, high: null }, 1, 'more'), 'undecided');
  });
});

describe('ratios', () => {
  it('are above 1 when ours does more in the same time, or takes less time', () => {
    assert.equal(ratioOf(rate, [second(20), second(20)], [second(10), second(10)]).value, 2);
    assert.equal(ratioOf(time, [second(200_000)], [second(100_000)]).value, 2);
  });

  it('are formed inside each round, not between the medians', () => {
    const ours = [second(10), second(100), second(30)];
    assert.equal(ratioOf(rate, ours, [second(20), second(200), second(15)]).value, 0.5);
  });

  it('refuse what is not paired', () => {
    assert.throws(() => ratioOf(rate, [second(1), second(1)], [second(1)]), RangeError);
  });
});

describe('turns', () => {
  it('begin with another one each time and go backwards every second time', async () => {
    const log: string[] = [];
    const runner = (name: string) => async () => `${name}${log.push(name)}`;
    const [a, b, c] = await inTurns(6, [runner('a'), runner('b'), runner('c')]);
    assert.equal(log.join(''), 'abccbabcaacbcabbac');
    assert.deepEqual([a?.length, b, c?.[0]], [6, ['b2', 'b5', 'b7', 'b12', 'b15', 'b16'], 'c3']);
  });

  it('alternate between two, and run one alone', async () => {
    const log: string[] = [];
    const runner = (name: string) => async () => log.push(name);
    await inTurns(4, [runner('a'), runner('b')]);
    assert.equal(log.join(''), 'abbabaab');
    assert.deepEqual(await inTurns(2, [async () => 1]), [[1, 1]]);
  });
});

describe('processor lists', () => {
  it('are read with ranges', () => {
    assert.deepEqual(parseCpuList('0-2,5'), [0, 1, 2, 5]);
    assert.deepEqual(parseCpuList('3'), [3]);
    assert.deepEqual(parseCpuList(''), []);
  });
});
