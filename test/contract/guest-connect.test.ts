import assert from 'node:assert/strict';
import { test } from 'node:test';
import { connect, type VmsgError } from '../../src/guest/index.ts';
import { limits } from '../../src/kit/limits.ts';
import { isCode, until, withPeer } from '../support/guest-fixture.ts';
import type { HelloAnswer, PeerOptions } from '../support/guest-peer.ts';

test('a guest connects, is answered, and leaves nothing behind', () =>
  withPeer(async ({ peer, model, connect: open }) => {
    const bus = await open();
    assert.equal(bus.terms.domid, 7);
    assert.equal(bus.terms.maxMessageSize, 64);
    assert.equal(peer.connection?.hello.maxMessageSize, 264);
    assert((await bus.ping()) >= 0);
    assert.deepEqual(await bus.devices(), [3]);
    assert.deepEqual(bus.memory.regions, [{ area: 1, bytes: 4 * 1024 * 1024, buffers: 0 }]);
    const area = await bus.memory.addRegion(8192);
    assert.equal(model.regions.get(area)?.length, 8192);
    await bus.memory.removeRegion(area);
    assert.equal(model.regions.has(area), false);
    assert.equal(bus.statistics.malformed, 0);
  }));

test('without a service the bus is unavailable', async () => {
  await assert.rejects(connect({ path: '/nonexistent/bus' }), isCode('unavailable'));
  await assert.rejects(connect({ path: `/${'x'.repeat(200)}` }), isCode('invalid-request'));
});

const answers: Record<string, [HelloAnswer, string, RegExp]> = {
  busy: [{ errno: 16, reason: 'one\nguest' }, 'bus-busy', /EBUSY \(one\?guest\)/],
  'not admitted': [{ errno: 13, reason: '' }, 'bus-refused', /EACCES/],
  'refused for another reason': [{ errno: 22, reason: 'x' }, 'protocol-violation', /EINVAL/],
  'another dialect': [{ fields: { dialect: 4 } }, 'protocol-violation', /D4/],
  'a larger message size than offered': [
    { fields: { maxMessageSize: 300, slotSize: 304 } },
    'protocol-violation',
    /300/,
  ],
  'a message size below the least': [{ fields: { maxMessageSize: 44 } }, 'protocol-violation', /44/],
  'a slot below the message size': [{ fields: { slotSize: 56 } }, 'protocol-violation', /slot/],
  'a huge slot': [{ fields: { slotSize: 0xffff_fff8 } }, 'protocol-violation', /slot/],
  'rings of nothing': [{ fields: { ringMaxBytes: 128 } }, 'protocol-violation', /128/],
  'features nobody offered': [{ fields: { features: 0x8000_0000 } }, 'protocol-violation', /features/],
  'no doorbell': [{ fields: {}, withoutDoorbell: true }, 'protocol-violation', /descriptors/],
  'another protocol version': [{ fields: { version: 2 } }, 'protocol-violation', /packet/],
  'a short packet': [{ bytes: Uint8Array.of(1, 2, 3) }, 'protocol-violation', /packet/],
};

for (const [name, [answer, code, text]] of Object.entries(answers)) {
  test(`HELLO answered with ${name}`, () =>
    withPeer(
      async ({ connect: open }) => {
        await assert.rejects(open(), isCode(code, text));
      },
      { onHello: () => answer },
    ));
}

test('a service that hangs up after RINGS', () =>
  withPeer(async ({ connect: open }) => assert.rejects(open(), isCode('unavailable')), { afterRings: 'close' }));

for (const options of [{ onHello: () => 'silent' }, { afterRings: 'silent' }] satisfies PeerOptions[]) {
  test(`a service that says nothing after ${'onHello' in options ? 'HELLO' : 'RINGS'}`, () =>
    withPeer(async ({ peer }) => {
      let ring: (() => void) | undefined;
      const clock = {
        nowMs: () => 0,
        after: (delayMs: number, run: () => void) => {
          assert.equal(delayMs, limits.handshakeTimeoutMs);
          ring = run;
          return { cancel: () => {} };
        },
      };
      const opening = connect({ path: peer.path, clock });
      const failed = assert.rejects(opening, isCode('timeout'));
      await new Promise((resolve) => setTimeout(resolve, 30));
      assert(ring !== undefined);
      ring();
      await failed;
    }, options));
}

test('a request without an answer times out; a late answer finds nobody', () =>
  withPeer(async ({ peer, model, connect: open }) => {
    const bus = await open({ requestTimeoutMs: 20 });
    let late: (() => void) | undefined;
    model.overrides.set('PING', (body, header, connection) => {
      late ??= () => connection.respond(header, 'PING', { data: body.data });
      return 'silent';
    });
    await assert.rejects(bus.ping(), isCode('timeout', /PING/));
    late?.();
    model.overrides.clear();
    await bus.ping();
    assert.equal(bus.statistics.dropped, 1);
    assert.equal(peer.connections, 1);
  }));

