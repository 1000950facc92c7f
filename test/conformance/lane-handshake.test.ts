import assert from 'node:assert/strict';
import { openSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { limits } from '../../src/kit/limits.ts';
import { createEventfd } from '../../src/libc/eventfd.ts';
import { Fd } from '../../src/libc/fd.ts';
import { createMemfd } from '../../src/libc/memfd.ts';
import { socketPair } from '../../src/libc/unix-socket.ts';
import {
  descriptors,
  type Hello,
  headOf,
  hello,
  packetType,
  type Rings,
  rings,
} from '../../src/virtio-msg/loopback-handshake.ts';
import type { Layout } from '../../src/wire/layout.ts';
import { goodHello, goodRings, packet, type RawGuest, ringMemoryBytes } from '../support/bridge-guest.ts';
import { LaneRig } from '../support/bridge-lane.ts';
import { Prng } from '../support/virtqueue-pair.ts';

const [EPERM, ENOENT, EINVAL, EPROTO] = [1, 2, 22, 71];

/** A mistake on the socket must end in REFUSED with EPROTO and this reason. */
async function rejected(guest: RawGuest, reason: RegExp): Promise<void> {
  const refusal = await guest.refusal();
  assert.equal(refusal.errno, EPROTO);
  assert.match(refusal.reason, reason);
}

/** What a guest can do wrong on the socket, with the real kernel between; after each nothing of it is left. */
for (const kind of ['inline', 'worker'] as const) {
  describe(`loopback handshake, lane ${kind}`, () => {
    let rig: LaneRig;
    before(async () => {
      rig = await new LaneRig(kind).open();
    });
    after(() => rig.close());

    const wrongHellos: Readonly<Record<string, [Partial<Hello>, RegExp]>> = {
      'version 0': [{ version: 0 }, /version 0/],
      'no dialect': [{ dialects: 0 }, /dialect/],
      'other dialects': [{ dialects: ~(1 << 5) >>> 0 }, /dialect/],
      'a small message size': [{ maxMessageSize: 51 }, /maximum message size 51/],
      'message size 0': [{ maxMessageSize: 0 }, /maximum message size 0/],
      'another magic': [{ magic: 0x47534d57 }, /VMSG/],
      'another type': [{ type: 3 }, /type 3 in phase 'hello'/],
    };
    for (const [name, [changes, reason]] of Object.entries(wrongHellos)) {
      test(`HELLO with ${name} is refused`, () =>
        rig.withGuest(async (guest) => {
          guest.send(packet(hello as Layout, { ...goodHello, ...changes } as never));
          await rejected(guest, reason);
        }));
    }

    test('a newer version and unknown features are met with what the service has', () =>
      rig.withGuest(async (guest) => {
        const terms = await guest.handshake({ version: 0xffff, features: 0xffffffff, dialects: 0xffffffff });
        assert.deepEqual([terms.version, terms.features, terms.dialect], [1, 3, 5]);
      }));

    test('truncated packets are refused in every phase, at any length', async () => {
      const whole = packet(hello as Layout, goodHello as never);
      for (const length of [1, 7, 8, 9, 40, whole.length - 1]) {
        await rig.withGuest(async (guest) => {
          guest.send(whole.subarray(0, length));
          await rejected(guest, /bytes|VMSG/);
        });
      }
      for (const length of [1, 8, 39]) {
        await rig.withGuest(async (guest) => {
          await guest.hello();
          const memory = guest.own(createMemfd('rings', ringMemoryBytes));
          guest.send(packet(rings as Layout, goodRings as never).subarray(0, length), [memory.number]);
          await rejected(guest, /bytes|VMSG/);
        });
      }
      await rig.withGuest(async (guest) => {
        await guest.handshake();
        const fd = guest.own(createMemfd('one', 4096));
        const value = { ...headOf(packetType.descriptors), first: 0, count: 1 };
        guest.send(packet(descriptors as Layout, value as never).subarray(0, 15), [fd.number]);
        await rejected(guest, /bytes/);
      });
    });

    test('oversized packets and garbage are refused', async () => {
      const prng = new Prng(99);
      for (let round = 0; round < 20; round++) {
        await rig.withGuest(async (guest) => {
          if (round % 2 === 1) await guest.handshake();
          guest.send(Uint8Array.from({ length: 1 + prng.below(900) }, () => prng.below(256)));
          await rejected(guest, /./);
        });
      }
      await rig.withGuest(async (guest) => {
        const large = new Uint8Array(limits.handshakeMessageMaxBytes + 1);
        large.set(packet(hello as Layout, goodHello as never));
        guest.send(large);
        await rejected(guest, /oversized/);
      });
    });

    test('descriptors where none belong are closed, and change nothing', () =>
      rig.withGuest(async (guest) => {
        const fd = guest.own(createMemfd('stray', 4096));
        guest.send(packet(hello as Layout, goodHello as never), [fd.number, fd.number]);
        const received = await guest.receive();
        assert.ok(received !== 'closed' && received.fds.length === 1);
      }));

    const wrongRings: Readonly<Record<string, [Partial<Rings>, RegExp]>> = {
      'a ring too small for two slots': [{ toServiceBytes: 128 + 64 }, /a ring of 192 bytes/],
      'a ring of no bytes': [{ toGuestBytes: 0 }, /a ring of 0 bytes/],
      'a ring over the limit': [{ toServiceBytes: 65540 }, /ring/],
      'a ring of 4 GiB': [{ toGuestBytes: 0xffffffff }, /ring/],
      'a ring of an odd size': [{ toServiceBytes: 4095 }, /a ring of 4095 bytes/],
      'a ring behind the end': [{ toGuestOffset: 8192n }, /leaves its memory/],
      'a ring across the end': [{ toGuestOffset: 4096n, toGuestBytes: 4100 }, /leaves its memory/],
      'a ring at an odd offset': [{ toServiceOffset: 64n }, /leaves its memory/],
      'an offset with bit 63': [{ toServiceOffset: 1n << 63n }, /leaves its memory/],
      'an offset that overflows': [{ toGuestOffset: 0xffff_ffff_ffff_f000n }, /leaves its memory/],
    };
    for (const [name, [changes, reason]] of Object.entries(wrongRings)) {
      test(`RINGS with ${name} is refused`, () =>
        rig.withGuest(async (guest) => {
          await guest.hello();
          guest.offerRings(changes);
          await rejected(guest, reason);
        }));
    }

    const wrongMemory: Readonly<Record<string, [() => Fd, RegExp]>> = {
      'an unsealed memfd': [() => createMemfd('bad', ringMemoryBytes, 0), /shrink/],
      'a memfd sealed against writing': [() => createMemfd('bad', ringMemoryBytes, 2 | 8), /writing/],
      'a regular file': [() => new Fd(openSync(rig.diskPath, 'r+')), /not a mem/],
      'a read-only file': [() => new Fd(openSync(rig.diskPath, 'r')), /not a mem/],
      'an eventfd': [() => createEventfd(), /not a mem/],
      'the end of a socket': [() => socketPair('seqpacket')[0], /not a mem/],
      'a short memfd': [() => createMemfd('bad', 4096), /leaves its memory/],
    };
    for (const [name, [make, reason]] of Object.entries(wrongMemory)) {
      test(`ring memory that is ${name} is refused`, async () => {
        if (name === 'the end of a socket') {
          await rig.withGuest(async (guest) => {
            await guest.hello();
            guest.offerRings({}, guest.socket);
            await rejected(guest, reason);
          });
          return;
        }
        await rig.withGuest(async (guest) => {
          await guest.hello();
          guest.offerRings({}, guest.own(make()));
          await rejected(guest, reason);
        });
      });
    }

    test('RINGS with no or two descriptors is refused', async () => {
      for (const count of [0, 2]) {
        await rig.withGuest(async (guest) => {
          await guest.hello();
          const fds = Array.from({ length: count }, () => guest.own(createMemfd('rings', ringMemoryBytes)).number);
          guest.send(packet(rings as Layout, goodRings as never), fds);
          await rejected(guest, new RegExp(`${count} descriptors`));
        });
      }
    });

    test('DESCRIPTORS that do not match, repeat an index or are too many end the connection', async () => {
      const cases: readonly [string, (guest: RawGuest, fd: Fd) => void, RegExp][] = [
        ['none', (guest) => sendDescriptors(guest, 0, 0, []), /0 descriptors/],
        ['fewer', (guest, fd) => sendDescriptors(guest, 0, 2, [fd]), /1 descriptors, 2 announced/],
        ['more', (guest, fd) => sendDescriptors(guest, 0, 1, [fd, fd]), /2 descriptors, 1 announced/],
        ['repeated', (guest, fd) => sendAll(guest, [0, 1], [fd, fd]), /in use/],
        ['nine', (guest, fd) => sendDescriptors(guest, 0, 9, new Array(9).fill(fd)), /oversized|descriptors/],
        ['waiting', (guest, fd) => sendAll(guest, [0, 8, 16], new Array(8).fill(fd)), /wait/],
      ];
      for (const [, act, reason] of cases) {
        await rig.withGuest(async (guest) => {
          await guest.handshake();
          act(guest, guest.own(createMemfd('region', 4096)));
          await rejected(guest, reason);
        });
      }
    });

    test('regions and notifications refuse descriptors of the wrong kind', () =>
      rig.withGuest(async (guest) => {
        await guest.handshake();
        const add = async (fd: Fd | undefined, changes: object = {}): Promise<number> => {
          const reference = fd === undefined ? 999 : guest.give(guest.own(fd));
          const body = { peer: 0, area: 1, flags: 0, reference, domain: 0, offset: 0n, length: 4096n };
          return (await guest.ask('REGION_ADD', { ...body, ...changes })).errno;
        };
        assert.equal(await add(undefined), ENOENT);
        assert.equal(await add(createMemfd('bad', 4096, 0)), EPERM);
        assert.equal(await add(new Fd(openSync(rig.diskPath, 'r+'))), EPERM);
        assert.equal(await add(createEventfd()), EPERM);
        assert.equal(await add(createMemfd('short', 4096), { length: 8192n }), EINVAL);
        assert.equal(await add(createMemfd('short', 4096), { offset: 4096n }), EINVAL);
        const notify = async (flags: number, fd: Fd): Promise<number> => {
          const reference = guest.give(guest.own(fd));
          return (await guest.ask('QUEUE_NOTIFY', { device: 0, queue: 0, flags, kick: reference, call: reference }))
            .errno;
        };
        assert.equal(await notify(1, createMemfd('bad', 4096)), EPERM);
        assert.equal(await notify(2, createEventfd()), EPERM, 'an eventfd could block the service');
        const [stream, other] = socketPair('stream');
        guest.own(other);
        assert.equal(await notify(2, stream), EPERM);
        assert.equal(await notify(1, createEventfd()), 0);
        assert.equal((await rig.bus()).regions, 0);
      }));

    test('a read-only region of a sealed memfd can be added, used by nobody else, and removed', () =>
      rig.withGuest(async (guest) => {
        await guest.handshake();
        await guest.addRegion(1);
        assert.equal((await guest.ask('REGION_DEL', { peer: 0, area: 1, reserved: 0 })).errno, 0);
        assert.equal((await guest.ask('REGION_DEL', { peer: 0, area: 1, reserved: 0 })).errno, ENOENT);
        assert.equal((await rig.bus()).regionBytes, 0);
      }));
  });
}

function sendDescriptors(guest: RawGuest, first: number, count: number, fds: readonly Fd[]): void {
  const value = { ...headOf(packetType.descriptors), first, count };
  guest.send(
    packet(descriptors as Layout, value as never),
    fds.map((fd) => fd.number),
  );
}

function sendAll(guest: RawGuest, firsts: readonly number[], fds: readonly Fd[]): void {
  for (const first of firsts) sendDescriptors(guest, first, fds.length, fds);
}
