import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { RngBackend } from '../../src/bridge/backend/rng.ts';
import { BlkDriver, deviceInfo, type GuestBus, RngDriver } from '../../src/guest/index.ts';
import { type Clock, systemClock } from '../../src/kit/clock.ts';
import {
  type BusBench,
  type BusImplementation,
  blockBytes,
  blockwise,
  nothingStrange,
  released,
  withBus,
} from '../support/bus-bench.ts';
import { isCode, until } from '../support/guest-fixture.ts';
import { contentOf, imageProblem, VersionedLoad } from '../support/versioned-load.ts';
import { messageCases } from './bus-messages.ts';

const sectorsPerBlock = blockBytes / 512;

/** What every bus between the service and a guest does, whatever carries it. */
export function busContract(implementation: BusImplementation): void {
  describe(`bus contract: ${implementation.name}`, () => {
    describe('messages', () => {
      messageCases(implementation);
      secondGuestCases(implementation);
    });
    for (const memory of implementation.memories) {
      describe(memory, () => {
        dataCases(implementation, memory);
        deviceCases(implementation, memory);
        endCases(implementation, memory);
        restartCases(implementation, memory);
      });
    }
  });
}

/** How often the disk carried out a write of a block. */
const writesOf = ({ service }: BusBench, block: number): number =>
  service.disk.log.filter((line) => line === `write ${block * blockBytes} ${blockBytes} done`).length;

/** Time in which no wait is long. */
const impatient: Clock = {
  nowMs: () => systemClock.nowMs(),
  after: (delayMs, callback) => systemClock.after(Math.min(delayMs, 200), callback),
};

function secondGuestCases(implementation: BusImplementation): void {
  const { secondGuest } = implementation;
  test(`a second guest is ${secondGuest === 'waits' ? 'let in when the first leaves' : 'refused'}`, () =>
    withBus(implementation, async (bench) => {
      const { service } = bench;
      const first = await bench.connect();
      const blk = await BlkDriver.open(first.bus, 1, blockwise);
      const held = bench.held();
      await assert.rejects(bench.connect({ clock: impatient }), isCode('bus-busy'));
      await released(bench.held, held);
      await blk.write(0, contentOf(0, 1));
      assert.equal(service.runtime.snapshot().epoch, first.bus.terms.epoch);
      assert.deepEqual(service.endings, []);
      const waiting = secondGuest === 'waits' ? bench.connect() : undefined;
      if (waiting === undefined) {
        await assert.rejects(bench.connect(), isCode('bus-busy'));
        assert.equal(service.events.filter(({ type }) => type === 'bus-refused').length, 2);
      }
      first.bus.close();
      await until(() => service.endings.length === 1, 'the first has left');
      const next = await (waiting ?? bench.connect());
      assert.ok(next.bus.terms.epoch > first.bus.terms.epoch);
      assert.deepEqual(await (await BlkDriver.open(next.bus, 1, blockwise)).read(0, blockBytes), contentOf(0, 1));
    }));
}

function dataCases(implementation: BusImplementation, memory: string): void {
  test('a guest finds its devices and uses them', () =>
    withBus(implementation, async (bench) => {
      const { disk } = bench.service;
      const { bus } = await bench.connect({ memory });
      assert.ok((await bus.ping()) >= 0);
      assert.deepEqual(await bus.devices(), [1, 2]);
      const infos = await Promise.all([deviceInfo(bus, 1), deviceInfo(bus, 2)]);
      assert.deepEqual(
        infos.map(({ name }) => name),
        ['blk', 'rng'],
      );
      const blk = await BlkDriver.open(bus, 1, { transferBytes: 8 * 1024, depth: 4 });
      assert.equal(await blk.getId(), 'disk');
      const data = Uint8Array.from({ length: 50 * 1024 }, (_, i) => (i * 13 + (i >> 10)) & 0xff);
      await blk.write(5, data);
      await blk.flush();
      assert.equal(disk.log.at(-1), 'datasync done');
      assert.deepEqual(disk.bytes.subarray(5 * 512, 5 * 512 + data.length), data);
      disk.bytes.set(contentOf(3, 9), 100 * 512);
      assert.deepEqual(await blk.read(100, blockBytes), contentOf(3, 9));
      const buffer = blk.device.alloc(blockBytes, 4096);
      await blk.read(5, buffer);
      assert.deepEqual(new Uint8Array(buffer.bytes), data.subarray(0, blockBytes));
      const rng = await RngDriver.open(bus, 2);
      assert.deepEqual(await rng.read(10_000), new Uint8Array(10_000).fill(0xa5));
      nothingStrange(bench, bus);
    }));

  for (const notify of implementation.notifications) {
    test(`more requests than a queue has entries complete once each, told by ${notify}`, () =>
      withBus(implementation, async (bench) => {
        const { disk } = bench.service;
        disk.bytes.fill(0);
        const { bus } = await bench.connect({ memory, fewSlots: true });
        const blk = await BlkDriver.open(bus, 1, { ...blockwise, depth: 16, size: 4, notify });
        const before = bus.statistics;
        const blocks = Array.from({ length: 48 }, (_, block) => block);
        const completions = new Array<number>(blocks.length).fill(0);
        const write = async (block: number): Promise<void> => {
          await blk.write(block * sectorsPerBlock, contentOf(block, 1));
          completions[block] = completions[block]! + 1;
        };
        await Promise.all(blocks.map(write));
        assert.deepEqual([...new Set(completions)], [1]);
        assert.deepEqual([...new Set(blocks.map((block) => writesOf(bench, block)))], [1]);
        assert.equal(imageProblem(disk.bytes, completions), undefined);
        const { messagesIn, messagesOut } = bus.statistics;
        const messages = messagesIn - before.messagesIn + (messagesOut - before.messagesOut);
        assert.equal(messages > 0, notify === 'messages', `${messages} messages`);
        nothingStrange(bench, bus);
      }));
  }
}

