import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { BlkDriver, type BlkOptions, VirtioDevice } from '../../src/guest/index.ts';
import { feature } from '../../src/virtio/features.ts';
import { isCode, withPeer } from '../support/guest-fixture.ts';

const ringBits = [feature.RING_PACKED, feature.IN_ORDER];

describe('ring layouts', () => {
  for (const [what, options, bits] of [
    ['split unless asked otherwise', {}, []],
    ['packed, with any number of entries', { packed: true, size: 61 }, [feature.RING_PACKED]],
    ['split in order', { inOrder: true }, [feature.IN_ORDER]],
    ['packed in order', { packed: true, inOrder: true }, ringBits],
  ] as ReadonlyArray<[string, BlkOptions, number[]]>) {
    test(`a disk works over queues that are ${what}`, () =>
      withPeer(async ({ model, connect }) => {
        model.offered = model.offered.with(...ringBits);
        const blk = await BlkDriver.open(await connect(), 3, options);
        assert.deepEqual(
          blk.device.features.bits().filter((bit) => ringBits.some((ring) => ring === bit)),
          bits,
        );
        assert.equal(model.queueSetup?.size, options.size ?? 64);
        const data = Uint8Array.from({ length: 4096 }, (_, i) => i * 7);
        // More requests than entries, so that the ring begins anew.
        for (let round = 0; round < 40; round++) {
          data[0] = round;
          await Promise.all([0, 8, 16].map((sector) => blk.write(sector, data)));
          assert.deepEqual(await blk.read(8, 4096), data);
        }
        await blk.close();
      }));
  }

  test('a device without packed rings gets split ones', () =>
    withPeer(async ({ model, connect }) => {
      const bus = await connect();
      const device = await VirtioDevice.open(bus, 3, { packed: true, inOrder: true });
      assert.equal(device.features.has(feature.RING_PACKED), false);
      await assert.rejects(device.addQueue(0, { size: 61 }), isCode('invalid-request', /split queue .* power of two/));
      await device.close();
      model.offered = model.offered.with(...ringBits);
      const packed = await VirtioDevice.open(bus, 3, { packed: true });
      for (const size of [0, 2048, 1.5]) {
        await assert.rejects(packed.addQueue(0, { size }), isCode('invalid-request', /packed queue/));
      }
      assert.equal((await packed.addQueue(0, { size: 1000 })).size, 64, 'no more than the device has');
      await packed.close();
    }));
});

describe('notification data', () => {
  const lastNext = async (packed: boolean, data: boolean): Promise<number[]> => {
    const seen: number[] = [];
    await withPeer(async ({ model, connect }) => {
      if (data) model.offered = model.offered.with(feature.NOTIFICATION_DATA);
      model.offered = model.offered.with(feature.RING_PACKED);
      model.onAvailable = ({ next }) => void seen.push(next);
      const blk = await BlkDriver.open(await connect(), 3, { packed, size: 2 });
      for (let i = 0; i < 5; i++) await blk.flush();
      await blk.close();
    });
    return seen;
  };

  test('is the position and its wrap counter in a packed queue', async () => {
    // A flush takes one descriptor, which refers to a table.
    assert.deepEqual(await lastNext(true, true), [0x8000_0001, 0, 1, 0x8000_0000, 0x8000_0001]);
  });

  test('is the available index of a split queue', async () => {
    assert.deepEqual(await lastNext(false, true), [1, 2, 3, 4, 5]);
  });

  test('is zero when it was not agreed on', async () => {
    for (const packed of [false, true]) assert.deepEqual(await lastNext(packed, false), [0, 0, 0, 0, 0]);
  });
});
