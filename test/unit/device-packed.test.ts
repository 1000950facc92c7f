import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { feature } from '../../src/virtio/features.ts';
import { FakeBackend } from '../support/bridge-backend.ts';
import { Bench, buffer } from '../support/bridge-bench.ts';
import { expectValue } from '../support/virtqueue-pair.ts';

function bench(): { b: Bench; device: FakeBackend } {
  const b = new Bench({});
  const device = new FakeBackend({});
  b.attach(device);
  b.connect();
  return { b, device };
}

const areaAddress = (area: number, offset: number): bigint => (BigInt(area) << 48n) | BigInt(offset);
const good = {
  index: 0,
  flags: 0,
  size: 7,
  reserved: 0,
  descAddr: areaAddress(1, 16),
  driverAddr: areaAddress(1, 4100),
  deviceAddr: areaAddress(1, 8196),
};

describe('a device with packed queues', () => {
  it('takes any size up to its maximum, and the alignments of packed rings', () => {
    const { b } = bench();
    b.negotiate(0, [feature.RING_PACKED]);
    const sizeAfter = (change: object): number => {
      b.ask('SET_VQUEUE', { ...good, ...change });
      return b.ask('GET_VQUEUE', { index: 0 }).size as number;
    };
    for (const change of [
      { size: 17 },
      { descAddr: good.descAddr + 8n },
      { driverAddr: good.driverAddr + 2n },
      { deviceAddr: good.deviceAddr + 2n },
    ]) {
      assert.equal(sizeAfter(change), 0, JSON.stringify(Object.keys(change)));
    }
    for (const size of [1, 7, 15, 16]) assert.equal(sizeAfter({ size }), size);
  });

  it('keeps the rules of split rings when packed ones were not agreed on', () => {
    const { b } = bench();
    b.negotiate();
    b.ask('SET_VQUEUE', good);
    assert.equal(b.ask('GET_VQUEUE', { index: 0 }).size, 0);
    b.ask('SET_VQUEUE', { ...good, size: 8, driverAddr: areaAddress(1, 4098) });
    assert.equal(b.ask('GET_VQUEUE', { index: 0 }).size, 8);
  });

  for (const inOrder of [false, true]) {
    it(`carries requests to the backend and back${inOrder ? ' in order' : ''}`, () => {
      const { b, device } = bench();
      const extra = [feature.RING_PACKED, ...(inOrder ? [feature.IN_ORDER] : [])];
      const { queue } = b.start({ size: 5, extra });
      const tokens = [0, 1, 2].map((slot) => queue.add([], [buffer(1, slot)])!);
      queue.kick();
      // What a notification says about the ring is a hint at most.
      b.post({ kind: 'event', name: 'EVENT_AVAIL', body: { index: 0, next: 0xffff_ffff } });
      b.scheduler.run();
      const requests = device.held.splice(0);
      assert.equal(requests.length, 3);
      requests[2]!.complete(3);
      b.scheduler.run();
      const first = queue.next();
      if (inOrder) assert.equal(first, undefined);
      else assert.deepEqual(first, { token: tokens[2], writtenBytes: 3 });
      requests[0]!.complete(1);
      requests[1]!.complete(2);
      b.scheduler.run();
      const rest = inOrder ? [0, 1, 2] : [0, 1];
      for (const i of rest) {
        assert.deepEqual(expectValue(queue.next()), { token: tokens[i], writtenBytes: i + 1 });
      }
      assert.equal(queue.freeDescriptors, 5);
    });
  }
});