test('answers may come in any order', () =>
  withPeer(async ({ model, connect: open }) => {
    const bus = await open();
    const answer: Array<() => void> = [];
    model.overrides.set('GET_CONFIG', (body, header, connection) => {
      const response = { generation: body.length, offset: 0, length: body.length, data: new Uint8Array(body.length) };
      answer.push(() => connection.respond(header, 'GET_CONFIG', response));
      return 'silent';
    });
    const asked = [1, 2, 3].map((length) => bus.request(3, 'GET_CONFIG', { offset: 0, length }));
    await until(() => answer.length === 3, 'three requests wait');
    for (const respond of answer.reverse()) respond();
    assert.deepEqual(
      (await Promise.all(asked)).map((response) => response.generation),
      [1, 2, 3],
    );
  }));

test('FAILURE ends the request that it names, with its errno', () =>
  withPeer(async ({ model, connect: open }) => {
    const bus = await open();
    model.overrides.set('GET_DEVICE_INFO', (_body, header, connection) => {
      const { deviceNumber: device, token, id, type } = header;
      const failure = { device, token, id, type, reserved: 0 };
      const send = (body: object) => connection.send({ kind: 'event', name: 'FAILURE', body } as never, 0);
      // Another token, another id, another target: nobody's.
      send({ ...failure, token: token + 1, errno: 5 });
      send({ ...failure, id: id + 1, errno: 5 });
      send({ ...failure, type: 2, errno: 5 });
      send({ ...failure, errno: device === 4 ? 19 : 110 });
      return 'silent';
    });
    await assert.rejects(bus.request(4, 'GET_DEVICE_INFO', {}), isCode('not-found', /ENODEV/));
    await assert.rejects(bus.request(5, 'GET_DEVICE_INFO', {}), isCode('timeout', /ETIMEDOUT/));
    assert.equal(bus.statistics.dropped, 6);
  }));

test('garbage is dropped and counted, and does not disturb', () =>
  withPeer(async ({ peer, connect: open }) => {
    const bus = await open();
    const frames = [
      new Uint8Array(64).fill(0xff),
      new Uint8Array(8),
      // msg_size below the header, and beyond the slot.
      Uint8Array.of(0, 2, 0, 0, 1, 0, 4, 0),
      Uint8Array.of(0, 2, 0, 0, 1, 0, 0xff, 0xff),
      // A bus message with a device number; an unknown id; a response with the event bit; a request.
      Uint8Array.of(3, 3, 1, 0, 1, 0, 12, 0, 0, 0, 0, 0),
      Uint8Array.of(1, 0x3f, 0, 0, 1, 0, 8, 0),
      Uint8Array.of(1, 0x42, 3, 0, 1, 0, 12, 0, 0, 0, 0, 0),
      Uint8Array.of(0, 7, 3, 0, 1, 0, 8, 0),
      // PING response of a wrong length; GET_DEVICES response whose bitmap is missing.
      Uint8Array.of(3, 3, 0, 0, 1, 0, 10, 0, 0, 0),
      Uint8Array.of(3, 2, 0, 0, 1, 0, 14, 0, 0, 0, 0, 0, 64, 0),
    ];
    for (const frame of frames) peer.connection?.sendRaw(frame);
    await bus.ping();
    assert.equal(bus.statistics.malformed, frames.length);
    // Well formed, but nobody's: a device that is not open, a state that does not exist.
    peer.connection?.send({ kind: 'event', name: 'EVENT_USED', body: { index: 0 } }, 9);
    peer.connection?.send({ kind: 'event', name: 'EVENT_DEVICE', body: { device: 1, state: 7 } }, 0);
    await bus.ping();
    assert.equal(bus.statistics.dropped, 2);
  }));

test('a full ring holds requests back, and they go on when the service reads', () =>
  withPeer(
    async ({ peer, model, connect: open }) => {
      const bus = await open();
      model.overrides.set('GET_DEVICE_STATUS', () => ({ status: 1 }));
      peer.connection?.pause(true);
      const before = bus.statistics.messagesOut;
      const asked = Array.from({ length: 20 }, () => bus.request(3, 'GET_DEVICE_STATUS', {}));
      assert.equal(bus.statistics.messagesOut - before, 2);
      for (let i = 0; i < 10; i++) bus.notify(3, 0);
      model.log.length = 0;
      peer.connection?.pause(false);
      await Promise.all(asked);
      await until(() => model.log.includes('EVENT_AVAIL'), 'the notification follows');
      assert.equal(model.log.filter((name) => name === 'EVENT_AVAIL').length, 1);
    },
    // Two messages a ring.
    { ringMaxBytes: 128 + 3 * 64 },
  ));

test('more messages than a batch, without sleep words', () =>
  withPeer(
    async ({ peer, connect: open }) => {
      const bus = await open();
      for (let i = 0; i < 500; i++) {
        peer.connection?.send({ kind: 'event', name: 'EVENT_DEVICE', body: { device: i, state: 1 } }, 0);
      }
      let added = 0;
      bus.on('added', () => {
        added += 1;
      });
      await until(() => added === 500, 'all events arrive');
      await bus.ping();
    },
    { onHello: () => ({ fields: { features: 0 } }) },
  ));

