import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { systemClock } from '../../src/kit/clock.ts';
import { VmsgError } from '../../src/kit/errors.ts';
import { census } from '../../src/libc/census.ts';
import { createEventfd } from '../../src/libc/eventfd.ts';
import { ForeignFd } from '../../src/libc/fd.ts';
import { createMemfd } from '../../src/libc/memfd.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { socketPair } from '../../src/libc/unix-socket.ts';
import { BackEnd } from '../../src/vhost-user/back-end.ts';
import { VhostDevice } from '../../src/vhost-user/device.ts';
import { protocolFeature } from '../../src/vhost-user/features.ts';
import { FrontEnd } from '../../src/vhost-user/front-end.ts';
import { openDevice, type WantedDevice } from '../../src/vhost-user/negotiation.ts';
import { openMessenger, SocketChannel } from '../../src/vhost-user/socket.ts';
import { blkRequestType, blkStatus } from '../../src/virtio/blk.ts';
import { FeatureSet, feature } from '../../src/virtio/features.ts';
import { BlkTestDriver } from '../support/vhost-user-driver.ts';
import { FakeChannel, foreignFds, messageHex, REPLY, u64Hex } from '../support/vhost-user-fakes.ts';
import { RamDisk, ramDiskFeatures } from '../support/vhost-user-ram-disk.ts';
import { eventually } from './libc-harness.ts';

const poller = new LoopPoller();
const messenger = openMessenger();
after(() => {
  poller.close();
  messenger.close();
});

const channelOf = (fd: ForeignFd | ReturnType<typeof socketPair>[0]): SocketChannel =>
  new SocketChannel(fd, messenger, poller);

/** A front-end and our back-end with a disk, over a real socket. */
class Pair {
  readonly disk = new RamDisk(poller);
  readonly events: string[] = [];
  readonly frontEnd: FrontEnd;
  readonly backEnd: BackEnd;

  constructor() {
    const [a, b] = socketPair('stream');
    this.backEnd = new BackEnd(channelOf(b), this.disk, channelOf);
    this.frontEnd = new FrontEnd(channelOf(a), systemClock, {
      configChanged: () => void this.events.push('config'),
      queueCalled: (index) => void this.events.push(`call ${index}`),
      queueFailed: (index) => void this.events.push(`error ${index}`),
      closed: (error) => void this.events.push(error.message),
    });
  }

  open(wanted: Partial<WantedDevice> = {}) {
    const openBackEndChannel = () => {
      const [ours, theirs] = socketPair('stream');
      return { ours: channelOf(ours), theirs };
    };
    return openDevice(this.frontEnd, { configBytes: 60, queues: 1, openBackEndChannel, ...wanted });
  }
}

async function withPair(run: (pair: Pair) => Promise<void>): Promise<void> {
  const before = census();
  const pair = new Pair();
  await run(pair);
  pair.frontEnd.close();
  await eventually(() => assert.equal(pair.disk.ends.length, 1));
  await eventually(() => assert.deepEqual(census(), before));
}

async function withDriver(pair: Pair, run: (driver: BlkTestDriver) => Promise<void>): Promise<void> {
  const driver = new BlkTestDriver(64, ramDiskFeatures, poller);
  await run(driver);
  pair.frontEnd.close();
  await eventually(() => assert.equal(pair.disk.ends.length, 1));
  driver.close();
}

const pattern = (seed: number): Uint8Array => Uint8Array.from({ length: 4096 }, (_, i) => (i * seed) & 255);

const protocolChoices: ReadonlyArray<readonly [string, FeatureSet | undefined]> = [
  ['all protocol features', undefined],
  ['no memory slots', FeatureSet.of(protocolFeature.REPLY_ACK, protocolFeature.MQ, protocolFeature.STATUS)],
  ['nothing but CONFIG', FeatureSet.of(protocolFeature.CONFIG)],
  ['RESET_DEVICE without acknowledgements', FeatureSet.of(protocolFeature.RESET_DEVICE)],
];

