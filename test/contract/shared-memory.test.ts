import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { connect, openDeviceMemory, VirtioDevice } from '../../src/guest/index.ts';
import { census } from '../../src/libc/census.ts';
import { readU32 } from '../../src/wire/bytes.ts';
import { type LaneKind, makeLane } from '../support/bridge-lane.ts';
import { isCode, until } from '../support/guest-fixture.ts';
import { settledCensus } from '../support/settled-census.ts';

const bytes = 64 * 1024;

async function withShmDevice(kind: LaneKind, run: (path: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'vmsg-test-'));
  const socketPath = join(directory, 'bus.sock');
  const lane = makeLane(kind);
  lane.onEvent(() => {});
  await lane.call('openBus', {
    bus: 'b',
    role: 'driver',
    transport: 'loopback',
    domid: 1,
    socketPath,
    socketMode: 0o600,
    admittedUids: [process.getuid?.() ?? 0],
    maxMessageSizeBytes: 64,
    ringMaxBytes: 65536,
    recoveryDir: join(directory, 'recovery'),
  });
  await lane.call('attach', { bus: 'b', attachment: 'shm', backend: { type: 'shm', bytes } });
  await lane.call('attach', { bus: 'b', attachment: 'rng', backend: { type: 'rng', source: '/dev/urandom' } });
  await lane.call('listenBus', { bus: 'b' });
  try {
    await run(socketPath);
  } finally {
    await lane.call('shutdown', {});
    lane.close();
    rmSync(directory, { recursive: true });
  }
}

async function useShm(path: string): Promise<void> {
  const bus = await connect({ path });
  await bus.devices();
  const device = await VirtioDevice.open(bus, 0);
  const queue = await device.addQueue(0);
  await device.start();
  const memory = await openDeviceMemory(bus, 0, 0);
  assert.equal(memory.bytes.length, bytes);
  assert.equal(memory.busAddress >> 48n, 0x7f00n, 'an area of the service');
  for (const offset of [4, 5, 4095, bytes - 1]) {
    assert.equal(memory.bytes[offset], (31 * offset + (offset >>> 8)) & 0xff);
  }
  const answer = device.alloc(4);
  for (let n = 0; n < 3; n++) {
    const before = readU32(memory.bytes, 0);
    assert.equal(await queue.submit([], [answer]), 4);
    assert.equal(readU32(memory.bytes, 0), before + 1, 'the device has written where the guest looks');
    assert.equal(readU32(answer.bytes, 0), before + 1);
  }
  // The address of the region is one that the device itself can be given.
  const where = { hi: Number(memory.busAddress >> 32n), lo: 8, length: 4 };
  assert.equal(await queue.submit([], [where]), 4);
  assert.equal(readU32(memory.bytes, 8), readU32(memory.bytes, 0));
  memory.close();
  assert.equal(memory.bytes.length, 0);
  await assert.rejects(openDeviceMemory(bus, 0, 1), isCode('not-found'));
  await assert.rejects(openDeviceMemory(bus, 1, 0), isCode('not-found'));
  const forged = await bus.busRequest('SHM_OPEN', { device: 1, reserved: 0, index: 0 });
  assert.notEqual(forged.errno, 0);
  await device.close();
  bus.close();
}

test('a guest maps the shared memory of a device, guest after guest, and nothing is left', async () => {
  await withShmDevice('inline', useShm);
  const before = await settledCensus();
  await withShmDevice('inline', async (path) => {
    await useShm(path);
    await useShm(path);
  });
  await until(() => JSON.stringify(census()) === before, `nothing is left: ${before} ${JSON.stringify(census())}`);
});

test('the same from a Worker lane', () => withShmDevice('worker', useShm));
