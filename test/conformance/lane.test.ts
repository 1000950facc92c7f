import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { createEventfd, signalEventfd } from '../../src/libc/eventfd.ts';
import { createMemfd } from '../../src/libc/memfd.ts';
import { socketPair } from '../../src/libc/unix-socket.ts';
import { blkHead } from '../support/bridge-disk.ts';
import { type RawGuest, until } from '../support/bridge-guest.ts';
import { diskBytes, LaneRig } from '../support/bridge-lane.ts';

const EBUSY = 16;

/** The loopback bus as a guest uses it, with the real kernel between; after each test nothing of the guest is left. */
for (const kind of ['inline', 'worker'] as const) {
  describe(`loopback bus, lane ${kind}`, () => {
    let rig: LaneRig;
    before(async () => {
      rig = await new LaneRig(kind).open();
    });
    after(() => rig.close());

    test('the handshake tells the terms, and messages flow', () =>
      rig.withGuest(async (guest) => {
        const terms = await guest.handshake();
        const { features, dialect, maxMessageSize, slotSize, ringMaxBytes, revision, transportFeatures, domid } = terms;
        assert.deepEqual(
          { features, dialect, maxMessageSize, slotSize, ringMaxBytes, revision, transportFeatures, domid },
          {
            features: 3,
            dialect: 5,
            maxMessageSize: 64,
            slotSize: 64,
            ringMaxBytes: 65536,
            revision: 1,
            transportFeatures: 0,
            domid: 7,
          },
        );
        assert.equal((await guest.ask('PING', { data: 0xdeadbeef })).data, 0xdeadbeef);
        assert.deepEqual([...(await guest.ask('GET_DEVICES', { offset: 0, count: 8 })).bitmap], [3]);
        const connected = await rig.event('bus-connected');
        assert.ok(connected.type === 'bus-connected' && 'pid' in connected.peer && connected.peer.pid === process.pid);
        assert.equal(connected.epoch, terms.epoch);
        const { peer, counters } = await rig.bus();
        assert.ok(peer !== null && 'uid' in peer && peer.uid === process.getuid?.());
        assert.ok(counters.messagesIn >= 2 && counters.messagesOut >= 2 && counters.doorbellsIn >= 1);
      }));

    test('the message size is the smaller one of both sides', () =>
      rig.withGuest(async (guest) => {
        assert.equal((await guest.handshake({ maxMessageSize: 52 })).maxMessageSize, 52);
        assert.equal((await guest.ask('GET_CONFIG', { offset: 0, length: 32 })).length, 32);
      }));

    test('a disk is read and written, and entropy drawn, through shared memory', () =>
      rig.withGuest(async (guest) => {
        await guest.handshake();
        const { memory } = await guest.addRegion(1);
        const queue = await guest.start(0, 1, memory);
        const range = (offset: number, length: number) => ({ hi: 1 << 16, lo: offset, length });
        const transfer = async (type: number, sector: bigint): Promise<number> => {
          memory.bytes.set(blkHead(type, sector), 16384);
          const data = range(20480, 1024);
          const head = range(16384, 16);
          const tail = range(32768, 1);
          if (type === 0) queue.add([head], [data, tail]);
          else queue.add([head, data], [tail]);
          queue.kick();
          await guest.post({ kind: 'event', name: 'EVENT_AVAIL', body: { index: 0, next: 0 } }, 0);
          await guest.event('EVENT_USED');
          assert.ok(queue.next() !== undefined);
          return memory.bytes[32768]!;
        };
        assert.equal(await transfer(0, 5n), 0);
        assert.deepEqual(memory.bytes.slice(20480, 21504), diskBytes.slice(2560, 3584));
        memory.bytes.fill(0x5a, 20480, 21504);
        assert.equal(await transfer(1, 3n), 0);
        memory.bytes.fill(0, 20480, 21504);
        assert.equal(await transfer(0, 3n), 0);
        assert.ok(memory.bytes.subarray(20480, 21504).every((byte) => byte === 0x5a));
        assert.equal(await transfer(1, 1n << 40n), 1);
        const second = await guest.addRegion(0x7eff);
        const entropy = await guest.start(1, 0x7eff, second.memory);
        entropy.add([], [{ hi: 0x7eff0000, lo: 20480, length: 64 }]);
        entropy.kick();
        await guest.post({ kind: 'event', name: 'EVENT_AVAIL', body: { index: 0, next: 0 } }, 1);
        await guest.event('EVENT_USED');
        assert.ok(second.memory.bytes.subarray(20480, 20544).some((byte) => byte !== 0));
        const { devices, regions } = await rig.bus();
        assert.equal(regions, 2);
        assert.ok((devices[0]?.requests ?? 0) >= 4 && devices[0]?.queues[0]?.size === 8);
      }));

    test('kick and call descriptors carry the notifications of their queue', () =>
      rig.withGuest(async (guest) => {
        await guest.handshake();
        const { memory } = await guest.addRegion(1);
        const queue = await guest.start(1, 1, memory);
        const kick = guest.own(createEventfd());
        const [call, theirs] = socketPair('seqpacket');
        guest.own(call);
        guest.own(theirs);
        const first = guest.give(kick, theirs);
        const setting = { device: 1, flags: 3, queue: 0, kick: first, call: first + 1 };
        assert.equal((await guest.ask('QUEUE_NOTIFY', setting)).errno, 0);
        queue.add([], [{ hi: 1 << 16, lo: 20480, length: 64 }]);
        queue.kick();
        signalEventfd(kick.number);
        await until('the used buffer', () => queue.next());
        await guest.ask('PING', { data: 1 });
        assert.deepEqual(guest.seen, [], 'no EVENT_USED beside the call');
      }));

    test('only one guest at a time: the second is busy, the first undisturbed', () =>
      rig.withGuest(async (guest) => {
        await guest.handshake();
        for (let i = 0; i < 3; i++) {
          const second = rig.guest();
          assert.equal((await second.refusal()).errno, EBUSY);
          second.close();
        }
        assert.equal((await guest.ask('PING', { data: 1 })).data, 1);
        const event = await rig.event('bus-refused');
        assert.ok(event.type === 'bus-refused' && /guest already/.test(event.reason));
      }));

    for (const [name, word] of [
      ['the head of the ring to the service', 0],
      ['the tail of the ring to the guest', 1024 + 16],
    ] as const) {
      test(`an impossible index ends the connection: ${name}`, () =>
        rig.withGuest(async (guest) => {
          await guest.handshake();
          const frame = Uint8Array.of(2, 3, 0, 0, 1, 0, 12, 0, 0, 0, 0, 0);
          if (word !== 0) guest.ringWords[word] = 0x80000000;
          await guest.postRaw(frame);
          if (word === 0) guest.ringWords[word] = 0xffffffff;
          guest.ring();
          assert.equal(await guest.receive(), 'closed');
          rig.events.length = 0;
        }));
    }

    test('a guest may leave in any phase, and the bus takes the next one', async () => {
      const phases: readonly ((guest: RawGuest) => Promise<unknown>)[] = [
        async () => {},
        (guest) => guest.hello(),
        async (guest) => {
          await guest.hello();
          guest.offerRings();
        },
        (guest) => guest.handshake(),
        async (guest) => {
          await guest.handshake();
          guest.give(guest.own(createMemfd('unused', 4096)));
        },
        async (guest) => {
          await guest.handshake();
          const { memory } = await guest.addRegion(1);
          const queue = await guest.start(0, 1, memory);
          memory.bytes.set(blkHead(0, 0n), 16384);
          for (let i = 0; i < 2; i++) {
            const data = { hi: 1 << 16, lo: 20480, length: 4096 };
            queue.add([{ hi: 1 << 16, lo: 16384, length: 16 }], [data, { hi: 1 << 16, lo: 32768, length: 1 }]);
          }
          queue.kick();
          await guest.post({ kind: 'event', name: 'EVENT_AVAIL', body: { index: 0, next: 0 } }, 0);
        },
        async (guest) => {
          await guest.handshake();
          guest.doorbell.close();
        },
      ];
      for (const phase of phases) await rig.withGuest(async (guest) => void (await phase(guest)));
      await rig.withGuest(async (guest) => void (await guest.handshake()));
    });

    test('epochs rise, and a guest that was seen to leave does not resume', async () => {
      let last: { epoch: bigint; token: Uint8Array } = { epoch: 0n, token: new Uint8Array(16) };
      for (let i = 0; i < 3; i++) {
        await rig.withGuest(async (guest) => {
          const terms = await guest.handshake({ resumeEpoch: last.epoch, resumeToken: last.token });
          assert.ok(terms.epoch > last.epoch);
          assert.equal(terms.flags, 0);
          last = { epoch: terms.epoch, token: terms.token };
        });
      }
    });

    test('devices come and go while a guest is there', () =>
      rig.withGuest(async (guest) => {
        await guest.handshake();
        await rig.lane.call('detach', { bus: 'bus', attachment: 'rng' });
        assert.deepEqual((await guest.event('EVENT_DEVICE')).body, { device: 1, state: 2 });
        const backend = { type: 'rng', source: '/dev/urandom' } as const;
        const again = await rig.lane.call('attach', { bus: 'bus', attachment: 'rng', deviceNumber: 1, backend });
        assert.deepEqual(again, { deviceNumber: 1, deviceType: 4 });
        assert.deepEqual((await guest.event('EVENT_DEVICE')).body, { device: 1, state: 1 });
      }));

    test('after an orderly restart of the service the guest resumes with its devices as they were', async () => {
      const first = rig.guest();
      const { epoch, token } = await first.handshake();
      const { memory, fd } = await first.addRegion(1);
      const queue = await first.start(1, 1, memory);
      const restarted = rig.restart();
      assert.equal(await first.receive(), 'closed');
      await restarted;
      const second = rig.guest();
      const terms = await second.handshake({ resumeEpoch: epoch, resumeToken: token });
      assert.deepEqual([terms.flags, terms.epoch], [1, epoch + 1n]);
      assert.equal((await second.ask('GET_DEVICE_STATUS', {}, 1)).status, 15);
      assert.equal((await second.ask('GET_DEVICE_STATUS', {}, 0)).status, 0);
      await second.shareRegion(1, fd);
      queue.add([], [{ hi: 1 << 16, lo: 20480, length: 8 }]);
      queue.kick();
      await second.post({ kind: 'event', name: 'EVENT_AVAIL', body: { index: 0, next: 0 } }, 1);
      await until('the used buffer', () => queue.next());
      first.close();
      second.close();
      await rig.quiet();
    });
  });
}
