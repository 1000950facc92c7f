import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { RangeAllocator } from '../../src/guest/allocator.ts';
import { listDevices } from '../../src/guest/device-list.ts';
import { RequestTable } from '../../src/guest/requests.ts';
import { inParallel, Slots } from '../../src/guest/slots.ts';
import type { Clock } from '../../src/kit/clock.ts';
import { VmsgError } from '../../src/kit/errors.ts';
import { limits } from '../../src/kit/limits.ts';
import { readU16 } from '../../src/wire/bytes.ts';

const isCode = (code: string) => (error: unknown) => error instanceof VmsgError && error.code === code;

/** A clock that moves when told. */
function manualClock(): Clock & { advance(ms: number): void } {
  let now = 0;
  let timers: Array<{ at: number; run: () => void }> = [];
  return {
    nowMs: () => now,
    after(delayMs, run) {
      const timer = { at: now + delayMs, run };
      timers.push(timer);
      return {
        cancel: () => {
          timers = timers.filter((other) => other !== timer);
        },
      };
    },
    advance(ms) {
      now += ms;
      const due = timers.filter((timer) => timer.at <= now);
      timers = timers.filter((timer) => timer.at > now);
      for (const timer of due) timer.run();
    },
  };
}

test('ranges are aligned, never overlap, and all come back as one', () => {
  const step = fc.record(
    { release: fc.boolean(), pick: fc.nat(), length: fc.integer({ min: 1, max: 600 }), align: fc.nat({ max: 8 }) },
    { noNullPrototype: true },
  );
  fc.assert(
    fc.property(fc.array(step, { maxLength: 80 }), (steps) => {
      const allocator = new RangeAllocator(4096);
      const used: Array<{ start: number; length: number }> = [];
      for (const { release, pick, length, align } of steps) {
        if (release && used.length > 0) {
          const [range] = used.splice(pick % used.length, 1);
          allocator.release(range!.start);
          continue;
        }
        const start = allocator.allocate(length, 2 ** align);
        if (start === undefined) continue;
        assert.equal(start % 2 ** align, 0);
        assert(start >= 0 && start + length <= 4096);
        for (const other of used) assert(start + length <= other.start || other.start + other.length <= start);
        used.push({ start, length });
      }
      assert.equal(allocator.count, used.length);
      for (const { start } of used) allocator.release(start);
      assert.equal(allocator.allocate(4096, 1), 0);
    }),
    { seed: 11, numRuns: 300 },
  );
});

test('a request is settled by its own target, token and name only', async () => {
  const table = new RequestTable(manualClock(), 1000);
  const { frame, response } = table.issue(3, { kind: 'request', name: 'GET_DEVICE_STATUS', body: {} }, 64, 'repeat');
  const token = readU16(frame, 4);
  const message = { kind: 'response', name: 'GET_DEVICE_STATUS', body: { status: 5 } } as const;
  assert.notEqual(token, 0);
  assert.equal(table.settle(4, token, message), false);
  assert.equal(table.settle('bus', token, message), false);
  assert.equal(table.settle(3, token + 1, message), false);
  assert.equal(table.settle(3, token, { ...message, name: 'SET_DEVICE_STATUS' }), false);
  assert.equal(table.settle(3, token, message), true);
  assert.deepEqual(await response, { status: 5 });
  assert.equal(table.settle(3, token, message), false);
});

test('tokens go round without 0 and without one that is in use', async () => {
  const clock = manualClock();
  const table = new RequestTable(clock, 1000);
  const issue = () => {
    const { frame, response } = table.issue('bus', { kind: 'request', name: 'PING', body: { data: 1 } }, 64, 'repeat');
    return { token: readU16(frame, 4), response };
  };
  const held = issue();
  for (let i = 0; i < 0x1_0010; i++) {
    const { token } = issue();
    assert(token !== 0 && token !== held.token);
    table.settle('bus', token, { kind: 'response', name: 'PING', body: { data: 1 } });
  }
  clock.advance(1000);
  await assert.rejects(held.response, isCode('timeout'));
});