for (const [name, protocolFeatures] of protocolChoices) {
  test(`a disk is served through its whole life with ${name}`, () =>
    withPair(async (pair) => {
      const description = await pair.open(protocolFeatures === undefined ? {} : { protocolFeatures });
      const device = new VhostDevice(pair.frontEnd, description);
      assert(Object.isFrozen(description));
      assert(description.features.equals(pair.disk.features));
      await withDriver(pair, async (driver) => {
        await device.agree(ramDiskFeatures);
        await device.setMemory([driver.region]);
        await device.startQueues([driver.start(1, 0)]);
        await driver.write(8, pattern(3));
        assert.deepEqual(await driver.read(8, 4096), pattern(3));
        const base = await device.stopQueue(1);
        assert.equal(base, 2);
        assert.deepEqual(pair.disk.running, []);
        await device.startQueues([driver.start(1, base)]);
        assert.deepEqual(await driver.read(8, 4096), pattern(3));
        await device.reset();
        driver.reopen();
        assert.equal(device.features, undefined);
        await device.agree(ramDiskFeatures);
        await device.setMemory([driver.region]);
        await device.startQueues([driver.start(1, 0)]);
        assert.deepEqual(await driver.read(8, 4096), pattern(3));
        assert.deepEqual(pair.disk.running, [1]);
      });
      assert.deepEqual(pair.disk.running, []);
      assert.deepEqual(pair.events, []);
    }));
}

test('the description says what was agreed', () =>
  withPair(async (pair) => {
    const description = await pair.open();
    assert.equal(description.queues, 2);
    assert.equal(description.memSlots, 512);
    assert.deepEqual(description.config, pair.disk.config());
    assert.deepEqual(description.log, [
      'features offered: INDIRECT_DESC EVENT_IDX bit-30 VERSION_1',
      'protocol features offered: MQ REPLY_ACK BACKEND_REQ CONFIG INFLIGHT_SHMFD RESET_DEVICE CONFIGURE_MEM_SLOTS STATUS',
      'protocol features agreed: MQ REPLY_ACK BACKEND_REQ CONFIG INFLIGHT_SHMFD RESET_DEVICE CONFIGURE_MEM_SLOTS STATUS',
      'queues: 2',
      'configuration: 60 bytes',
      'memory slots: 512',
      'requests of the back-end: on a channel of their own',
    ]);
  }));

test('what a back-end lacks is said', () =>
  withPair(async (pair) => {
    await assert.rejects(pair.open({ queues: 3 }), {
      code: 'backend-unusable',
      message: 'the back-end has 2 queues, 3 are needed',
    });
    await assert.rejects(pair.open({ required: FeatureSet.of(protocolFeature.XEN_MMAP) }), {
      code: 'backend-unusable',
      message: 'the back-end does not offer XEN_MMAP',
    });
  }));

test('configuration is read, written within what is writable, and changes are told', () =>
  withPair(async (pair) => {
    const device = new VhostDevice(pair.frontEnd, await pair.open());
    await device.writeConfig(32, Uint8Array.of(1));
    assert.equal((await device.readConfig(60))[32], 1);
    await assert.rejects(device.writeConfig(0, Uint8Array.of(1)), { code: 'backend-refused' });
    await assert.rejects(device.writeConfig(60, Uint8Array.of(1)), { code: 'backend-refused' });
    await assert.rejects(device.readConfig(61), { code: 'backend-refused' });
    pair.backEnd.configChanged();
    await eventually(() => assert.deepEqual(pair.events, ['config']));
  }));

test('features that were not offered are refused on either side', () =>
  withPair(async (pair) => {
    const device = new VhostDevice(pair.frontEnd, await pair.open());
    await assert.rejects(device.agree(FeatureSet.of(feature.RING_PACKED)), { code: 'invalid-request' });
    await assert.rejects(pair.frontEnd.setFeatures(FeatureSet.of(feature.RING_PACKED)), { code: 'backend-refused' });
  }));

test('an in-flight log of the back-end is kept, given back, and reaches the queue', () =>
  withPair(async (pair) => {
    const device = new VhostDevice(pair.frontEnd, await pair.open());
    await device.agree(ramDiskFeatures);
    const { area, fd } = await device.getInflight(2, 64);
    await withDriver(pair, async (driver) => {
      await device.setMemory([driver.region]);
      await device.startQueues([driver.start(0, 0)]);
      await driver.write(0, pattern(5));
      assert.equal(pair.disk.givenLogBytes, 16 + 64 * 16);
      await device.stopQueues();
      await device.setInflight(area, fd.number);
      await assert.rejects(device.setInflight({ ...area, mmapSize: 1n }, fd.number), { code: 'backend-refused' });
      await assert.rejects(device.setInflight({ ...area, queueSize: 5000 }, fd.number), { code: 'backend-refused' });
      await assert.rejects(device.setInflight({ ...area, mmapOffset: 1n << 62n }, fd.number), {
        code: 'backend-refused',
      });
      await device.startQueues([driver.start(0, 1)]);
      assert.deepEqual(await driver.read(0, 4096), pattern(5));
    });
    fd.close();
  }));

