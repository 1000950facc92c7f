import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { VmsgError } from '../../src/kit/errors.ts';
import { limits } from '../../src/kit/limits.ts';
import { census } from '../../src/libc/census.ts';
import { protocolFeature } from '../../src/vhost-user/features.ts';
import { FrontEnd } from '../../src/vhost-user/front-end.ts';
import { FeatureSet } from '../../src/virtio/features.ts';
import { FakeClock } from '../support/bridge-fakes.ts';
import { fromHex } from '../support/golden.ts';
import { FakeChannel, foreignFds, messageHex, REPLY, u64Hex } from '../support/vhost-user-fakes.ts';

const timeoutMs = 1_000;
const region = { guestAddress: 0n, size: 4096n, userAddress: 0x1000n, mmapOffset: 0n };

/** A front-end whose back-end is the test. */
class Bench {
  readonly channel = new FakeChannel();
  readonly clock = new FakeClock();
  readonly events: string[] = [];
  readonly frontEnd: FrontEnd;

  constructor() {
    const events = {
      configChanged: () => void this.events.push('config'),
      queueCalled: (index: number) => void this.events.push(`call ${index}`),
      queueFailed: (index: number) => void this.events.push(`error ${index}`),
      closed: (error: VmsgError) => void this.events.push(`${error.code}: ${error.message}`),
    };
    this.frontEnd = new FrontEnd(this.channel, this.clock, events, timeoutMs);
  }

  static async with(...protocol: ReadonlyArray<keyof typeof protocolFeature>): Promise<Bench> {
    const bench = new Bench();
    await bench.frontEnd
      .setProtocolFeatures(FeatureSet.of(...protocol.map((name) => protocolFeature[name])))
      .catch(() => {});
    return bench;
  }

  /** Takes what was sent. */
  sent(): string[] {
    return this.channel.sent.splice(0);
  }

  answer(id: number, payload: string, flags = REPLY): void {
    this.channel.deliver(messageHex(id, flags, payload));
  }

  async ended(code: string, reason: RegExp): Promise<void> {
    await turn();
    assert.equal(this.events.length, 1, this.events.join('\n'));
    assert.equal(this.frontEnd.ended?.code, code);
    assert.match(this.frontEnd.ended?.message ?? '', reason);
    assert.equal(this.channel.closed, true);
    assert.equal(this.clock.timers, 0);
  }
}

/** Negotiates REPLY_ACK and others; that request itself is acknowledged by then. */
async function acknowledging(...others: ReadonlyArray<keyof typeof protocolFeature>): Promise<Bench> {
  const bench = await Bench.with('REPLY_ACK', ...others);
  bench.sent();
  return bench;
}

test('answers are matched in order, requests go out at once', async () => {
  const bench = new Bench();
  const features = bench.frontEnd.getFeatures();
  const protocol = bench.frontEnd.getProtocolFeatures();
  assert.deepEqual(bench.sent(), [messageHex(1, 1), messageHex(15, 1)]);
  bench.answer(1, u64Hex(0x1_4000_0001n));
  bench.answer(15, u64Hex(0x9n));
  assert.deepEqual((await features).bits(), [0, 30, 32]);
  assert.deepEqual((await protocol).bits(), [0, 3]);
  assert.equal(bench.clock.timers, 0);
});

test('without REPLY_ACK what need not be known is not waited for, and the rest is followed by GET_FEATURES', async () => {
  const bench = await Bench.with('CONFIGURE_MEM_SLOTS', 'RESET_DEVICE');
  bench.sent();
  await bench.frontEnd.setOwner();
  await bench.frontEnd.setQueueSize(0, 64);
  assert.deepEqual(bench.sent(), [messageHex(3, 1), messageHex(8, 1, '0000000040000000')]);
  let done = false;
  const added = bench.frontEnd.addRegion(region, 0).then(() => {
    done = true;
  });
  assert.deepEqual(
    bench.sent().map((hex) => hex.slice(0, 8)),
    ['25000000', '01000000'],
  );
  await turn();
  assert.equal(done, false);
  bench.answer(1, u64Hex(0n));
  await added;
});

