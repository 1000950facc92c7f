import assert from 'node:assert/strict';
import { randomFillSync } from 'node:crypto';
import {
  closeSync,
  fsyncSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { laneOptions } from '../../src/app/lane-options.ts';
import { InlineLane } from '../../src/bridge/lane/inline.ts';
import { BlkDriver, type BlkOptions, connect, type GuestBus, VirtioDevice } from '../../src/guest/index.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { blkConfig, blkRequestType, blkStatus } from '../../src/virtio/blk.ts';
import { deviceId } from '../../src/virtio/device-ids.ts';
import { blkFeature, FeatureSet } from '../../src/virtio/features.ts';
import { blkHead, rangeBytes, type TestRange } from '../support/bridge-disk.ts';
import { isCode } from '../support/guest-fixture.ts';

/** The whole block device: a guest, the bridge and files, with nothing replaced. */
const directory = mkdtempSync(path.join(tmpdir(), 'vmsg-blk-'));
const at = (name: string): string => path.join(directory, name);
const lane = new InlineLane((emit) => laneOptions(new LoopPoller(), emit));
const mib = 1024 * 1024;
let bus: GuestBus;

before(async () => {
  await lane.call('openBus', {
    bus: 'b',
    transport: 'loopback',
    role: 'driver',
    domid: 1,
    socketPath: at('bus'),
    socketMode: 0o600,
    admittedUids: [process.getuid?.() ?? 0],
    maxMessageSizeBytes: 64,
    ringMaxBytes: 65536,
    recoveryDir: at('recovery'),
  });
  await lane.call('listenBus', { bus: 'b' });
  bus = await connect({ path: at('bus') });
});

after(async () => {
  bus.close();
  await lane.call('shutdown', {});
  rmSync(directory, { recursive: true, force: true });
});

interface Rig {
  readonly blk: BlkDriver;
  readonly file: string;
}

/** Runs with a disk of its own. */
async function withDisk(
  name: string,
  bytes: Uint8Array,
  options: BlkOptions & { readonly diskQueues?: number },
  act: (rig: Rig) => Promise<void>,
): Promise<void> {
  const { diskQueues = 1, ...driver } = options;
  const file = at(name);
  writeFileSync(file, bytes);
  const backend = { type: 'blk', path: file, readOnly: false, serial: name, queues: diskQueues } as const;
  const { deviceNumber } = await lane.call('attach', { bus: 'b', attachment: name, backend });
  const blk = await BlkDriver.open(bus, deviceNumber, driver);
  try {
    await act({ blk, file });
  } finally {
    await blk.close();
    await lane.call('detach', { bus: 'b', attachment: name });
  }
}

async function enabledQueues(): Promise<number[]> {
  const { buses } = await lane.call('inspect', {});
  return buses[0]!.devices.at(-1)!.queues.map(({ index }) => index);
}

test('four queues in parallel: every byte arrives where it belongs', () =>
  withDisk(
    'queues',
    new Uint8Array(4 * mib),
    { queues: 4, diskQueues: 4, depth: 32, size: 16 },
    async ({ blk, file }) => {
      assert.equal(blk.queues, 4);
      assert.deepEqual(await enabledQueues(), [0, 1, 2, 3]);
      const data = randomFillSync(new Uint8Array(4 * mib));
      const block = 8192;
      const order = Array.from({ length: data.length / block }, (_, i) => (i * 37) % (data.length / block));
      await Promise.all(
        order.map(async (i) => {
          const part = data.subarray(i * block, (i + 1) * block);
          await blk.write((i * block) / 512, part);
          assert.deepEqual(await blk.read((i * block) / 512, block), part);
        }),
      );
      await blk.flush();
      assert.ok(readFileSync(file).equals(data));
    },
  ));

test('a driver uses as many queues as it wants and the device has', async () => {
  await withDisk('few', new Uint8Array(mib), { queues: 4, diskQueues: 2 }, async ({ blk }) => {
    assert.equal(blk.queues, 2);
    assert.equal((await blk.read(0, mib)).length, mib);
  });
  await withDisk('one', new Uint8Array(mib), { diskQueues: 16 }, async ({ blk }) => {
    assert.equal(blk.queues, 1);
    assert.equal((await blk.read(0, mib)).length, mib);
  });
  await withDisk('most', new Uint8Array(mib), { queues: 99, diskQueues: 16, depth: 64, size: 8 }, async ({ blk }) => {
    assert.equal(blk.queues, 16);
    assert.equal((await blk.read(0, mib)).length, mib);
  });
});

test('discard gives storage of the image back; zeroes are zero, with and without it', () =>
  withDisk('erase', Buffer.alloc(8 * mib, 0x55), {}, async ({ blk, file }) => {
    await blk.flush();
    const fd = openSync(file, 'r+');
    fsyncSync(fd);
    closeSync(fd);
    const allocated = (): number => statSync(file).blocks * 512;
    const full = allocated();
    await blk.discard(0, 2 * mib);
    assert.ok(allocated() <= full - 2 * mib, `${full} bytes became ${allocated()}`);
    await blk.writeZeroes((2 * mib) / 512, mib, { unmap: true });
    assert.ok(allocated() <= full - 3 * mib);
    const sparse = allocated();
    await blk.writeZeroes((3 * mib) / 512, mib + 512);
    assert.ok(allocated() >= sparse - 65536, 'without unmap the storage stays');
    const zeroes = new Uint8Array(2 * mib + 512);
    assert.deepEqual(await blk.read((2 * mib) / 512, zeroes.length), zeroes);
    assert.deepEqual(await blk.read((4 * mib) / 512 + 1, 512), new Uint8Array(512).fill(0x55));
    assert.equal(statSync(file).size, 8 * mib);
    await assert.rejects(blk.discard(16 * 1024, 512), isCode('invalid-request'));
    await assert.rejects(blk.writeZeroes(0, 100), isCode('invalid-request'));
    await blk.discard(0, 0);
  }));

test('the device refuses what the driver would not send', async () => {
  const file = at('raw');
  writeFileSync(file, new Uint8Array(mib).fill(1));
  const backend = { type: 'blk', path: file, readOnly: false, serial: '' } as const;
  const { deviceNumber } = await lane.call('attach', { bus: 'b', attachment: 'raw', backend });
  const features = FeatureSet.of(blkFeature.FLUSH, blkFeature.DISCARD, blkFeature.WRITE_ZEROES);
  const device = await VirtioDevice.open(bus, deviceNumber, { type: deviceId.blk, features });
  const queue = await device.addQueue(0);
  await device.start();
  const memory = device.alloc(4096);
  const ask = async (type: number, data: Uint8Array): Promise<number | undefined> => {
    memory.bytes.set(blkHead(type, 0n));
    memory.bytes.set(data, 512);
    assert.equal(await queue.submit([memory.range(0, 16), memory.range(512, data.length)], [memory.range(256, 1)]), 1);
    return memory.bytes[256];
  };
  const { DISCARD, WRITE_ZEROES } = blkRequestType;
  const { OK, IOERR, UNSUPP } = blkStatus;
  const good = { sector: 0, sectors: 1 };
  assert.equal(await ask(DISCARD, rangeBytes(good, { ...good, flags: 1 })), UNSUPP);
  assert.equal(await ask(WRITE_ZEROES, rangeBytes(good, { ...good, flags: 2 })), UNSUPP);
  assert.equal(await ask(WRITE_ZEROES, rangeBytes(good, { sector: mib / 512, sectors: 1 })), IOERR);
  assert.equal(await ask(DISCARD, rangeBytes(good, { sector: (1n << 64n) - 1n, sectors: 1 })), IOERR);
  assert.equal(await ask(DISCARD, rangeBytes(good).subarray(0, 15)), IOERR);
  assert.equal(await ask(DISCARD, rangeBytes(...new Array<TestRange>(33).fill(good))), IOERR);
  assert.deepEqual(readFileSync(file).subarray(0, 512), Buffer.alloc(512, 1), 'nothing of them was done');
  assert.equal(await ask(WRITE_ZEROES, rangeBytes(good, { sector: mib / 512 - 1, sectors: 1, flags: 1 })), OK);
  assert.ok(
    readFileSync(file).equals(
      Buffer.alloc(mib, 1)
        .fill(0, 0, 512)
        .fill(0, mib - 512),
    ),
  );
  await device.close();
  await lane.call('detach', { bus: 'b', attachment: 'raw' });
});

test('the cache mode is the choice of the driver', () =>
  withDisk('cache', new Uint8Array(mib), {}, async ({ blk }) => {
    assert.equal(blk.writeback, true);
    await blk.setWriteback(false);
    assert.equal(blk.writeback, false);
    await blk.write(0, new Uint8Array(4096).fill(1));
    await blk.setWriteback(true);
    assert.equal(blk.writeback, true);
    await assert.rejects(blk.device.config.write(blkConfig.at.writeback, Uint8Array.of(2)), isCode('invalid-request'));
    await assert.rejects(blk.device.config.write(0, new Uint8Array(8)), isCode('invalid-request'));
    assert.equal(blk.capacityBytes, mib);
  }));

test('the image grows and shrinks under I/O: the guest hears of it, and nothing but the lost end fails', () =>
  withDisk('resize', new Uint8Array(mib), { depth: 8 }, async ({ blk, file }) => {
    const resized: number[] = [];
    const wait: Array<() => void> = [];
    blk.on('resized', ({ capacityBytes }) => {
      resized.push(capacityBytes);
      for (const go of wait.splice(0)) go();
    });
    let going = true;
    const block = new Uint8Array(4096).fill(9);
    const load = async (sector: number): Promise<void> => {
      while (going) {
        await blk.write(sector, block);
        assert.deepEqual(await blk.read(sector, 4096), block);
      }
    };
    const running = [0, 8, 16, 24].map(load);
    const change = async (size: number): Promise<void> => {
      const told = new Promise<void>((resolve) => wait.push(resolve));
      truncateSync(file, size);
      await told;
      assert.equal(blk.capacityBytes, size);
    };
    await change(3 * mib);
    await blk.write((2 * mib) / 512, block);
    assert.deepEqual(await blk.read((2 * mib) / 512, 4096), block);
    await change(mib / 2);
    await assert.rejects(blk.read((2 * mib) / 512, 4096), isCode('invalid-request'), 'the driver knows the new end');
    await blk.write(0, block);
    going = false;
    await Promise.all(running);
    assert.deepEqual(resized, [3 * mib, mib / 2]);
  }));