test('devices come and go', () =>
  withPeer(async ({ peer, connect: open }) => {
    const bus = await open();
    const seen: string[] = [];
    bus.on('added', ({ device }) => seen.push(`+${device}`));
    bus.on('removed', ({ device }) => seen.push(`-${device}`));
    const pending = assert.rejects(
      bus.request(5, 'GET_DEVICE_STATUS', {}).finally(() => seen.push('ended')),
      isCode('not-found', /device 5 was removed/),
    );
    peer.handler = () => {};
    peer.connection?.send({ kind: 'event', name: 'EVENT_DEVICE', body: { device: 6, state: 1 } }, 0);
    peer.connection?.send({ kind: 'event', name: 'EVENT_DEVICE', body: { device: 5, state: 2 } }, 0);
    await pending;
    assert.deepEqual(seen, ['+6', '-5', 'ended']);
  }));

for (const [name, act] of Object.entries({
  'a broken ring': (peer) => peer.connection?.breakRing(),
  'a closed socket': (peer) => peer.die(),
  'a refusal': (peer) => peer.connection?.refuse(22, 'enough'),
  'an unknown packet': (peer) => peer.connection?.sendPacket(new Uint8Array(16)),
} satisfies Record<string, (peer: import('../support/guest-peer.ts').GuestPeer) => void>)) {
  test(`${name} ends the bus, and whatever waits`, () =>
    withPeer(async ({ peer, connect: open }) => {
      const bus = await open();
      let lost: VmsgError | undefined;
      bus.on('lost', (error) => {
        lost = error;
      });
      peer.handler = () => {};
      const pending = assert.rejects(bus.ping(), isCode('bus-lost'));
      act(peer);
      await pending;
      assert.equal(lost?.code, 'bus-lost');
      assert.equal(bus.state, 'closed');
      await assert.rejects(bus.ping(), isCode('bus-lost'));
      await assert.rejects(bus.memory.addRegion(4096), isCode('bus-lost'));
    }));
}

test('a listener that throws does not disturb the bus', () =>
  withPeer(async ({ peer, connect: open }) => {
    const bus = await open();
    const uncaught: string[] = [];
    const listeners = process.listeners('uncaughtException');
    process.removeAllListeners('uncaughtException');
    process.on('uncaughtException', (error) => uncaught.push(error.message));
    try {
      bus.on('added', () => {
        throw new Error('of the user');
      });
      peer.connection?.send({ kind: 'event', name: 'EVENT_DEVICE', body: { device: 6, state: 1 } }, 0);
      await bus.ping();
      await until(() => uncaught.length > 0, 'the error is reported');
      assert.deepEqual(uncaught, ['of the user']);
    } finally {
      process.removeAllListeners('uncaughtException');
      for (const listener of listeners) process.on('uncaughtException', listener);
    }
  }));

test('memory that the service refuses is not used', () =>
  withPeer(async ({ model, connect: open }) => {
    const bus = await open({ memoryBytes: 0 });
    model.overrides.set('REGION_ADD', (_body, _header, connection) => {
      for (const fd of connection.fds.values()) fd.close();
      connection.fds.clear();
      return { errno: 1 };
    });
    await assert.rejects(bus.memory.addRegion(4096), isCode('memory-refused', /EPERM/));
    assert.deepEqual(bus.memory.regions, []);
    assert.throws(() => bus.memory.alloc(1), isCode('limit-reached'));
    for (const bytes of [0, 100, 4096.5, 2 ** 33]) {
      await assert.rejects(bus.memory.addRegion(bytes), isCode('invalid-request'));
    }
  }));

test('buffers have addresses in their area, and hold a region', () =>
  withPeer(async ({ model, connect: open }) => {
    const bus = await open({ memoryBytes: 0 });
    const area = await bus.memory.addRegion(8192);
    const first = bus.memory.alloc(100);
    const second = bus.memory.alloc(100, 4096);
    assert.equal(first.busAddress >> 48n, BigInt(area));
    assert.equal(second.busAddress, (BigInt(area) << 48n) + 4096n);
    second.bytes[7] = 42;
    assert.equal(model.regions.get(area)?.bytes[4096 + 7], 42);
    assert.deepEqual(second.range(1, 2), { hi: area << 16, lo: 4097, length: 2 });
    assert.throws(() => second.range(99, 2), isCode('invalid-request'));
    await assert.rejects(bus.memory.removeRegion(area), isCode('in-use'));
    first.free();
    second.free();
    second.free();
    model.overrides.set('REGION_DEL', () => ({ errno: 16 }));
    await assert.rejects(bus.memory.removeRegion(area), isCode('unavailable', /EBUSY/));
    assert.equal(second.bytes.length, 0);
  }));
