import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { Program } from '../../src/bridge/backend/vhost-user/direct/program.ts';
import { DirectQueue } from '../../src/bridge/backend/vhost-user/direct/queue.ts';
import { type Endpoint, socketEndpoint } from '../../src/bridge/backend/vhost-user/endpoint.ts';
import { shapeOf } from '../../src/bridge/backend/vhost-user/shapes.ts';
import { AreaTable } from '../../src/device/area-table.ts';
import { type Clock, systemClock } from '../../src/kit/clock.ts';
import { VmsgError } from '../../src/kit/errors.ts';
import { createEventfd, drainEventfd } from '../../src/libc/eventfd.ts';
import { setStatusFlags } from '../../src/libc/fd.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { SharedSignal } from '../../src/libc/signal-batch.ts';
import { type AddressSpace, TranslateFault } from '../../src/ports/memory.ts';
import { openMessenger } from '../../src/vhost-user/socket.ts';
import { FeatureSet, feature } from '../../src/virtio/features.ts';
import { FakeMemory } from '../support/bridge-fakes.ts';
import { impatient } from '../support/direct-rig.ts';
import { isCode, until } from '../support/guest-fixture.ts';
import { settledCensus } from '../support/settled-census.ts';
import { LazyDisk } from '../support/vhost-user-habits.ts';
import { VhostUserPeer } from '../support/vhost-user-peer.ts';

const size = 8;
const area = 1n << 48n;
const at = { descAddr: area, driverAddr: area + 0x100n, deviceAddr: area + 0x200n };
const setup = { ...at, index: 1, size, maxSize: size, enabled: true, features: FeatureSet.of(feature.VERSION_1) };

/** Memory of a guest in one area, and what a queue in it needs. */
function bench() {
  const poller = new LoopPoller();
  const signals = new SharedSignal();
  const areas = new AreaTable(systemClock);
  const memory = new FakeMemory(new Uint8Array(4096));
  areas.add(1, memory, false);
  const told: string[] = [];
  const events = { used: () => told.push('used'), broken: () => told.push('broken') };
  const pins = (): number => areas.snapshot()[0]!.pins;
  const open = (changes: Partial<typeof setup> = {}, space: AddressSpace = areas.spaceFor({ onRevoked: () => {} })) =>
    DirectQueue.open({ ...setup, ...changes }, space, { poller, signals }, events);
  const close = (): void => {
    signals.close();
    poller.close();
  };
  return { areas, words: new Uint16Array(memory.bytes.buffer), told, pins, open, close };
}