test('with REPLY_ACK every request asks for an answer, and a non-zero one is a refusal that ends nothing', async () => {
  const bench = await acknowledging();
  const kick = bench.frontEnd.setKick(2, 7);
  const silent = bench.frontEnd.setCall(2, undefined);
  assert.deepEqual(bench.sent(), [messageHex(12, 9, u64Hex(2n)), messageHex(13, 9, u64Hex(0x102n))]);
  assert.deepEqual(bench.channel.sentFds, [0, 1, 0]);
  bench.answer(12, u64Hex(0n));
  bench.answer(13, u64Hex(1n), REPLY | 8);
  await kick;
  await assert.rejects(silent, { code: 'backend-refused', message: 'the back-end refused SET_VRING_CALL with 1' });
  assert.equal(bench.frontEnd.ended, undefined);
  assert.deepEqual(bench.events, []);
});

test('regions are of the Xen form once XEN_MMAP was negotiated', async () => {
  const bench = await Bench.with('XEN_MMAP');
  bench.sent();
  const done = bench.frontEnd.setMemoryTable([{ ...region, xen: { flags: 2, domid: 3 } }], [0]);
  const [table] = bench.sent();
  assert.equal(table?.length, 2 * (12 + 8 + 40));
  assert.equal(table?.slice(-16), '0200000003000000');
  bench.answer(1, u64Hex(0n));
  await done;
});

describe('a back-end that breaks the protocol ends the connection with one reason', () => {
  const attacks: ReadonlyArray<readonly [string, string, number, RegExp]> = [
    [
      'another answer',
      messageHex(15, REPLY, u64Hex(0n)),
      0,
      /^the back-end answered GET_PROTOCOL_FEATURES in place of GET_FEATURES$/,
    ],
    ['a request', messageHex(1, 1, u64Hex(0n)), 0, /^the back-end sent GET_FEATURES where only answers go$/],
    ['a short answer', messageHex(1, REPLY, '00'), 0, /answered GET_FEATURES wrongly: u64: 1 bytes, at least 8 needed/],
    [
      'a long answer',
      messageHex(1, REPLY, '00'.repeat(9)),
      0,
      /answered GET_FEATURES wrongly: u64: 9 bytes, 8 expected/,
    ],
    ['descriptors', messageHex(1, REPLY, u64Hex(0n)), 2, /with 2 descriptors, at most 0 belong to it/],
    ['many descriptors', messageHex(1, REPLY, u64Hex(0n)), 9, /more than 8 descriptors/],
    ['an unknown answer', messageHex(77, REPLY), 0, /answered request 77 in place of GET_FEATURES/],
    ['another version', messageHex(1, 6, u64Hex(0n)), 0, /a message of version 2/],
  ];
  for (const [name, hex, fds, reason] of attacks) {
    test(name, async () => {
      const before = census();
      const bench = new Bench();
      const waiting = bench.frontEnd.getFeatures();
      const behind = bench.frontEnd.getProtocolFeatures();
      bench.channel.deliver(hex, foreignFds(fds));
      for (const each of [waiting, behind]) await assert.rejects(each, (error) => error === bench.frontEnd.ended);
      await bench.ended('protocol-violation', reason);
      await assert.rejects(bench.frontEnd.setOwner(), (error) => error === bench.frontEnd.ended);
      assert.deepEqual(census(), before);
    });
  }

  test('an answer that nobody asked for', async () => {
    const bench = new Bench();
    bench.answer(1, u64Hex(0n));
    await bench.ended('protocol-violation', /^the back-end answered GET_FEATURES, which was not asked$/);
  });

  test('no answer', async () => {
    const bench = new Bench();
    const waiting = bench.frontEnd.getFeatures();
    bench.clock.advance(timeoutMs - 1);
    assert.equal(bench.frontEnd.ended, undefined);
    bench.clock.advance(1);
    await assert.rejects(waiting, { code: 'timeout' });
    await bench.ended('timeout', /^the back-end has not answered GET_FEATURES in 1000 ms$/);
  });

  test('an end, while something waits', async () => {
    const bench = new Bench();
    const waiting = bench.frontEnd.getFeatures();
    bench.channel.end('gone');
    await assert.rejects(waiting, { code: 'backend-lost', message: 'gone' });
    await bench.ended('backend-lost', /^gone$/);
  });

  for (const [result, reason] of [
    ['full', /does not read what it is sent/],
    ['gone', /has closed the connection/],
  ] as const) {
    test(`a socket that is ${result}`, async () => {
      const bench = new Bench();
      bench.channel.result = result;
      await assert.rejects(bench.frontEnd.setOwner(), { code: 'backend-lost' });
      await bench.ended('backend-lost', reason);
    });
  }

  test('the base of another queue', async () => {
    const bench = new Bench();
    const base = bench.frontEnd.getQueueBase(1);
    bench.answer(11, '0200000005000000');
    await assert.rejects(base, { code: 'protocol-violation' });
    await bench.ended('protocol-violation', /GET_VRING_BASE of queue 1 with queue 2/);
  });

  test('configuration of another length', async () => {
    const bench = await Bench.with('CONFIG');
    const config = bench.frontEnd.getConfig(0, 4);
    bench.answer(24, `000000000300000000000000${'11'.repeat(3)}`);
    await assert.rejects(config, { code: 'protocol-violation' });
    await bench.ended('protocol-violation', /3 bytes of configuration at 0, asked for 4 at 0/);
  });
});