test('memory comes and goes under a running queue', () =>
  withPair(async (pair) => {
    const device = new VhostDevice(pair.frontEnd, await pair.open());
    await device.agree(ramDiskFeatures);
    await withDriver(pair, async (driver) => {
      const memfd = createMemfd('more', 8192);
      const more = { guestAddress: 0n, size: 4096n, userAddress: 0x1000n, mmapOffset: 4096n, fd: memfd.number };
      await device.setMemory([driver.region]);
      await device.startQueues([driver.start(0, 0)]);
      await device.addRegion(more);
      await driver.write(0, pattern(9));
      await device.setMemory([driver.region]);
      assert.equal(device.regions.length, 1);
      assert.deepEqual(await driver.read(0, 4096), pattern(9));
      for (const bad of [
        { ...more, size: 0n },
        { ...more, mmapOffset: 4097n },
        { ...more, guestAddress: driver.region.guestAddress },
        { ...more, userAddress: driver.region.userAddress },
        { ...more, guestAddress: (1n << 64n) - 1n },
        { ...more, size: 1n << 60n },
      ]) {
        await assert.rejects(device.addRegion(bad), { code: 'backend-refused' });
      }
      assert.equal(await driver.submit(blkRequestType.IN, 1 << 30, new Uint8Array(512)), blkStatus.IOERR);
      memfd.close();
    });
  }));

test('queues that cannot be are refused, and the connection goes on', () =>
  withPair(async (pair) => {
    const device = new VhostDevice(pair.frontEnd, await pair.open());
    await device.agree(ramDiskFeatures);
    await withDriver(pair, async (driver) => {
      await device.setMemory([driver.region]);
      const start = driver.start(0, 0);
      await assert.rejects(device.startQueues([{ ...start, index: 2 }]), { code: 'invalid-request' });
      for (const bad of [{ size: 3 }, { size: 0 }, { desc: 1n }, { driver: start.driver + 1n }]) {
        await assert.rejects(device.startQueues([{ ...start, ...bad }]), { code: 'backend-refused' });
        await device.stopQueues();
      }
      await device.startQueues([start]);
      await assert.rejects(pair.frontEnd.setQueueSize(0, 32), { code: 'backend-refused' });
      await driver.write(0, pattern(2));
    });
  }));

