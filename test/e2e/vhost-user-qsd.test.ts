import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { accessSync, constants, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { after, afterEach, before, beforeEach, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { systemClock } from '../../src/kit/clock.ts';
import type { VmsgError } from '../../src/kit/errors.ts';
import { census } from '../../src/libc/census.ts';
import { Fd } from '../../src/libc/fd.ts';
import type { Messenger } from '../../src/libc/messenger.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import { connectUnix, socketPair } from '../../src/libc/unix-socket.ts';
import { VhostDevice } from '../../src/vhost-user/device.ts';
import { protocolFeature } from '../../src/vhost-user/features.ts';
import { FrontEnd } from '../../src/vhost-user/front-end.ts';
import { type DeviceDescription, openDevice } from '../../src/vhost-user/negotiation.ts';
import { openMessenger, SocketChannel } from '../../src/vhost-user/socket.ts';
import { blkConfig, blkRequestType, blkStatus } from '../../src/virtio/blk.ts';
import { deviceId } from '../../src/virtio/device-ids.ts';
import { blkFeature, FeatureSet, feature } from '../../src/virtio/features.ts';
import { decode, Malformed } from '../../src/wire/layout.ts';
import { BlkTestDriver } from '../support/vhost-user-driver.ts';
import { eventually } from '../unit/libc-harness.ts';

const imageBytes = 4 * 1024 * 1024;
const queueSize = 128;
const program = 'qemu-storage-daemon';
const wantedFeatures = FeatureSet.of(
  feature.VERSION_1,
  feature.EVENT_IDX,
  feature.INDIRECT_DESC,
  blkFeature.FLUSH,
  blkFeature.SEG_MAX,
);

function findProgram(): string {
  for (const folder of (process.env.PATH ?? '').split(delimiter)) {
    const path = join(folder, program);
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {
      // The next folder may have it.
    }
  }
  throw new Error(`${program} is not in any folder of PATH; Debian has it in the package qemu-system-common`);
}

/** The daemon with one export, and the folder that its files are in. */
class Daemon {
  readonly directory = mkdtempSync(join(tmpdir(), 'vmsg-qsd-'));
  readonly image = join(this.directory, 'disk.raw');
  readonly socket = join(this.directory, 'blk.sock');
  #child: ChildProcess | undefined;

  constructor() {
    writeFileSync(this.image, '');
    truncateSync(this.image, imageBytes);
  }

  start(): void {
    const exported = `type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=${this.socket},writable=on,num-queues=2`;
    const args = ['--blockdev', `driver=file,node-name=f,filename=${this.image}`, '--export', exported];
    this.#child = spawn(findProgram(), args, { stdio: ['ignore', 'ignore', 'inherit'] });
  }

  async connect(): Promise<Fd> {
    for (;;) {
      assert.equal(this.#child?.exitCode, null, `${program} runs`);
      const fd = connectUnix(this.socket, 'stream');
      if (fd instanceof Fd) return fd;
      await sleep(10);
    }
  }

  /** It keeps its connections and does nothing any more. */
  freeze(): void {
    this.#child?.kill('SIGSTOP');
  }

  async kill(): Promise<void> {
    const child = this.#child;
    this.#child = undefined;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
  }

  async remove(): Promise<void> {
    await this.kill();
    rmSync(this.directory, { recursive: true });
  }
}

let poller: LoopPoller;
let messenger: Messenger;
let daemon: Daemon;
let driver: BlkTestDriver;
const ends: VmsgError[] = [];

before(() => {
  poller = new LoopPoller();
  messenger = openMessenger();
});

after(() => {
  poller.close();
  messenger.close();
});

beforeEach(() => {
  ends.length = 0;
  daemon = new Daemon();
  daemon.start();
  driver = new BlkTestDriver(queueSize, wantedFeatures, poller);
});

afterEach(async () => {
  driver?.close();
  await daemon.remove();
});

const pattern = (seed: number, length: number): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * seed + 7) & 255);

async function connectFrontEnd(timeoutMs?: number): Promise<FrontEnd> {
  const ignore = (): void => {};
  const closed = (error: VmsgError): void => {
    ends.push(error);
    driver.fail(error);
  };
  const events = { configChanged: ignore, queueCalled: ignore, queueFailed: ignore, closed };
  return new FrontEnd(new SocketChannel(await daemon.connect(), messenger, poller), systemClock, events, timeoutMs);
}

function openBackEndChannel() {
  const [ours, theirs] = socketPair('stream');
  return { ours: new SocketChannel(ours, messenger, poller), theirs };
}

function negotiate(frontEnd: FrontEnd): Promise<DeviceDescription> {
  return openDevice(frontEnd, { configBytes: blkConfig.size, queues: 1, deviceId: deviceId.blk, openBackEndChannel });
}

async function startDevice(frontEnd: FrontEnd): Promise<VhostDevice> {
  const device = new VhostDevice(frontEnd, await negotiate(frontEnd));
  await device.agree(wantedFeatures);
  await device.setMemory([driver.region]);
  await device.startQueues([driver.start(0, 0)]);
  return device;
}

test('a block export is negotiated and described', { timeout: 30_000 }, async () => {
  const frontEnd = await connectFrontEnd();
  const description = await negotiate(frontEnd);
  assert(description.config !== undefined);
  const config = decode(blkConfig, description.config, 0, description.config.length);
  assert(!(config instanceof Malformed));
  assert.equal(config.capacity, BigInt(imageBytes / 512));
  assert.equal(config.numQueues, 2);
  assert.equal(description.queues, 2);
  assert(wantedFeatures.isSubsetOf(description.features));
  for (const bit of [protocolFeature.MQ, protocolFeature.REPLY_ACK, protocolFeature.CONFIG]) {
    assert(description.protocolFeatures.has(bit), `protocol feature ${bit}`);
  }
  assert(description.memSlots >= 8);
  assert.match(description.log[0] ?? '', /^features offered: SIZE_MAX SEG_MAX .*VERSION_1/);
  assert.match(description.log.join('\n'), /protocol features agreed: MQ REPLY_ACK/);
  frontEnd.close();
});

test('blocks are written and read, through a stop, a restart and a reset', { timeout: 30_000 }, async () => {
  const frontEnd = await connectFrontEnd();
  const device = await startDevice(frontEnd);
  const first = pattern(3, 8192);
  await driver.write(16, first);
  assert.deepEqual(await driver.read(16, 8192), first);
  assert.deepEqual(new Uint8Array(readFileSync(daemon.image).subarray(8192, 16384)), first);
  assert.equal(await driver.submit(blkRequestType.IN, imageBytes / 512, new Uint8Array(512)), blkStatus.IOERR);

  const base = await device.stopQueue(0);
  assert.equal(base, 3);
  assert.deepEqual(device.startedQueues, []);
  await device.startQueues([driver.start(0, base)]);
  const blocks = Array.from({ length: 16 }, (_, i) => pattern(i + 1, 4096));
  await Promise.all(blocks.map((block, i) => driver.write(64 + i * 8, block)));
  const read = await Promise.all(blocks.map((_, i) => driver.read(64 + i * 8, 4096)));
  assert.deepEqual(read, blocks);
  assert.deepEqual([...(await device.stopQueues())], [[0, 3 + 32]]);
  await device.startQueues([driver.start(0, 35)]);

  await device.reset();
  driver.reopen();
  await device.agree(wantedFeatures);
  await device.startQueues([driver.start(0, 0)]);
  assert.deepEqual(await driver.read(16, 8192), first);
  assert.deepEqual(ends, []);
  frontEnd.close();
});

test('a back-end serves without acknowledgements and memory slots', { timeout: 30_000 }, async () => {
  const frontEnd = await connectFrontEnd();
  const protocolFeatures = FeatureSet.of(protocolFeature.CONFIG);
  const wanted = { configBytes: blkConfig.size, queues: 1, protocolFeatures };
  const device = new VhostDevice(frontEnd, await openDevice(frontEnd, wanted));
  await device.agree(wantedFeatures);
  await device.setMemory([driver.region]);
  await device.startQueues([driver.start(0, 0)]);
  await driver.write(40, pattern(11, 4096));
  assert.deepEqual(await driver.read(40, 4096), pattern(11, 4096));
  assert.equal(await device.stopQueue(0), 2);
  assert.deepEqual(ends, []);
  frontEnd.close();
});

test('memory is added and removed, and configuration read again', { timeout: 30_000 }, async () => {
  const frontEnd = await connectFrontEnd();
  const device = await startDevice(frontEnd);
  const other = new BlkTestDriver(queueSize, wantedFeatures, poller);
  const moved = { ...other.region, guestAddress: 0x9_0000_0000n, userAddress: 0x10_0000_0000n };
  await device.addRegion(moved);
  assert.equal(device.regions.length, 2);
  await driver.write(0, pattern(5, 512));
  await device.removeRegion(moved);
  assert.deepEqual(await driver.read(0, 512), pattern(5, 512));
  assert.deepEqual(await device.readConfig(blkConfig.size), device.description.config);
  await assert.rejects(device.readConfig(200), { code: 'backend-refused' });
  assert.deepEqual(await device.readConfig(blkConfig.size), device.description.config);
  other.close();
  frontEnd.close();
});

test('a daemon that is killed during I/O is noticed with a reason', { timeout: 30_000 }, async () => {
  const frontEnd = await connectFrontEnd();
  const device = await startDevice(frontEnd);
  await driver.write(0, pattern(9, 4096));
  const load = (async () => {
    for (let i = 0; ; i++)
      await Promise.all(Array.from({ length: 16 }, (_, k) => driver.write((i % 64) + k * 8, pattern(k, 4096))));
  })();
  const ended = assert.rejects(load, { code: 'backend-lost' });
  await sleep(50);
  await daemon.kill();
  await ended;
  assert.deepEqual(
    ends.map((error) => [error.code, error.message]),
    [['backend-lost', 'the other side has closed the connection']],
  );
  await assert.rejects(device.stopQueue(0), (error) => error === frontEnd.ended);
});

test('a daemon that hangs is given up', { timeout: 30_000 }, async () => {
  const frontEnd = await connectFrontEnd(300);
  const device = await startDevice(frontEnd);
  daemon.freeze();
  await assert.rejects(device.readConfig(blkConfig.size), { code: 'timeout' });
  assert.deepEqual(
    ends.map((error) => error.message),
    ['the back-end has not answered GET_CONFIG in 300 ms'],
  );
});

test('a new daemon serves the same memory after the old one was killed, and nothing leaks', {
  timeout: 30_000,
}, async () => {
  await (await connectFrontEnd()).close();
  const held = census();
  for (let round = 0; round < 3; round++) {
    const frontEnd = await connectFrontEnd();
    await startDevice(frontEnd);
    await driver.write(8, pattern(round + 2, 4096));
    await daemon.kill();
    await eventually(() => assert.equal(ends.length, round + 1));
    rmSync(daemon.socket, { force: true });
    daemon.start();
    driver.reopen();
    await (await connectFrontEnd()).close();
  }
  await eventually(() => assert.deepEqual(census().mappings, held.mappings));
  await eventually(() => assert.deepEqual(census().fds.socket, held.fds.socket));
  assert.deepEqual(new Uint8Array(readFileSync(daemon.image).subarray(4096, 8192)), pattern(4, 4096));
});
