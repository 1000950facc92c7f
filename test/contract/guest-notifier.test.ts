import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlkDriver } from '../../src/guest/index.ts';
import { errno } from '../../src/kit/errno.ts';
import { census } from '../../src/libc/census.ts';
import { isCode, withPeer } from '../support/guest-fixture.ts';

const eventfds = (): number => census().fds.eventfd ?? 0;

for (const refusal of ['EPERM', 'EINVAL', 'EOPNOTSUPP'] as const) {
  test(`a driver that is told ${refusal} of a program uses messages, and makes no descriptors`, () =>
    withPeer(async ({ connect, model }) => {
      const asked: number[] = [];
      model.overrides.set('QUEUE_NOTIFY', ({ flags }) => {
        asked.push(flags);
        return { errno: errno[refusal] };
      });
      const bus = await connect();
      const before = eventfds();
      const blk = await BlkDriver.open(bus, model.device);
      assert.deepEqual([asked, eventfds()], [[4], before]);
      const data = new Uint8Array(4096).fill(7);
      await blk.write(0, data);
      assert.deepEqual(await blk.read(0, 4096), data);
      assert.ok(model.log.includes('EVENT_AVAIL'));
      await blk.close();
    }));
}

test('a driver that is told of a program hands both ways to it; what it is told by message counts too', () =>
  withPeer(async ({ connect, model }) => {
    const asked: number[] = [];
    model.overrides.set('QUEUE_NOTIFY', ({ flags, kick, call }, _header, connection) => {
      asked.push(flags);
      if (flags === 7) {
        assert.equal(call, kick + 1);
        for (const reference of [kick, call]) {
          const fd = connection.fds.get(reference);
          assert.ok(fd !== undefined);
          fd.close();
          connection.fds.delete(reference);
        }
      }
      return { errno: 0 };
    });
    const bus = await connect();
    const before = eventfds();
    const blk = await BlkDriver.open(bus, model.device);
    assert.deepEqual(asked, [4, 7]);
    assert.ok(eventfds() > before);
    const reading = blk.read(0, 512);
    reading.catch(() => {});
    await bus.ping();
    assert.ok(!model.log.includes('EVENT_AVAIL'));
    await blk.close();
    await assert.rejects(reading);
    assert.equal(eventfds(), before);
  }));

test('a driver that wants messages asks nobody', () =>
  withPeer(async ({ connect, model }) => {
    const blk = await BlkDriver.open(await connect(), model.device, { notify: 'messages' });
    await blk.read(0, 512);
    assert.ok(!model.log.includes('QUEUE_NOTIFY'));
    await blk.close();
  }));

test('a refusal of both ways fails the queue, and leaves nothing', () =>
  withPeer(async ({ connect, model }) => {
    model.overrides.set('QUEUE_NOTIFY', ({ flags }, _header, connection) => {
      for (const fd of connection.fds.values()) fd.close();
      connection.fds.clear();
      return { errno: flags === 4 ? 0 : errno.EPERM };
    });
    await assert.rejects(BlkDriver.open(await connect(), model.device), isCode('unavailable', /QUEUE_NOTIFY .* EPERM/));
  }));
