import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { deviceModel } from '../../src/device/model.ts';
import { limits } from '../../src/kit/limits.ts';
import { feature } from '../../src/virtio/features.ts';
import { status } from '../../src/virtio/status.ts';
import { TestRequest } from '../support/bridge-request.ts';
import { isCode } from '../support/guest-fixture.ts';
import { ShadowBench, served } from '../support/shadow-bench.ts';

const bytes = (length: number, first: number): Uint8Array => Uint8Array.from({ length }, (_, i) => (first + i) & 0xff);

/** The serving device answers: the readable bytes, each plus one, as far as there is room. */
function echo(bench: ShadowBench): void {
  for (const request of bench.device.held.splice(0)) {
    const read = request.readable.flatMap((part) => [...part]);
    let at = 0;
    for (const part of request.writable) {
      for (let i = 0; i < part.length && at < read.length; i++) part[i] = (read[at++]! + 1) & 0xff;
    }
    request.complete(at);
  }
}

describe('requests on the shadow path', () => {
  for (const without of [[], [feature.INDIRECT_DESC], [feature.EVENT_IDX]]) {
    test(`are copied there and back, part by part, without features ${without}`, async () => {
      const bench = await ShadowBench.open({ without });
      await bench.start();
      const requests = [
        new TestRequest([bytes(3, 1), bytes(5000, 4)], [10, 0, 4000, 2000]),
        new TestRequest([bytes(16, 9)], []),
        new TestRequest([], [64]),
      ];
      for (const request of requests) bench.backend.handle(request);
      await bench.settle();
      assert.deepEqual(
        bench.device.held.map(({ readable, writable }) => [
          readable.map((r) => r.length),
          writable.map((w) => w.length),
        ]),
        [
          [
            [3, 5000],
            [10, 4000, 2000],
          ],
          [[16], []],
          [[], [64]],
        ],
        'the serving side gets the descriptors that the driver made',
      );
      echo(bench);
      await bench.settle();
      assert.deepEqual(await Promise.all(requests.map(({ done }) => done)), [5003, 0, 0]);
      const expected = [...bytes(3, 2), ...bytes(5000, 5), ...new Uint8Array(6010 - 5003).fill(0xaa)];
      assert.deepEqual([...requests[0]!.written()], expected, 'what was not written stays as it was');
      assert.ok(requests[2]!.written().every((byte) => byte === 0xaa));
      assert.deepEqual(bench.failures, []);
      await bench.backend.close();
    });
  }

  test('with more parts than the ring has entries become two descriptors', async () => {
    const bench = await ShadowBench.open({ without: [feature.INDIRECT_DESC], queueSizes: [8] });
    await bench.start();
    const parts = Array.from({ length: 20 }, (_, i) => bytes(7, i));
    const request = new TestRequest(parts, [100, 100]);
    bench.backend.handle(request);
    await bench.settle();
    assert.deepEqual(
      bench.device.held.map(({ readable, writable }) => [readable.map((r) => r.length), writable.map((w) => w.length)]),
      [[[140], [200]]],
    );
    echo(bench);
    assert.equal(await request.done, 140);
    assert.equal(request.written()[0], 1);
  });

  test('that come before the serving side is set up wait for it; unused bytes complete at once', async () => {
    const bench = await ShadowBench.open();
    bench.device.automatic = 0;
    bench.backend.activate(() => false);
    const requests = [
      new TestRequest([bytes(4, 0)], []),
      new TestRequest([], []),
      new TestRequest([bytes(4, 0)], [], 1),
    ];
    for (const request of requests) bench.backend.handle(request);
    await Promise.all(requests.map(({ done }) => done));
    assert.equal(bench.device.handled, 2);
  });

  test('wait in order when memory is short, and all get their turn', async () => {
    const bench = await ShadowBench.open({ queueSizes: [64] });
    await bench.start();
    const half = limits.shadowMemoryBytes / 2;
    const requests = [half, half, 100, half].map((length) => new TestRequest([], [length]));
    for (const request of requests) bench.backend.handle(request);
    await bench.settle();
    assert.equal(bench.device.held.length, 1, 'two halves and the rings are more than all');
    for (const more of [2, 1]) {
      bench.device.complete(8);
      await bench.settle();
      assert.equal(bench.device.held.length, more);
      if (more === 2) bench.device.complete(8);
      await bench.settle();
    }
    for (const request of [...bench.device.held]) request.complete(8);
    bench.device.held.length = 0;
    await bench.settle();
    assert.deepEqual(bench.failures, []);
    assert.equal(requests.filter(({ completions }) => completions === 1).length, requests.length);
  });

  test('that can never fit fail the device, and say so', async () => {
    const bench = await ShadowBench.open();
    await bench.start();
    const request = new TestRequest([], [limits.shadowMemoryBytes]);
    bench.backend.handle(request);
    assert.match(bench.failures[0] ?? '', /a request of \d+ bytes does not fit into the \d+ bytes/);
    bench.backend.cancel?.(0, false);
    assert.ok(request.released);
  });

  test('negotiate the bits of the device that both drivers have, and those of the rings', async () => {
    const bench = await ShadowBench.open({ featureBits: [0, 5, 64] });
    assert.deepEqual(bench.backend.description.featureBits, [0, 5, 64]);
    await bench.start([5, 64, feature.IN_ORDER, feature.RING_PACKED]);
    const has = bench.device.active!;
    for (const bit of [5, 64, feature.VERSION_1, feature.ACCESS_PLATFORM, feature.EVENT_IDX])
      assert.ok(has(bit), `${bit}`);
    for (const bit of [0, feature.IN_ORDER, feature.RING_PACKED, feature.NOTIFICATION_DATA])
      assert.ok(!has(bit), `${bit}`);
  });
});