test('a back-end without this configuration refuses, by an answer with or without a head', async () => {
  const bench = await Bench.with('CONFIG');
  for (const refusal of ['', '00'.repeat(12)]) {
    const config = bench.frontEnd.getConfig(0, 4);
    bench.answer(24, refusal);
    await assert.rejects(config, { code: 'backend-refused' });
  }
  const good = bench.frontEnd.getConfig(8, 2);
  bench.answer(24, '0800000002000000000000001122');
  assert.deepEqual(await good, fromHex('1122'));
  const written = bench.frontEnd.setConfig(8, fromHex('33'), true);
  assert.equal(bench.sent().at(-2), messageHex(25, 1, '08000000010000000100000033'));
  bench.answer(1, u64Hex(0n));
  await written;
});

test('an in-flight log comes with its file, or not at all', async () => {
  const before = census();
  const bench = await Bench.with('INFLIGHT_SHMFD');
  const payload = `${u64Hex(4096n)}${u64Hex(0n)}0100800000000000`;
  const given = bench.frontEnd.getInflight(1, 128);
  bench.channel.deliver(messageHex(31, REPLY, payload), foreignFds(1));
  const { area, fd } = await given;
  assert.deepEqual(area, { mmapSize: 4096n, mmapOffset: 0n, queues: 1, queueSize: 128 });
  await bench.frontEnd.setInflight(area, fd.number);
  assert.equal(bench.sent().at(-1), messageHex(32, 1, payload));
  fd.close();
  const missing = bench.frontEnd.getInflight(1, 128);
  bench.answer(31, payload);
  await assert.rejects(missing, { code: 'backend-refused' });
  assert.deepEqual(census(), before);
});

test('a queue gets longer to stop than other requests get', async () => {
  const bench = new Bench();
  const base = bench.frontEnd.getQueueBase(0);
  bench.clock.advance(timeoutMs * 2);
  bench.answer(11, '0000000007000000');
  assert.equal(await base, 7);
  const never = bench.frontEnd.getQueueBase(0);
  bench.clock.advance(limits.vhostUserStopTimeoutMs);
  await assert.rejects(never, { code: 'timeout' });
});

test('requests without an answer are bounded', async () => {
  const bench = new Bench();
  const all = Array.from({ length: limits.vhostUserPendingRequests }, () => bench.frontEnd.getFeatures());
  await assert.rejects(bench.frontEnd.getFeatures(), { code: 'limit-reached' });
  for (let i = 0; i < all.length; i++) bench.answer(1, u64Hex(0n));
  await Promise.all(all);
});

test('closing rejects what waits, and is not told', async () => {
  const bench = new Bench();
  const waiting = bench.frontEnd.getFeatures();
  bench.frontEnd.close();
  bench.frontEnd.close();
  await assert.rejects(waiting, { code: 'backend-lost', message: 'this side has closed the connection' });
  assert.deepEqual(bench.events, []);
  assert.equal(bench.clock.timers, 0);
});