function deviceCases(implementation: BusImplementation, memory: string): void {
  test('a device that comes is announced and works; one that goes fails its requests, and the others go on', () =>
    withBus(implementation, async (bench) => {
      const { service } = bench;
      const { bus } = await bench.connect({ memory });
      const seen: string[] = [];
      bus.on('added', ({ device }) => seen.push(`+${device}`));
      bus.on('removed', ({ device }) => seen.push(`-${device}`));
      assert.deepEqual(await bus.devices(), [1, 2]);
      const blk = await BlkDriver.open(bus, 1, blockwise);
      // A source that holds on to its first request.
      const held: Array<() => void> = [];
      const source = {
        fill: (target: Uint8Array, done: (error: null, bytes: number) => void) =>
          void held.push(() => done(null, target.fill(7).length)),
        close: async () => {},
      };
      await service.attach('seven', 7, async (host) => new RngBackend(source, host));
      await until(() => seen.length === 1, 'the device is announced');
      assert.deepEqual(await bus.devices(), [1, 2, 7]);
      const rng = await RngDriver.open(bus, 7);
      const first = rng.read(100);
      await until(() => held.length === 1, 'the device works');
      const second = assert.rejects(rng.read(100), isCode('not-found', /device 7 was removed/));
      const detached = service.runtime.detach('seven');
      await blk.write(0, contentOf(0, 1));
      held[0]!();
      assert.deepEqual(await first, new Uint8Array(100).fill(7), 'what was in flight completes');
      await Promise.all([detached, second]);
      assert.deepEqual(seen, ['+7', '-7']);
      assert.equal(held.length, 1);
      await assert.rejects(rng.read(1), isCode('not-found'));
      await assert.rejects(bus.request(7, 'GET_DEVICE_STATUS', {}), isCode('not-found', /device 7/));
      assert.deepEqual(await bus.devices(), [1, 2]);
      assert.deepEqual(await blk.read(0, blockBytes), contentOf(0, 1));
    }));
}

/** The service holds nothing of a guest. */
function isFree({ service }: BusBench): void {
  const { state, peer, regions, regionBytes, regionsDraining, grants, channel, devices } = service.runtime.snapshot();
  const expected = { state: 'listening', peer: null, regions: 0, regionBytes: 0, regionsDraining: 0 };
  assert.deepEqual({ state, peer, regions, regionBytes, regionsDraining }, expected);
  assert.deepEqual([grants, channel, devices.map(({ status }) => status)], [null, null, [0, 0]]);
}

