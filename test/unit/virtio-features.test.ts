import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { deviceId, deviceIdOf, deviceName } from '../../src/virtio/device-ids.ts';
import { blkFeature, FeatureSet, feature } from '../../src/virtio/features.ts';
import { describeStatus, status } from '../../src/virtio/status.ts';

const bits = fc.array(fc.nat({ max: 160 }), { maxLength: 20 });
const sorted = (values: Iterable<number>): number[] => [...new Set(values)].sort((a, b) => a - b);

describe('FeatureSet', () => {
  it('keeps bit 31, 32 and 63 apart and unsigned', () => {
    const set = FeatureSet.of(31, 32, 63);
    assert.deepEqual(set.toBlocks(), [0x8000_0000, 0x8000_0001]);
    assert.deepEqual(FeatureSet.fromBlocks([-(2 ** 31), 0x8000_0001]).bits(), [31, 32, 63]);
    assert.equal(set.has(31) && set.has(32) && set.has(63), true);
    assert.equal(set.has(0) || set.has(30) || set.has(62) || set.has(64) || set.has(9999), false);
  });

  it('behaves like a set of numbers', () => {
    fc.assert(
      fc.property(bits, bits, (a, b) => {
        const [x, y] = [FeatureSet.of(...a), FeatureSet.of(...b)];
        assert.deepEqual(x.bits(), sorted(a));
        assert.deepEqual(x.and(y).bits(), sorted(a.filter((bit) => b.includes(bit))));
        assert.deepEqual(x.or(y).bits(), sorted([...a, ...b]));
        assert.deepEqual(x.minus(y).bits(), sorted(a.filter((bit) => !b.includes(bit))));
        assert.equal(
          x.isSubsetOf(y),
          a.every((bit) => b.includes(bit)),
        );
        assert.equal(x.equals(y), sorted(a).join() === sorted(b).join());
        assert.ok(FeatureSet.fromBlocks(x.toBlocks()).equals(x));
      }),
      { seed: 1, numRuns: 300 },
    );
  });

  it('is immutable, and copies the blocks it is given', () => {
    const blocks = [1];
    const set = FeatureSet.fromBlocks(blocks);
    blocks[0] = 2;
    set.with(5);
    set.toBlocks()[0] = 9;
    assert.deepEqual(set.bits(), [0]);
    assert.deepEqual(FeatureSet.empty.bits(), []);
  });

  it('pads blocks with zero and refuses to cut', () => {
    assert.deepEqual(FeatureSet.of(1).toBlocks(3), [2, 0, 0]);
    assert.deepEqual(FeatureSet.fromBlocks([0, 0, 0]).toBlocks(), []);
    assert.equal(FeatureSet.of(1).block(7), 0);
    assert.throws(() => FeatureSet.of(64).toBlocks(2));
    assert.throws(() => FeatureSet.of(-1));
  });

  it('names bits for people', () => {
    const set = FeatureSet.of(feature.VERSION_1, feature.EVENT_IDX, blkFeature.RO, 50);
    assert.deepEqual(set.names(deviceId.blk), ['RO', 'EVENT_IDX', 'VERSION_1', 'bit-50']);
    assert.deepEqual(set.names(), ['bit-5', 'EVENT_IDX', 'VERSION_1', 'bit-50']);
    assert.deepEqual(FeatureSet.of(1).names(deviceId.console), ['MULTIPORT']);
    assert.deepEqual(FeatureSet.of(1).names(deviceId.rng), ['bit-1']);
  });

  it('has the numbers of the specification', () => {
    assert.deepEqual(Object.values(feature), [28, 29, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41]);
    assert.deepEqual(Object.values(blkFeature), [1, 2, 4, 5, 6, 9, 10, 11, 12, 13, 14, 15, 16, 17]);
  });
});

describe('describeStatus', () => {
  it('names every bit, unknown ones in hex', () => {
    assert.equal(describeStatus(0), 'RESET');
    assert.equal(describeStatus(15), 'ACKNOWLEDGE|DRIVER|DRIVER_OK|FEATURES_OK');
    assert.equal(describeStatus(status.DEVICE_NEEDS_RESET | status.FAILED), 'DEVICE_NEEDS_RESET|FAILED');
    assert.equal(describeStatus(1 | 0x30), 'ACKNOWLEDGE|0x30');
    assert.equal(describeStatus(0x8000_0000), '0x80000000');
  });
});

describe('device ids', () => {
  it('go both ways', () => {
    assert.deepEqual([deviceName(1), deviceName(2), deviceName(4), deviceName(19)], ['net', 'blk', 'rng', 'vsock']);
    for (let id = 1; id < 60; id++) assert.ok([id, undefined].includes(deviceIdOf(deviceName(id))));
    assert.equal(deviceIdOf('blk'), deviceId.blk);
    assert.equal(deviceName(999), 'type-999');
    assert.equal(deviceIdOf('type-999'), undefined);
  });
});