describe('a hostile front-end', () => {
  class Bench {
    readonly channel = new FakeChannel();
    readonly disk = new RamDisk(poller);
    readonly backEnd = new BackEnd(this.channel, this.disk, channelOf);

    /** @returns what was answered */
    async send(hex: string, fds: readonly ForeignFd[] = []): Promise<string[]> {
      this.channel.deliver(hex, fds);
      for (let i = 0; i < 4; i++) await turn();
      return this.channel.sent.splice(0);
    }

    /** Everything negotiated. */
    async open(): Promise<this> {
      const all = 0b1_1011_0010_0010_1001n;
      assert.deepEqual(await this.send(messageHex(16, 1, u64Hex(all))), []);
      return this;
    }
  }

  const state = (index: number, num: number): string => {
    const bytes = Buffer.alloc(8);
    bytes.writeUInt32LE(index, 0);
    bytes.writeUInt32LE(num, 4);
    return bytes.toString('hex');
  };

  const fatal: ReadonlyArray<readonly [string, string, number, RegExp]> = [
    ['an unknown request', messageHex(99, 1), 0, /sent request 99/],
    ['a request that is not served', messageHex(22, 9, '00'.repeat(32)), 0, /sent IOTLB_MSG/],
    ['an answer', messageHex(1, REPLY), 0, /sent GET_FEATURES/],
    ['a wrong length', messageHex(2, 9, '00'), 0, /SET_FEATURES with a wrong length/],
    ['a table that is cut', messageHex(5, 9, '0800000000000000'), 0, /SET_MEM_TABLE with a wrong length/],
    ['a table that never ends', messageHex(5, 9, 'ffffffff00000000'), 0, /SET_MEM_TABLE with a wrong length/],
    ['descriptors with what takes none', messageHex(1, 1), 1, /1 descriptors with GET_FEATURES/],
    ['the dirty log', messageHex(6, 9, '00'.repeat(16)), 1, /SET_LOG_BASE without LOG_SHMFD/],
    ['the base of a queue that is not there', messageHex(11, 1, state(7, 0)), 0, /GET_VRING_BASE: queue 7/],
    ['garbage', 'ff'.repeat(12), 0, /a message of version 3/],
    ['a refusal that cannot be told', messageHex(8, 1, state(9, 8)), 0, /SET_VRING_NUM: queue 9/],
  ];
  for (const [name, hex, fds, reason] of fatal) {
    test(`ends the connection by ${name}`, async () => {
      const before = census();
      const bench = await new Bench().open();
      await bench.send(hex, foreignFds(fds));
      assert.equal(bench.disk.ends.length, 1);
      assert.match(bench.disk.ends[0]!, reason);
      assert.equal(bench.channel.closed, true);
      assert.deepEqual(census(), before);
    });
  }

  const refused: ReadonlyArray<readonly [string, string, number]> = [
    ['a descriptor that was not announced', messageHex(12, 9, u64Hex(0x100n)), 1],
    ['no descriptor where one was announced', messageHex(13, 9, u64Hex(0n)), 0],
    ['a queue number of many bits', messageHex(13, 9, u64Hex(1n << 40n)), 1],
    ['a queue that is enabled twice over', messageHex(18, 9, state(0, 2)), 0],
    ['regions without files', messageHex(5, 9, `0100000000000000${'01'.repeat(32)}`), 0],
    ['a file that is no memory', messageHex(5, 9, `0100000000000000${'01'.repeat(32)}`), 1],
    ['the removal of what is not there', messageHex(38, 9, '00'.repeat(40)), 0],
    ['a channel that is no socket', messageHex(21, 9), 1],
    ['no channel', messageHex(21, 9), 0],
    ['a kick of a queue without a size', messageHex(12, 9, u64Hex(0n)), 1],
  ];
  for (const [name, hex, fds] of refused) {
    test(`is refused ${name}, and goes on`, async () => {
      const before = census();
      const bench = await new Bench().open();
      const [answer] = await bench.send(hex, foreignFds(fds));
      assert.equal(answer?.slice(8), messageHex(0, REPLY, u64Hex(1n)).slice(8));
      assert.equal((await bench.send(messageHex(17, 1))).length, 1);
      bench.backEnd.close();
      await turn();
      assert.deepEqual(bench.disk.ends, ['this side has closed the connection']);
      assert.deepEqual(census(), before);
    });
  }

  test('is refused what is no eventfd where one belongs', async () => {
    const before = census();
    const bench = await new Bench().open();
    for (const [request, kind] of [
      [12, 'memory'],
      [13, 'socket'],
      [14, 'memory'],
    ] as const) {
      assert.deepEqual(await bench.send(messageHex(request, 9, u64Hex(0n)), [anyFile(kind)]), [
        messageHex(request, REPLY, u64Hex(1n)),
      ]);
    }
    bench.backEnd.close();
    await turn();
    await eventually(() => assert.deepEqual(census(), before));
  });

  test('that sends more than is carried out is cut off', async () => {
    const bench = await new Bench().open();
    for (let i = 0; i < 300; i++) bench.channel.deliver(messageHex(1, 1));
    await turn();
    assert.match(bench.disk.ends[0] ?? '', /too many requests/);
  });

  test('that sends at random does no harm', async () => {
    const before = census();
    const message = fc.record(
      {
        id: fc.integer({ min: 1, max: 40 }),
        flags: fc.constantFrom(1, 9),
        payload: fc.oneof(
          fc.constantFrom('', u64Hex(0n), u64Hex(1n), state(0, 1), state(1, 64), '00'.repeat(40), '00'.repeat(24)),
          fc.uint8Array({ maxLength: 48 }).map((bytes) => Buffer.from(bytes).toString('hex')),
        ),
        files: fc.array(fc.constantFrom('event', 'memory', 'socket'), { maxLength: 2 }),
      },
      { noNullPrototype: true },
    );
    await fc.assert(
      fc.asyncProperty(fc.array(message, { maxLength: 12 }), async (messages) => {
        const bench = await new Bench().open();
        for (const { id, flags, payload, files } of messages) {
          await bench.send(messageHex(id, flags, payload), files.map(anyFile));
        }
        bench.backEnd.close();
        for (let i = 0; i < 4; i++) await turn();
        assert.equal(bench.disk.ends.length, 1);
        assert.deepEqual(bench.disk.running, []);
      }),
      { seed: 23, numRuns: 100 },
    );
    await eventually(() => assert.deepEqual(census(), before));
  });

  function anyFile(kind: string): ForeignFd {
    if (kind === 'memory') return new ForeignFd(createMemfd('any', 8192).release());
    if (kind === 'event') return new ForeignFd(createEventfd().release());
    const [mine, theirs] = socketPair('stream');
    theirs.close();
    return new ForeignFd(mine.release());
  }
});

test('a back-end that ends is told with a reason', async () => {
  const before = census();
  const pair = new Pair();
  const device = new VhostDevice(pair.frontEnd, await pair.open());
  pair.backEnd.close();
  await assert.rejects(device.readConfig(60), (error) => error instanceof VmsgError && error.code === 'backend-lost');
  await eventually(() => assert.deepEqual(pair.events, ['the other side has closed the connection']));
  await eventually(() => assert.deepEqual(census(), before));
});