test('requests are bounded, per device and in all', () => {
  const table = new RequestTable(manualClock(), 1000);
  const issue = (device: number) => {
    const { response } = table.issue(device, { kind: 'request', name: 'GET_DEVICE_STATUS', body: {} }, 64, 'repeat');
    response.catch(() => undefined);
  };
  for (let i = 0; i < limits.devicePendingRequests; i++) issue(1);
  assert.throws(() => issue(1), isCode('limit-reached'));
  for (let device = 2; device < 2 + limits.guestPendingRequests / limits.devicePendingRequests - 1; device++) {
    for (let i = 0; i < limits.devicePendingRequests; i++) issue(device);
  }
  assert.throws(() => issue(99), isCode('limit-reached'));
  table.rejectAll(new Error('end'));
  issue(1);
});

test('time stands still while the connection is being replaced, and repeats come in order', async () => {
  const clock = manualClock();
  const table = new RequestTable(clock, 1000);
  const first = table.issue(1, { kind: 'request', name: 'GET_DEVICE_STATUS', body: {} }, 64, 'repeat');
  const second = table.issue(
    'bus',
    { kind: 'request', name: 'REGION_DEL', body: { peer: 0, area: 1, reserved: 0 } },
    64,
    'reject',
  );
  table.suspend(new VmsgError('bus-lost', 'gone'));
  await assert.rejects(second.response, isCode('bus-lost'));
  clock.advance(100_000);
  const third = table.issue(2, { kind: 'request', name: 'GET_DEVICE_INFO', body: {} }, 64, 'repeat');
  clock.advance(100_000);
  assert.deepEqual(table.resume(), [first.frame, third.frame]);
  clock.advance(1000);
  await assert.rejects(first.response, isCode('timeout'));
  await assert.rejects(third.response, isCode('timeout'));
});

test('GET_DEVICES windows are walked to the end', async () => {
  const windows = [
    { offset: 0, nextOffset: 400, count: 16, bitmap: Uint8Array.of(0b1000_0001, 0b1) },
    { offset: 400, nextOffset: 65528, count: 0, bitmap: Uint8Array.of() },
    { offset: 65528, nextOffset: 0, count: 8, bitmap: Uint8Array.of(0x80) },
  ];
  const asked: number[] = [];
  const found = await listDevices(64, async ({ offset }) => {
    asked.push(offset);
    return windows.shift()!;
  });
  assert.deepEqual(found, [0, 7, 8, 65535]);
  assert.deepEqual(asked, [0, 400, 65528]);
});

for (const [name, window] of Object.entries({
  'another offset': { offset: 8, nextOffset: 0, count: 8, bitmap: Uint8Array.of(1) },
  'more than asked': { offset: 0, nextOffset: 0, count: 401, bitmap: new Uint8Array(51) },
  'a next window that goes back into this one': { offset: 0, nextOffset: 4, count: 8, bitmap: Uint8Array.of(1) },
})) {
  test(`a GET_DEVICES window with ${name} is refused`, async () => {
    await assert.rejects(
      listDevices(64, async () => window),
      isCode('protocol-violation'),
    );
  });
}

test('endless GET_DEVICES windows end', async () => {
  let windows = 0;
  const walk = listDevices(64, async ({ offset }) => {
    windows += 1;
    return { offset, nextOffset: offset + 1, count: 0, bitmap: new Uint8Array(0) };
  });
  await assert.rejects(walk, isCode('protocol-violation'));
  assert.equal(windows, limits.guestDeviceWindows);
});

test('slots go to who waits longest, and end together', async () => {
  const slots = new Slots(['only']);
  const order: number[] = [];
  assert.equal(await slots.take(), 'only');
  const waiting = [0, 1, 2].map((n) => slots.take().then(() => order.push(n)));
  slots.give('only');
  await waiting[0];
  slots.give('only');
  await waiting[1];
  assert.deepEqual(order, [0, 1]);
  slots.end(new VmsgError('bus-lost', 'end'));
  await assert.rejects(waiting[2]!, isCode('bus-lost'));
  await assert.rejects(slots.take(), isCode('bus-lost'));
});

test('work in parallel keeps its width and waits for what it started before it fails', async () => {
  let running = 0;
  let most = 0;
  const started: number[] = [];
  const work = async (index: number): Promise<void> => {
    started.push(index);
    running += 1;
    most = Math.max(most, running);
    await new Promise((resolve) => setImmediate(resolve));
    running -= 1;
    if (index === 4) throw new Error('four');
  };
  await assert.rejects(inParallel(100, 3, work), /four/);
  assert.equal(running, 0);
  assert.equal(most, 3);
  assert(started.length < 10);
});
