import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { limits } from '../../src/kit/limits.ts';
import { FakeBackend } from '../support/bridge-backend.ts';
import { Bench, buffer } from '../support/bridge-bench.ts';
import { FakeCall, FakeMemory } from '../support/bridge-fakes.ts';

function bench(): { b: Bench; device: FakeBackend } {
  const b = new Bench();
  const device = new FakeBackend();
  b.attach(device);
  b.connect();
  return { b, device };
}

const add = { peer: 0, area: 1, flags: 0, reference: 5, domain: 0, offset: 0n, length: 4096n };

describe('session: regions', () => {
  test('a region with a wrong field is EINVAL, and no memory is touched', () => {
    const { b } = bench();
    const memory = new FakeMemory(new Uint8Array(8192));
    b.guest.resources.memories.set(5, memory);
    for (const wrong of [
      { peer: 1 },
      { area: 0 },
      { area: 0x8000 },
      { area: 0xffff },
      { flags: 2 },
      { flags: 0x8000 },
      { offset: 1n },
      { offset: 4095n },
      { offset: 1n << 52n },
      { offset: 1n << 63n },
      { offset: 0xffff_ffff_ffff_f000n },
      { length: 0n },
      { length: 100n },
      { length: BigInt(limits.regionMaxBytes) + 4096n },
      { length: 0xffff_ffff_ffff_f000n },
    ]) {
      const { errno } = b.ask('REGION_ADD', { ...add, ...wrong });
      assert.equal(
        errno,
        22,
        JSON.stringify(wrong, (_, v) => String(v)),
      );
    }
    assert.equal(b.ask('REGION_ADD', { ...add, domain: 1 }).errno, 95, 'no domains on this bus');
    assert.deepEqual(b.guest.resources.opened, []);
    assert.equal(b.ask('REGION_ADD', add).errno, 0);
    assert.equal(b.ask('REGION_ADD', add).errno, 17, 'the area is in use');
    assert.equal(b.ask('REGION_ADD', { ...add, area: 2 }).errno, 2, 'a reference is used once');
  });

  test('what the transport refuses is told to the guest', () => {
    const { b } = bench();
    for (const [name, errno] of [
      ['EPERM', 1],
      ['ENOMEM', 12],
      ['EINVAL', 22],
      ['ENOENT', 2],
    ] as const) {
      b.guest.resources.memories.set(5, name);
      assert.equal(b.ask('REGION_ADD', add).errno, errno);
    }
    assert.equal(b.runtime.snapshot().regions, 0);
  });

  test('counts rise and fall with regions, and are zero without a guest', () => {
    const { b } = bench();
    const memories = [1, 2, 3].map((area) => b.addRegion(area, 4096 * area));
    const { regions, regionBytes } = b.runtime.snapshot();
    assert.deepEqual([regions, regionBytes], [3, 4096 * 6]);
    assert.equal(b.removeRegion(2), 0);
    assert.equal(b.removeRegion(2), 2);
    assert.equal(b.ask('REGION_DEL', { peer: 1, area: 1, reserved: 0 }).errno, 22);
    assert.equal(b.ask('REGION_DEL', { peer: 0, area: 1, reserved: 1 }).errno, 22);
    assert.equal(b.runtime.snapshot().regionBytes, 4096 * 4);
    b.leave();
    assert.ok(memories.every((memory) => memory.closed));
    const after = b.runtime.snapshot();
    assert.deepEqual([after.regions, after.regionBytes, after.regionsDraining], [0, 0, 0]);
  });

  test('the limit of regions is ENOSPC', () => {
    const { b } = bench();
    for (let area = 1; area <= limits.regionsPerBus; area++) b.addRegion(area, 4096);
    b.guest.resources.memories.set(5, new FakeMemory(new Uint8Array(4096)));
    assert.equal(b.ask('REGION_ADD', { ...add, area: 1000 }).errno, 28);
    assert.equal(b.removeRegion(3), 0);
    assert.equal(b.ask('REGION_ADD', { ...add, area: 1000 }).errno, 0);
  });

  test('a read-only region serves as a source, and fails the device as a target', () => {
    const { b, device } = bench();
    const { queue } = b.start();
    b.addRegion(2, 65536, true);
    queue.add([buffer(2, 0)], []);
    queue.kick();
    b.available();
    assert.equal(device.handled, 1);
    queue.add([], [buffer(2, 0)]);
    queue.kick();
    b.available();
    assert.equal(device.handled, 1);
    assert.equal(b.takeEvents('EVENT_CONFIG').length, 1);
    assert.match(b.runtime.snapshot().devices[0]?.reason ?? '', /area 2 is read-only/);
  });

  test('a region that goes while I/O uses it answers when the I/O ends', () => {
    const { b, device } = bench();
    const { queue } = b.start();
    const data = b.addRegion(2);
    queue.add([buffer(2, 0)], []);
    queue.kick();
    b.available();
    const token = b.request('REGION_DEL', { peer: 0, area: 2, reserved: 0 });
    assert.deepEqual(b.take(), []);
    assert.equal(b.runtime.snapshot().regionsDraining, 1);
    device.complete();
    b.scheduler.run();
    const answers = b.take().filter((message) => message.name === 'REGION_DEL');
    assert.deepEqual([answers[0]?.header.token, answers[0]?.body], [token, { errno: 0 }]);
    assert.ok(data.closed);
  });

  test('a removal that is pending when the guest leaves is not answered, and unmaps with its I/O', () => {
    const { b, device } = bench();
    const { queue, memory } = b.start();
    queue.add([buffer(1, 0)], []);
    queue.kick();
    b.available();
    b.request('REGION_DEL', { peer: 0, area: 1, reserved: 0 });
    const left = b.guest;
    b.leave();
    b.clock.advance(limits.regionRemovalTimeoutMs);
    assert.equal(memory.closed, false);
    device.complete();
    b.scheduler.run();
    assert.ok(memory.closed);
    assert.deepEqual(left.port.visible, []);
    b.connect();
    assert.equal(b.getStatus(), 0);
  });
});