describe('the end of requests on the shadow path', () => {
  /** Two requests that the serving side keeps, one a queue. */
  async function held(options = {}) {
    const bench = await ShadowBench.open(options);
    await bench.start();
    const requests = [new TestRequest([], [32], 0), new TestRequest([], [32], 1)];
    for (const request of requests) bench.backend.handle(request);
    await bench.settle();
    assert.equal(bench.device.held.length, 2);
    return { bench, requests };
  }

  test('a reset of the driver gets everything back at once, also from a serving side that is deaf', async () => {
    const { bench, requests } = await held();
    bench.deaf.add('SET_DEVICE_STATUS');
    for (const queue of [0, 1]) bench.backend.cancel?.(queue, false);
    assert.ok(requests.every(({ released }) => released));
    bench.backend.deactivate();
    await bench.settle();
    assert.ok(!bench.seen.includes('RESET_VQUEUE'), 'one reset of the device does');
    bench.deaf.clear();
    await bench.pass(limits.requestTimeoutMs);
    bench.seen.length = 0;
    bench.device.automatic = 3;
    await bench.start();
    const next = new TestRequest([], [8]);
    bench.backend.handle(next);
    assert.equal(await next.done, 3);
    assert.equal(bench.seen[0], 'SET_DEVICE_STATUS', 'first of all the reset');
    assert.deepEqual(bench.failures, []);
  });

  test('a reset of one queue leaves the other alone', async () => {
    const { bench, requests } = await held();
    bench.backend.cancel?.(0, false);
    assert.deepEqual(
      requests.map(({ released }) => released),
      [true, false],
    );
    const next = new TestRequest([], [8], 0);
    bench.backend.handle(next);
    await bench.settle();
    assert.deepEqual(
      bench.device.held.map(({ queue, writableBytes }) => [queue, writableBytes]),
      [
        [1, 32],
        [0, 8],
      ],
    );
    bench.device.complete(5);
    bench.device.complete(6);
    assert.deepEqual([await requests[1]!.done, await next.done], [5, 6]);
    assert.equal(bench.device.log.join(), 'activate', 'the device was not reset');
  });

  test('before the service ends, what is completed in time reaches the driver, the rest is given back', async () => {
    const { bench, requests } = await held();
    for (const queue of [0, 1]) bench.backend.cancel?.(queue, true);
    await bench.settle();
    bench.device.complete(7);
    assert.equal(await requests[0]!.done, 7);
    assert.ok(!requests[1]!.released, 'there is still time');
    await bench.pass(limits.shadowDrainMs);
    assert.ok(requests[1]!.released);
    assert.equal(bench.device.held.length, 0, 'the serving side was reset before');
  });

  test('before the service ends, a serving side that is deaf cannot hold it up', async () => {
    const { bench, requests } = await held();
    bench.deaf.add('SET_DEVICE_STATUS');
    for (const queue of [0, 1]) bench.backend.cancel?.(queue, true);
    await bench.pass(limits.shadowDrainMs);
    assert.ok(!requests[0]!.released);
    await bench.pass(limits.requestTimeoutMs);
    assert.ok(requests.every(({ released }) => released));
  });

  test('closing gives back everything, frees the memory, and leaves the device to others', async () => {
    const { bench, requests } = await held();
    await assert.rejects(bench.openBackend(), isCode('backend-busy'));
    const closing = bench.backend.close();
    assert.ok(requests.every(({ released }) => released));
    await closing;
    assert.ok(bench.memoryClosed);
    assert.equal(bench.boundTo, 0);
    bench.say({ kind: 'event', name: 'EVENT_USED', body: { index: 0 } });
    const again = await bench.openBackend();
    await again.close();
    assert.equal(bench.clock.timers, 0);
  });

  test('a serving side that goes is told on, once', async () => {
    const { bench, requests } = await held();
    bench.bus.close('the guest left');
    assert.deepEqual(bench.gone, ['the guest left']);
    for (const queue of [0, 1]) bench.backend.cancel?.(queue, false);
    bench.backend.deactivate();
    await bench.backend.close();
    assert.ok(requests.every(({ released }) => released));
    assert.deepEqual(bench.failures, []);
    await assert.rejects(bench.openBackend(), isCode('unavailable'));
  });
});

