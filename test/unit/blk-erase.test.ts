import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { BlkBackend } from '../../src/bridge/backend/blk.ts';
import { limits } from '../../src/kit/limits.ts';
import { blkRequestType, blkStatus } from '../../src/virtio/blk.ts';
import { blkFeature } from '../../src/virtio/features.ts';
import { readU32, readU64 } from '../../src/wire/bytes.ts';
import { blk, blkHead, MemoryDisk, rangeBytes, type TestRange, withFlush } from '../support/bridge-disk.ts';
import { split } from '../support/bridge-request.ts';
import { Prng } from '../support/virtqueue-pair.ts';

const { DISCARD, WRITE_ZEROES, IN } = blkRequestType;
const { OK, IOERR, UNSUPP } = blkStatus;
const mib = 1024 * 1024;

function make(sizeBytes = mib, canPunch = true): { disk: MemoryDisk; device: BlkBackend } {
  const disk = new MemoryDisk(sizeBytes);
  disk.canPunch = canPunch;
  disk.bytes.fill(0x77);
  const device = new BlkBackend(disk, '');
  device.activate(withFlush);
  return { disk, device };
}

const erase = async (device: BlkBackend, type: number, data: Uint8Array): Promise<number | undefined> =>
  (await blk(device, [blkHead(type, 0n), data], [1])).status;

const isZero = (disk: MemoryDisk, from: number, to: number): void => {
  for (let i = 0; i < disk.bytes.length; i++) {
    const expected = i >= from && i < to ? 0 : 0x77;
    if (disk.bytes[i] !== expected) assert.fail(`byte ${i} is ${disk.bytes[i]}, not ${expected}`);
  }
};

describe('blk: discard', () => {
  test('takes storage away from every range', async () => {
    const { disk, device } = make();
    const data = rangeBytes({ sector: 8, sectors: 8 }, { sector: 16, sectors: 0 }, { sector: 16, sectors: 4 });
    assert.equal(await erase(device, DISCARD, data), OK);
    assert.deepEqual(disk.log, ['punch 4096 4096', 'punch 4096 4096 done', 'punch 8192 2048', 'punch 8192 2048 done']);
    isZero(disk, 4096, 10240);
  });

  test('the list may lie in parts of any length', async () => {
    const { disk, device } = make();
    const data = rangeBytes({ sector: 0, sectors: 1 }, { sector: 1, sectors: 1 });
    const result = await blk(device, [blkHead(DISCARD, 0n), ...split(data, 3, 0, 17)], [0, 1]);
    assert.equal(result.status, OK);
    isZero(disk, 0, 1024);
  });

  test('a flag is UNSUPP, unmap too, wherever it stands, and nothing is done', async () => {
    const { disk, device } = make();
    for (const flags of [1, 2, 0x8000_0000, 0xffff_ffff]) {
      for (const range of [
        { sector: 0, sectors: 1, flags },
        { sector: 1n << 60n, sectors: 1, flags },
      ]) {
        const data = rangeBytes({ sector: 0, sectors: 1 }, { sector: 5000, sectors: 1 }, range);
        assert.equal(await erase(device, DISCARD, data), UNSUPP);
      }
    }
    assert.deepEqual(disk.log, []);
  });

  test('where holes cannot be punched it is neither offered nor done', async () => {
    const { disk, device } = make(mib, false);
    assert.ok(!device.description.featureBits.includes(blkFeature.DISCARD));
    assert.equal(await erase(device, DISCARD, rangeBytes({ sector: 0, sectors: 1 })), UNSUPP);
    assert.deepEqual(disk.log, []);
  });

  test('an error of the file ends the request', async () => {
    const { disk, device } = make();
    disk.errors.punch.push(null, new Error('no'));
    const one = { sector: 0, sectors: 1 };
    assert.equal(await erase(device, DISCARD, rangeBytes(one, one, one)), IOERR);
    assert.equal(disk.log.length, 4, 'the third range is left alone');
  });
});