function endCases(implementation: BusImplementation, memory: string): void {
  const { endings } = implementation;
  test('a guest that closes leaves nothing behind, and connects again under a higher epoch', () =>
    withBus(implementation, async (bench) => {
      const before = bench.held();
      let epoch = 0n;
      for (let round = 1; round <= 2; round++) {
        const { bus } = await bench.connect({ memory });
        assert.ok(bus.terms.epoch > epoch, 'the epoch rises');
        epoch = bus.terms.epoch;
        assert.equal(bus.terms.resumed, false);
        const blk = await BlkDriver.open(bus, 1, { ...blockwise, notify: implementation.notifications.at(-1)! });
        await blk.write(0, contentOf(0, round));
        assert.deepEqual(await blk.read(0, blockBytes), contentOf(0, round));
        bus.close();
        await assert.rejects(blk.read(0, blockBytes), isCode('bus-lost'));
        await until(() => bench.service.endings.length === round, 'the service sees it');
        assert.match(bench.service.endings.at(-1)!, endings.closed);
        await released(bench.held, before);
        isFree(bench);
      }
    }));

  test('a guest that is killed is noticed, and what was under way for it never reaches the next one', () =>
    withBus(implementation, async (bench) => {
      const { service } = bench;
      const { disk } = service;
      const before = bench.held();
      const first = await bench.connect({ memory });
      const blk = await BlkDriver.open(first.bus, 1, blockwise);
      disk.waiting = [];
      const lost = [0, 1].map((block) => assert.rejects(blk.read(block * sectorsPerBlock, blockBytes)));
      await until(() => disk.waiting?.length === 2, 'the disk works');
      lost.push(assert.rejects(first.bus.ping(), isCode('bus-lost')));
      first.kill();
      await Promise.all(lost);
      await until(() => service.endings.length === 1, 'the service notices');
      assert.match(service.endings[0]!, endings.killed);
      const next = await bench.connect({ memory });
      assert.ok(next.bus.terms.epoch > first.bus.terms.epoch);
      assert.equal(next.bus.terms.resumed, false);
      assert.deepEqual(await next.bus.devices(), [1, 2]);
      const { messagesIn } = next.bus.statistics;
      const { waiting } = disk;
      disk.waiting = undefined;
      for (const end of waiting) end();
      await next.bus.ping();
      assert.equal(next.bus.statistics.messagesIn - messagesIn, 1, 'the answer to the ping, and nothing else');
      const again = await BlkDriver.open(next.bus, 1, blockwise);
      await again.write(0, contentOf(0, 1));
      assert.deepEqual(await again.read(0, blockBytes), contentOf(0, 1));
      nothingStrange(bench, next.bus);
      next.bus.close();
      await released(bench.held, before);
      isFree(bench);
    }));
}

/** What a bus tells about its connection. */
function connectionEvents(bus: GuestBus): string[] {
  const seen: string[] = [];
  bus.on('reconnecting', () => seen.push('reconnecting'));
  bus.on('reconnected', ({ resumed }) => seen.push(resumed ? 'resumed' : 'reset'));
  bus.on('lost', ({ code }) => seen.push(`lost ${code}`));
  return seen;
}

/** ACKNOWLEDGE, DRIVER, FEATURES_OK and DRIVER_OK. */
const driverOk = 15;

async function restart({ service }: BusBench, bus: GuestBus): Promise<void> {
  service.kill();
  await until(() => bus.state === 'reconnecting', 'the guest notices');
  const asked = bus.request(1, 'GET_DEVICE_STATUS', {});
  await service.start();
  assert.equal((await asked).status, driverOk, 'a request that waited is answered by a device that kept its state');
}

function restartCases(implementation: BusImplementation, memory: string): void {
  for (const notify of implementation.notifications) {
    test(`a killed service comes back, and the guest goes on where it was: ${notify}`, () =>
      withBus(implementation, async (bench) => {
        const { disk } = bench.service;
        disk.bytes.fill(0);
        const { bus } = await bench.connect({ memory, reconnect: true });
        const seen = connectionEvents(bus);
        const { epoch } = bus.terms;
        const blk = await BlkDriver.open(bus, 1, { ...blockwise, notify });
        disk.waiting = [];
        const completions = new Array<number>(9).fill(0);
        const write = async (block: number): Promise<void> => {
          await blk.write(block * sectorsPerBlock, contentOf(block, 1));
          completions[block] = completions[block]! + 1;
        };
        const writing = Promise.all([0, 1, 2, 3, 4, 5, 6, 7].map(write));
        await Promise.race([writing, until(() => disk.waiting?.length === 8, 'all are at the disk')]);
        // Awaited below; what fails before says more than their end.
        writing.catch(() => {});
        await restart(bench, bus);
        await Promise.all([writing, write(8)]);
        assert.deepEqual([...new Set(completions)], [1]);
        assert.deepEqual([...new Set(completions.map((_, block) => writesOf(bench, block)))], [1]);
        assert.equal(imageProblem(disk.bytes, completions), undefined);
        assert.deepEqual(await blk.read(0, blockBytes), contentOf(0, 1));
        assert.deepEqual([seen, bus.terms.epoch > epoch], [['reconnecting', 'resumed'], true]);
      }));
  }

  test('requests that a killed service had acknowledged are not done again', () =>
    withBus(implementation, async (bench) => {
      const { disk } = bench.service;
      disk.bytes.fill(0);
      const { bus } = await bench.connect({ memory, reconnect: true });
      const seen = connectionEvents(bus);
      const load = new VersionedLoad(await BlkDriver.open(bus, 1, blockwise), 8);
      const running = load.run(4);
      running.catch(() => {});
      for (let round = 1; round <= 2; round++) {
        const enough = load.acknowledged + 25;
        await until(() => load.acknowledged >= enough, 'the load goes on');
        await restart(bench, bus);
        await until(() => seen.length === 2 * round, 'the bus is back');
      }
      load.stop();
      await running;
      assert.equal(imageProblem(disk.bytes, load.versions), undefined);
      assert.deepEqual(seen, ['reconnecting', 'resumed', 'reconnecting', 'resumed']);
    }));
}
