import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { openBlk } from '../../src/bridge/backend/blk.ts';
import type { LaneEvent } from '../../src/bridge/lane/protocol.ts';
import { BlkDriver, connect, feature, type GuestBus, serveDevices } from '../../src/guest/index.ts';
import { systemClock } from '../../src/kit/clock.ts';
import { makeLane } from '../support/bridge-lane.ts';
import { isCode, until } from '../support/guest-fixture.ts';

const imageBytes = 1024 * 1024;

/** A lane with a local disk as device 0 and one that another guest serves as device 1. */
async function withDisks(run: (path: string, images: readonly string[]) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'vmsg-test-'));
  const images = ['local.img', 'served.img'].map((name) => join(directory, name));
  for (const image of images) writeFileSync(image, randomBytes(imageBytes));
  const events: LaneEvent[] = [];
  const lane = makeLane('inline');
  lane.onEvent((event) => events.push(event));
  const socketOf = (bus: string): string => join(directory, `${bus}.sock`);
  for (const [bus, role] of [
    ['drv', 'driver'],
    ['dev', 'device'],
  ] as const) {
    await lane.call('openBus', {
      bus,
      role,
      transport: 'loopback',
      domid: 1,
      socketPath: socketOf(bus),
      socketMode: 0o600,
      admittedUids: [process.getuid?.() ?? 0],
      maxMessageSizeBytes: 64,
      ringMaxBytes: 65536,
      recoveryDir: join(directory, `recovery-${bus}`),
    });
    await lane.call('listenBus', { bus });
  }
  const [local = '', served = ''] = images;
  const disk = { type: 'blk', path: local, readOnly: false, serial: 'local' } as const;
  await lane.call('attach', { bus: 'drv', attachment: 'local', backend: disk });
  const server = await serveDevices({ path: socketOf('dev') });
  const host = { failed: () => {}, configChanged: () => {} };
  server.addDevice(await openBlk({ path: served, readOnly: false, serial: 'served' }, host, systemClock));
  await until(() => events.some((e) => e.type === 'served-devices' && e.devices.includes(0)), 'the served device');
  const backend = { type: 'guest', bus: 'dev', deviceNumber: 0 } as const;
  await lane.call('attach', { bus: 'drv', attachment: 'served', backend });
  try {
    await run(socketOf('drv'), images);
  } finally {
    await server.close();
    await lane.call('shutdown', {});
    lane.close();
    rmSync(directory, { recursive: true });
  }
}

async function use(bus: GuestBus, number: number, image: string, packed: boolean, expected: boolean): Promise<void> {
  const blk = await BlkDriver.open(bus, number, { packed, depth: 8, transferBytes: 4096 });
  assert.equal(blk.device.features.has(feature.NOTIFICATION_DATA), expected);
  assert.equal(blk.device.features.has(feature.RING_PACKED), packed);
  // Several turns of the ring, so that the data wraps as well.
  for (let round = 0; round < 3; round++) {
    assert.deepEqual(Buffer.from(await blk.read(0, imageBytes)), readFileSync(image));
    const data = randomBytes(imageBytes);
    await blk.write(0, data);
    assert.deepEqual(readFileSync(image), data);
  }
  await blk.close();
}

test('devices offer NOTIFICATION_DATA where kicks are messages only, local and served ones, split and packed', async () => {
  await withDisks(async (path, images) => {
    const bus = await connect({ path, queueNotify: false });
    for (const [number, image] of images.entries()) {
      for (const packed of [false, true]) await use(bus, number, image, packed, true);
    }
    bus.close();
  });
});

test('devices do not offer NOTIFICATION_DATA where kicks may come by descriptor', async () => {
  await withDisks(async (path, images) => {
    const bus = await connect({ path });
    for (const [number, image] of images.entries()) await use(bus, number, image, number === 1, false);
    bus.close();
  });
});

test('without QUEUE_NOTIFY a queue cannot have descriptors', async () => {
  await withDisks(async (path) => {
    const bus = await connect({ path, queueNotify: false });
    await assert.rejects(BlkDriver.open(bus, 0, { notify: 'descriptors' }), isCode('invalid-request'));
    bus.close();
  });
});