describe('a serving side on the shadow path', () => {
  test('that cannot reset single queues has no such feature for the driver either', async () => {
    const bench = await ShadowBench.open({ without: [feature.RING_RESET] });
    assert.ok(!deviceModel(bench.backend.description, 64).offered.has(feature.RING_RESET));
    const other = await ShadowBench.open();
    assert.ok(deviceModel(other.backend.description, 64).offered.has(feature.RING_RESET));
  });

  test('that says it needs a reset, or breaks a ring, fails the device; a reset by the driver makes it good', async () => {
    const bench = await ShadowBench.open();
    await bench.start();
    bench.serving.failed('broken');
    await bench.settle();
    assert.deepEqual(bench.failures.splice(0), [`device ${served} of the serving side: it needs a reset`]);
    bench.backend.deactivate();
    await bench.start();
    const request = new TestRequest([], [32]);
    bench.backend.handle(request);
    await bench.settle();
    // The used ring of queue 0 follows its descriptors and its available ring: one element, of a chain that is not out.
    const used = new DataView(bench.memory!.buffer, usedRingAt(16), 16);
    used.setUint32(4, 9, true);
    used.setUint16(2, 1, true);
    bench.say({ kind: 'event', name: 'EVENT_USED', body: { index: 0 } });
    assert.match(bench.failures.splice(0).join(), /device 3 of the serving side: it broke queue 0: used-id/);
    bench.backend.cancel?.(0, false);
    bench.backend.deactivate();
    bench.device.automatic = 1;
    await bench.start();
    const next = new TestRequest([], [32]);
    bench.backend.handle(next);
    assert.equal(await next.done, 1);
    assert.deepEqual(bench.failures, []);
  });

  for (const name of ['SET_DEVICE_STATUS', 'SET_DRIVER_FEATURES', 'SET_VQUEUE', 'GET_VQUEUE']) {
    test(`that does not answer ${name} fails the device in bounded time`, async () => {
      const bench = await ShadowBench.open();
      bench.deaf.add(name);
      await bench.start();
      const request = new TestRequest([], [32]);
      bench.backend.handle(request);
      await bench.pass(limits.requestTimeoutMs);
      assert.match(bench.failures.join(), new RegExp(`${name} failed with ETIMEDOUT`));
      bench.backend.cancel?.(0, false);
      assert.ok(request.released);
    });
  }

  test('that never finishes its reset, or does not take what was agreed on, fails the device', async () => {
    for (const [value, text] of [
      [status.ACKNOWLEDGE, /does not finish its reset/],
      [0, /has status RESET after ACKNOWLEDGE was written/],
    ] as const) {
      const bench = await ShadowBench.open();
      bench.tamper = (message) =>
        message.kind === 'response' && message.name.endsWith('DEVICE_STATUS')
          ? ({ ...message, body: { status: value } } as typeof message)
          : message;
      await bench.start();
      for (let ms = 0; ms <= limits.resetTimeoutMs && bench.failures.length === 0; ms += 1000) await bench.pass(1000);
      assert.match(bench.failures.join(), text);
    }
  });

  test('that describes itself beyond all bounds is not taken, and nothing stays open', async () => {
    const info = { maxVirtqueues: 4 };
    for (const [changes, text] of [
      [{ maxVirtqueues: limits.queuesPerDevice + 1 }, /queues/],
      [{ maxVirtqueues: 0 }, /0 queues/],
      [{ ...info, configSize: limits.shadowConfigMaxBytes + 1 }, /bytes of configuration/],
      [info, /has no queue 2/],
      [{ featureBlockCount: 1 }, /does not offer VERSION_1/],
    ] as const) {
      const bench = new ShadowBench();
      bench.tamper = (message) =>
        message.kind === 'response' && message.name === 'GET_DEVICE_INFO'
          ? { ...message, body: { ...message.body, ...changes } }
          : message;
      await assert.rejects(bench.openBackend(), isCode('protocol-violation', text));
      assert.ok(bench.memoryClosed);
      assert.equal(bench.boundTo, 0);
      assert.equal(bench.clock.timers, 0);
      assert.equal(bench.bus.claims, 0);
    }
  });

  test('that does not map the memory is not taken', async () => {
    const bench = new ShadowBench();
    bench.tamper = (message) =>
      message.name === 'REGION_ADD' ? ({ ...message, body: { errno: 28 } } as never) : message;
    await assert.rejects(bench.openBackend(), isCode('unavailable', /REGION_ADD with ENOSPC/));
    assert.ok(bench.memoryClosed);
  });
});