describe('blk: write zeroes', () => {
  for (const [flags, canPunch, how] of [
    [0, true, 'zero'],
    [1, true, 'punch'],
    [0, false, 'zero'],
    [1, false, 'zero'],
  ] as const) {
    test(`flags ${flags} on a file that ${canPunch ? 'has' : 'has no'} holes: ${how}`, async () => {
      const { disk, device } = make(mib, canPunch);
      assert.equal(await erase(device, WRITE_ZEROES, rangeBytes({ sector: 4, sectors: 3, flags })), OK);
      assert.deepEqual(disk.log, [`${how} 2048 1536`, `${how} 2048 1536 done`]);
      isZero(disk, 2048, 3584);
    });
  }

  test('an unknown flag is UNSUPP', async () => {
    const { disk, device } = make();
    for (const flags of [2, 3, 0x8000_0001]) {
      assert.equal(await erase(device, WRITE_ZEROES, rangeBytes({ sector: 0, sectors: 1, flags })), UNSUPP);
    }
    assert.deepEqual(disk.log, []);
  });

  test('a write-through device completes it when it is stable', async () => {
    const { disk, device } = make();
    device.deactivate();
    device.activate(() => false);
    assert.equal(await erase(device, WRITE_ZEROES, rangeBytes({ sector: 0, sectors: 1 })), OK);
    assert.deepEqual(disk.log.slice(2), ['datasync', 'datasync done']);
    disk.errors.datasync.push(new Error('lost'));
    assert.equal(await erase(device, WRITE_ZEROES, rangeBytes({ sector: 0, sectors: 1 })), IOERR);
  });
});

describe('blk: ranges', () => {
  for (const type of [DISCARD, WRITE_ZEROES]) {
    test(`type ${type}: may reach into the padding of the last sector, not beyond it`, async () => {
      const { disk, device } = make(1000);
      assert.equal(await erase(device, type, rangeBytes({ sector: 1, sectors: 1 })), OK);
      assert.match(disk.log[0] ?? '', / 512 488$/);
      isZero(disk, 512, 1000);
      const { data } = await blk(device, [blkHead(IN, 1n)], [512, 1]);
      assert.deepEqual(data, new Uint8Array(512));
      assert.equal(await erase(device, type, rangeBytes({ sector: 1, sectors: 2 })), IOERR);
      assert.equal(await erase(device, type, rangeBytes({ sector: 2, sectors: 0 })), OK);
      assert.equal(await erase(device, type, rangeBytes({ sector: 3, sectors: 0 })), IOERR);
    });

    test(`type ${type}: one bad range, and none is applied`, async () => {
      const { disk, device } = make();
      const good = { sector: 0, sectors: 1 };
      for (const bad of [
        { sector: 2048, sectors: 1 },
        { sector: 2047, sectors: 2 },
        { sector: 1, sectors: 0xffff_ffff },
        { sector: 1n << 32n, sectors: 1 },
        { sector: (1n << 64n) - 1n, sectors: 1 },
        { sector: (1n << 64n) - 1n, sectors: 2 },
        { sector: 1n << 63n, sectors: 0 },
      ]) {
        assert.equal(await erase(device, type, rangeBytes(good, bad)), IOERR);
        assert.equal(await erase(device, type, rangeBytes(bad, good)), IOERR);
      }
      assert.deepEqual(disk.log, []);
    });

    test(`type ${type}: as many ranges as the limit, of whole entries`, async () => {
      const { disk, device } = make();
      const ranges = (count: number): TestRange[] => new Array<TestRange>(count).fill({ sector: 0, sectors: 1 });
      const most = rangeBytes(...ranges(limits.blkRangesPerRequest));
      for (const data of [
        new Uint8Array(0),
        most.subarray(0, 15),
        most.subarray(0, 17),
        most.subarray(0, 31),
        rangeBytes(...ranges(limits.blkRangesPerRequest + 1)),
        new Uint8Array(1 << 20),
      ]) {
        assert.equal(await erase(device, type, data), IOERR, `${data.length} bytes`);
      }
      assert.deepEqual(disk.log, []);
      assert.equal(await erase(device, type, most), OK);
      assert.equal(disk.log.length, 2 * limits.blkRangesPerRequest);
    });
  }

  test('the largest range that the device says is taken, one sector more is not', async () => {
    for (const [type, bytes] of [
      [DISCARD, limits.blkDiscardRangeMaxBytes],
      [WRITE_ZEROES, limits.blkZeroRangeMaxBytes],
    ] as const) {
      const { disk, device } = make(512);
      // No such memory: the range is large, the file only says it is.
      disk.sizeBytes = 2 * limits.blkDiscardRangeMaxBytes;
      assert.equal(await erase(device, type, rangeBytes({ sector: 0, sectors: bytes / 512 + 1 })), IOERR);
      assert.deepEqual(disk.log, []);
      assert.equal(await erase(device, type, rangeBytes({ sector: 0, sectors: bytes / 512 })), OK);
    }
  });
});