describe('requests of the back-end', () => {
  async function withChannel(...protocol: ReadonlyArray<keyof typeof protocolFeature>) {
    const bench = await Bench.with('BACKEND_REQ', ...protocol);
    const own = new FakeChannel();
    const given = bench.frontEnd.setBackEndChannel(9, own);
    if (protocol.includes('REPLY_ACK')) bench.answer(21, u64Hex(0n));
    await given;
    assert.equal(bench.channel.sentFds.at(-1), 1);
    return { bench, own };
  }

  test('are told, and acknowledged when that was asked for', async () => {
    const { bench, own } = await withChannel('REPLY_ACK', 'CONFIG', 'INBAND_NOTIFICATIONS');
    own.deliver(messageHex(2, 1));
    own.deliver(messageHex(2, 9));
    own.deliver(messageHex(4, 1, '0300000000000000'));
    own.deliver(messageHex(5, 9, '0400000000000000'));
    assert.deepEqual(bench.events, ['config', 'config', 'call 3', 'error 4']);
    assert.deepEqual(own.sent, [messageHex(2, REPLY, u64Hex(0n)), messageHex(5, REPLY, u64Hex(0n))]);
  });

  test('that were not negotiated, or are known by name only, are refused', async () => {
    const before = census();
    const { bench, own } = await withChannel('REPLY_ACK');
    own.deliver(messageHex(2, 9));
    own.deliver(messageHex(3, 9, '00'.repeat(24)), foreignFds(1));
    own.deliver(messageHex(1, 1, '00'.repeat(32)));
    assert.deepEqual(own.sent, [messageHex(2, REPLY, u64Hex(1n)), messageHex(3, REPLY, u64Hex(1n))]);
    assert.deepEqual(bench.events, []);
    assert.equal(own.closed, false);
    assert.deepEqual(census(), before);
  });

  const attacks: ReadonlyArray<readonly [string, string, RegExp]> = [
    ['an unknown request', messageHex(99, 1), /unknown request 99/],
    ['an answer', messageHex(2, REPLY), /answered request 2 of its own channel/],
    ['a wrong length', messageHex(2, 1, '00'), /CONFIG_CHANGE_MSG with a wrong length/],
    ['a queue that cannot be', messageHex(4, 1, '0001000000000000'), /VRING_CALL for queue 256/],
  ];
  for (const [name, hex, reason] of attacks) {
    test(`${name} ends the connection`, async () => {
      const { bench, own } = await withChannel('CONFIG', 'INBAND_NOTIFICATIONS');
      const waiting = bench.frontEnd.getFeatures();
      own.deliver(hex);
      await assert.rejects(waiting, { code: 'protocol-violation' });
      await bench.ended('protocol-violation', reason);
      assert.equal(own.closed, true);
    });
  }

  test('may end without ending the connection', async () => {
    const { bench, own } = await withChannel('CONFIG');
    own.end('closed');
    const features = bench.frontEnd.getFeatures();
    bench.answer(1, u64Hex(0n));
    await features;
    bench.frontEnd.close();
    assert.deepEqual(bench.events, []);
  });
});

test('random answers end the connection once, and leave nothing behind', async () => {
  const before = census();
  const message = fc.record(
    {
      id: fc.integer({ min: 1, max: 44 }),
      flags: fc.constantFrom(1, 5, 13),
      payload: fc.uint8Array({ maxLength: 40 }),
      fds: fc.nat(2),
    },
    { noNullPrototype: true },
  );
  await fc.assert(
    fc.asyncProperty(fc.array(message, { maxLength: 6 }), async (messages) => {
      const bench = await Bench.with('CONFIG', 'INFLIGHT_SHMFD');
      const asked = [
        bench.frontEnd.getFeatures(),
        bench.frontEnd.getConfig(0, 4),
        bench.frontEnd.getInflight(1, 2).then(({ fd }) => fd.close()),
        bench.frontEnd.getQueueBase(0),
      ];
      const settled = Promise.allSettled(asked);
      for (const { id, flags, payload, fds } of messages) {
        bench.channel.deliver(messageHex(id, flags, Buffer.from(payload).toString('hex')), foreignFds(fds));
      }
      bench.channel.end('over');
      for (const result of await settled) {
        if (result.status === 'rejected') assert(result.reason instanceof VmsgError);
      }
      assert.equal(bench.events.length, 1);
      assert.equal(bench.clock.timers, 0);
    }),
    { seed: 11, numRuns: 150 },
  );
  assert.deepEqual(census(), before);
});