describe('session: queue signals', () => {
  const notify = { device: 0, queue: 0, flags: 3, kick: 1, call: 2 };

  const withSignals = () => {
    const { b, device } = bench();
    const kick = { onKick: undefined as (() => void) | undefined, closed: false };
    const call = new FakeCall();
    b.guest.resources.kicks.set(1, kick);
    b.guest.resources.calls.set(2, call);
    return { b, device, kick, call };
  };

  test('wrong fields are refused and leave the setting alone', () => {
    const { b, kick } = withSignals();
    assert.equal(b.ask('QUEUE_NOTIFY', { ...notify, device: 9 }).errno, 19);
    assert.equal(b.ask('QUEUE_NOTIFY', { ...notify, queue: 2 }).errno, 22);
    assert.equal(b.ask('QUEUE_NOTIFY', { ...notify, queue: 0xffffffff }).errno, 22);
    assert.equal(b.ask('QUEUE_NOTIFY', { ...notify, flags: 8 }).errno, 22);
    assert.equal(b.ask('QUEUE_NOTIFY', { ...notify, kick: 77 }).errno, 2);
    assert.equal(kick.onKick, undefined);
    assert.equal(b.ask('QUEUE_NOTIFY', { ...notify, call: 77 }).errno, 2);
    assert.ok(kick.closed, 'all or nothing: the kick is given back');
    b.start();
    assert.equal(b.ask('QUEUE_NOTIFY', { ...notify, flags: 0 }).errno, 0);
  });

  test('a kick alone leaves EVENT_USED, a call alone leaves EVENT_AVAIL', () => {
    const { b, device, kick, call } = withSignals();
    const { queue } = b.start();
    const offer = (): void => {
      queue.next();
      queue.add([buffer(1, 0)], []);
      queue.kick();
    };
    const completeOne = (): number => {
      device.complete();
      b.scheduler.run();
      return b.takeEvents('EVENT_USED').length;
    };
    assert.equal(b.ask('QUEUE_NOTIFY', { ...notify, flags: 1 }).errno, 0);
    offer();
    b.available();
    assert.equal(device.handled, 0);
    kick.onKick?.();
    b.scheduler.run();
    assert.deepEqual([completeOne(), call.rings], [1, 0]);
    assert.equal(b.ask('QUEUE_NOTIFY', { ...notify, flags: 2 }).errno, 0);
    assert.ok(kick.closed);
    offer();
    b.available();
    assert.equal(device.handled, 2);
    assert.deepEqual([completeOne(), call.rings], [0, 1]);
  });

  test('a setting ends with a reset of its device, with its removal and with the connection', async () => {
    for (const end of ['reset', 'detach', 'leave'] as const) {
      const { b, kick, call } = withSignals();
      b.start();
      assert.equal(b.ask('QUEUE_NOTIFY', notify).errno, 0);
      if (end === 'reset') b.setStatus(0);
      else if (end === 'detach') await b.detach('disk');
      else b.leave();
      assert.deepEqual([kick.closed, call.closed], [true, true], end);
    }
  });

  test('settings of other devices and queues stay', () => {
    const { b, kick, call } = withSignals();
    const other = b.attach(new FakeBackend(), 'other', 1);
    b.take();
    b.start({ device: other, area: 9 });
    b.start();
    assert.equal(b.ask('QUEUE_NOTIFY', notify).errno, 0);
    b.setStatus(0, other);
    assert.deepEqual([kick.closed, call.closed], [false, false]);
    b.setStatus(0);
    assert.deepEqual([kick.closed, call.closed], [true, true]);
  });

  test('the key of a setting keeps high device numbers apart', () => {
    const b = new Bench();
    const devices = [0, 0x8000, 0xffff].map((number) => {
      const device = new FakeBackend();
      b.attach(device, `disk-${number}`, number);
      return device;
    });
    b.connect();
    const kick = { onKick: undefined, closed: false };
    b.guest.resources.kicks.set(1, kick);
    assert.equal(b.ask('QUEUE_NOTIFY', { ...notify, device: 0x8000, flags: 1 }).errno, 0);
    const { queue } = b.start({ device: 0xffff });
    queue.add([buffer(1, 0)], []);
    queue.kick();
    b.available(0, 0xffff);
    assert.equal(devices[2]?.handled, 1);
    b.available(0, 0x8000);
    assert.equal(b.runtime.snapshot().counters.dropped, 1);
  });
});