describe('a queue that another program works on', () => {
  test('lies in memory of the guest, aligned, each area in one piece; else it is refused and keeps nothing', async () => {
    const before = await settledCensus();
    const { open, pins, close } = bench();
    for (const [changes, why] of [
      [{ descAddr: 2n << 48n }, /area id 2/],
      [{ deviceAddr: area + 4096n }, /leave area 1/],
      [{ deviceAddr: area + 4096n - 8n }, /leave area 1/],
      [{ descAddr: area + 8n }, /desc area is not aligned to 16/],
      [{ driverAddr: area + 1n }, /driver area is not aligned to 2/],
      [{ deviceAddr: area + 2n }, /device area is not aligned to 4/],
    ] as const) {
      const refused = open(changes);
      assert.ok(typeof refused === 'string');
      assert.match(refused, why);
      assert.equal(pins(), 0);
    }
    let released = 0;
    const scattered: AddressSpace = {
      translate: (_hi, lo, length, _access, out) => {
        if (lo === 0x200) out.push(new Uint8Array(length / 2), new Uint8Array(length / 2));
        else out.push(new Uint8Array(length));
        return { release: () => (released += 1) };
      },
    };
    assert.equal(open({}, scattered), 'the device area is scattered');
    assert.equal(released, 3);
    const none: AddressSpace = { translate: () => new TranslateFault('nothing is there') };
    assert.equal(open({}, none), 'nothing is there');
    close();
    assert.equal(await settledCensus(), before);
  });

  test('holds its areas until it is closed, and counts what is under way', async () => {
    const before = await settledCensus();
    const { open, pins, words, told, close } = bench();
    const queue = open();
    assert.ok(queue instanceof DirectQueue);
    assert.equal(pins(), 3);
    const [available, used] = [0x100 / 2 + 1, 0x200 / 2 + 1];
    words[available] = 3;
    assert.deepEqual([queue.inFlight, queue.usedIndex], [3, 0]);
    words[used] = 0xfffe;
    assert.deepEqual([queue.inFlight, queue.usedIndex], [5, 0xfffe]);
    words[used] = 3;
    assert.equal(queue.inFlight, 0);
    const { kick, call, error, ...rest } = queue.startAt(7);
    assert.deepEqual(rest, {
      index: 1,
      size,
      base: 7,
      desc: at.descAddr,
      driver: at.driverAddr,
      device: at.deviceAddr,
    });
    assert.equal(new Set([kick, call, error]).size, 3);
    assert.equal(drainEventfd(kick), false);
    queue.kick();
    assert.equal(drainEventfd(kick), true);
    const signals = new SharedSignal();
    signals.signal(call);
    await until(() => told.length > 0, 'it is told');
    signals.signal(error);
    await until(() => told.length > 1, 'it is told');
    assert.deepEqual(told, ['used', 'broken']);
    signals.close();
    queue.close();
    queue.close();
    queue.kick();
    assert.equal(pins(), 0);
    close();
    assert.equal(await settledCensus(), before);
  });

  test('starts with the descriptors of the guest, which stay those of who gave them', async () => {
    const { open, close } = bench();
    const queue = open();
    assert.ok(queue instanceof DirectQueue);
    const own = queue.startAt(0);
    const [kick, call] = [createEventfd(), createEventfd()];
    queue.descriptors = { kick, call };
    const start = queue.startAt(0);
    assert.deepEqual([start.kick, start.call, start.error], [kick.number, call.number, own.error]);
    queue.kick();
    assert.equal(drainEventfd(kick.number), true);
    assert.equal(drainEventfd(own.kick), false);
    // A guest that wants the service to wait for it.
    writeSync(kick.number, Buffer.from('feffffffffffffff', 'hex'));
    setStatusFlags(kick.number, 0);
    queue.kick();
    queue.kick();
    assert.equal(drainEventfd(kick.number), true);
    queue.descriptors = undefined;
    assert.deepEqual(queue.startAt(0), own);
    queue.descriptors = { kick, call };
    queue.close();
    queue.kick();
    assert.deepEqual([kick.closed, call.closed, drainEventfd(kick.number)], [false, false, false]);
    kick.close();
    call.close();
    close();
  });
});

/** Without what a driver was shown. */
class PlainDisk extends LazyDisk {
  override readonly features = FeatureSet.of(feature.VERSION_1);
}

interface ProgramBench {
  readonly program: Program;
  readonly peer: VhostUserPeer;
  readonly poller: LoopPoller;
  /** What it told of its end. */
  readonly ends: string[];
}

/** A program in this process. */
async function withProgram(
  run: (bench: ProgramBench) => Promise<void>,
  { clock = systemClock, gone = () => Promise.resolve() }: { clock?: Clock; gone?: () => Promise<void> } = {},
): Promise<void> {
  const before = await settledCensus();
  const directory = mkdtempSync(join(tmpdir(), 'vmsg-program-'));
  const poller = new LoopPoller();
  const messenger = openMessenger();
  const peer = new VhostUserPeer(join(directory, 's'), new LazyDisk(poller), poller, messenger);
  peer.listen();
  const ends: string[] = [];
  const ignore = (): void => {};
  const events = {
    used: ignore,
    configChanged: ignore,
    renewed: ignore,
    broken: ignore,
    ended: (reason: string) => void ends.push(reason),
  };
  const endpoint: Endpoint = { ...socketEndpoint(peer.path), surelyGone: gone };
  const program = await Program.open({ endpoint, shape: shapeOf('blk'), poller, clock }, events);
  try {
    await run({ program, peer, poller, ends });
  } finally {
    await program.close();
    peer.leave();
    await settledCensus();
    poller.close();
    messenger.close();
    rmSync(directory, { recursive: true });
  }
  assert.equal(await settledCensus(), before);
}

const fault = (): Promise<void> => Promise.reject(new VmsgError('backend-refused', 'it does not want to'));