/** What the standard and the limits say about a list, worked out in another way: with exact numbers. */
function expectedStatus(type: number, data: Uint8Array, capacity: bigint): number {
  const most = BigInt((type === DISCARD ? limits.blkDiscardRangeMaxBytes : limits.blkZeroRangeMaxBytes) / 512);
  if (data.length === 0 || data.length % 16 !== 0 || data.length / 16 > limits.blkRangesPerRequest) return IOERR;
  const entries = Array.from({ length: data.length / 16 }, (_, i) => ({
    sector: readU64(data, i * 16),
    sectors: BigInt(readU32(data, i * 16 + 8)),
    flags: readU32(data, i * 16 + 12),
  }));
  if (entries.some(({ flags }) => (type === DISCARD ? flags !== 0 : flags > 1))) return UNSUPP;
  return entries.every(({ sector, sectors }) => sectors <= most && sector + sectors <= capacity) ? OK : IOERR;
}

function hostileList(prng: Prng, capacity: number): Uint8Array {
  const count = prng.pick([0, 1, 1, 2, 3, 32, 33]);
  const ranges = Array.from({ length: count }, () => ({
    sector: prng.chance(0.9)
      ? BigInt(prng.below(capacity + 2))
      : BigInt.asUintN(64, (BigInt(prng.u32()) << BigInt(prng.below(34))) - BigInt(prng.below(3))),
    sectors: prng.chance(0.9) ? prng.below(5) : prng.u32(),
    flags: prng.chance(0.8) ? 0 : prng.pick([1, 1, 2, prng.u32()]),
  }));
  const data = rangeBytes(...ranges);
  return prng.chance(0.9) ? data : data.subarray(0, prng.below(data.length + 1));
}

test('blk: 50 000 hostile lists of ranges end as the standard says and touch nothing else', async () => {
  const prng = new Prng(20_261_122);
  const capacity = 64;
  const disk = new MemoryDisk(capacity * 512 - 100);
  const device = new BlkBackend(disk, '');
  device.activate(withFlush);
  const seen = new Map<number, number>();
  for (let round = 0; round < 50_000; round++) {
    const type = prng.pick([DISCARD, WRITE_ZEROES]);
    const data = hostileList(prng, capacity);
    disk.log.length = 0;
    const cuts = Array.from({ length: prng.below(3) }, () => prng.below(20));
    const { status } = await blk(device, [blkHead(type, 0n), ...split(data, ...cuts)], [1]);
    const expected = expectedStatus(type, data, BigInt(capacity));
    assert.equal(status, expected, `round ${round}: ${Buffer.from(data).toString('hex')}`);
    if (expected !== OK) assert.deepEqual(disk.log, []);
    seen.set(expected, (seen.get(expected) ?? 0) + 1);
  }
  for (const status of [OK, IOERR, UNSUPP]) assert.ok((seen.get(status) ?? 0) > 2000, `status ${status} is seen`);
});