describe('the configuration space on the shadow path', () => {
  test('is read at the start, and changes reach the driver as what has changed', async () => {
    const bench = await ShadowBench.open();
    assert.deepEqual(bench.backend.description.config, bench.device.description.config);
    await bench.start();
    bench.device.host!.configChanged(4, Uint8Array.of(0xf1, 6, 0xf3));
    await bench.pass(limits.shadowConfigReadMs);
    assert.deepEqual(bench.changes, [{ offset: 4, data: Uint8Array.of(0xf1, 6, 0xf3) }]);
  });

  test('is read once for many events, whatever they say', async () => {
    const bench = await ShadowBench.open();
    await bench.start();
    bench.seen.length = 0;
    for (let i = 0; i < 1000; i++) {
      const body = { status: 15, generation: i, offset: 0, length: 4, data: Uint8Array.of(i, i, i, i) };
      bench.say({ kind: 'event', name: 'EVENT_CONFIG', body });
    }
    await bench.pass(limits.shadowConfigReadMs);
    assert.deepEqual(bench.seen, ['GET_CONFIG']);
    assert.deepEqual(bench.changes, [], 'nothing had changed');
  });

  test('is written where the serving side takes it', async () => {
    const bench = await ShadowBench.open();
    await bench.start();
    assert.equal(await bench.backend.writeConfig(3, Uint8Array.of(8, 9)), true);
    assert.deepEqual(bench.device.writes, [{ offset: 3, data: Uint8Array.of(8, 9) }]);
    bench.device.acceptConfig = false;
    assert.equal(await bench.backend.writeConfig(3, Uint8Array.of(1)), false);
    assert.equal(await bench.backend.writeConfig(39, Uint8Array.of(1, 2)), false, 'outside');
    bench.deaf.add('SET_CONFIG');
    const late = bench.backend.writeConfig(3, Uint8Array.of(1));
    await bench.pass(limits.requestTimeoutMs);
    assert.equal(await late, false);
  });
});

/** Where the used ring of a split queue of this size starts: descriptors and available ring come first. */
function usedRingAt(size: number): number {
  return Math.ceil((size * 16 + 6 + 2 * size) / 4) * 4;
}