describe('a program that may have memory of a guest', () => {
  test('is asked one thing after the other', () =>
    withProgram(async ({ program, ends }) => {
      const done: number[] = [];
      const works = [30, 5, 0].map((delayMs, i) =>
        program.do(async ({ frontEnd }) => {
          await new Promise((resolve) => setTimeout(resolve, delayMs));
          await frontEnd.getFeatures();
          done.push(i);
        }),
      );
      await works[2];
      assert.deepEqual(done, [0, 1, 2]);
      assert.deepEqual(ends, []);
    }));

  test('is ended when something fails, once, and nothing more is asked of it', async () => {
    let isGone = (): void => {};
    const gone = new Promise<void>((resolve) => {
      isGone = resolve;
    });
    await withProgram(
      async ({ program, ends, peer }) => {
        let asked = 0;
        let isDone = false;
        void program.do(fault);
        const later = program
          .do(async () => {
            asked += 1;
          })
          .then(() => {
            isDone = true;
          });
        void program.fail('another reason');
        await new Promise((resolve) => setTimeout(resolve, 30));
        assert.deepEqual([asked, isDone, ends], [0, false, []], 'not before it is surely gone');
        isGone();
        await later;
        await program.renew();
        peer.hangUp();
        assert.deepEqual([asked, peer.accepted], [0, 1]);
        assert.equal(ends.length, 1);
      },
      { gone: () => gone },
    );
  });

  test('tells when it goes by itself, and not when it is closed', async () => {
    await withProgram(async ({ ends, peer }) => {
      peer.hangUp();
      await until(() => ends.length > 0, 'its end is told');
      assert.deepEqual(ends, ['the other side has closed the connection']);
    });
    await withProgram(async ({ program, ends }) => {
      await program.retire();
      await program.do(fault);
      assert.deepEqual(ends, []);
    });
  });

  test('is another one after a renewal: what was asked before is asked of the old one, what comes after of the new', () =>
    withProgram(async ({ program, peer, ends }) => {
      const connections: object[] = [];
      const look = () => program.do(async (connection) => void connections.push(connection));
      void look();
      const renewed = program.renew();
      void look();
      await Promise.all([renewed, look()]);
      assert.equal(peer.accepted, 2);
      assert.notEqual(connections[0], connections[1]);
      assert.equal(connections[1], connections[2]);
      assert.deepEqual(ends, []);
    }));

  test('whose next one is not there, or is another device, has ended', async () => {
    await withProgram(async ({ peer, ends }) => {
      peer.leave();
      await until(() => ends.length === 1, 'its end is told');
    });
    await withProgram(async ({ program, peer, ends }) => {
      peer.manners = 'hang up';
      await program.renew();
      await program.do(fault);
      assert.equal(ends.length, 1);
      assert.equal(peer.accepted, 2);
    });
    await withProgram(async ({ program, peer, poller, ends }) => {
      peer.device = new PlainDisk(poller);
      await program.renew();
      await program.do(fault);
      assert.match(ends[0] ?? '', /does not offer .*EVENT_IDX/);
    });
  });

  test('that does not do what it shall is ended in a bounded time', () =>
    withProgram(
      async ({ program, ends }) => {
        let asked = 0;
        // Nothing ends this but the time.
        void program.do(({ scope }) => new Promise<void>((_, reject) => scope.defer(() => reject(givenUp))));
        await program.do(async () => {
          asked += 1;
        });
        assert.deepEqual([asked, ends], [0, ['it does not do what it shall in 8 s']]);
      },
      { clock: impatient },
    ));

  test('that does not introduce itself is an error, and leaves nothing', async () => {
    const before = await settledCensus();
    const directory = mkdtempSync(join(tmpdir(), 'vmsg-program-'));
    const poller = new LoopPoller();
    const events = {
      used: () => {},
      renewed: () => {},
      configChanged: () => {},
      broken: () => {},
      ended: () => assert.fail('never there'),
    };
    const endpoint = socketEndpoint(join(directory, 's'));
    const parts = { endpoint, shape: shapeOf('blk'), poller, clock: systemClock };
    await assert.rejects(Program.open(parts, events), isCode('unavailable', /no such socket/));
    poller.close();
    rmSync(directory, { recursive: true });
    assert.equal(await settledCensus(), before);
  });
});

const givenUp = new VmsgError('backend-lost', 'it was given up');
