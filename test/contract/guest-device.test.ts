import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlkDriver, deviceInfo, FeatureSet, RngDriver, VirtioDevice, type VmsgError } from '../../src/guest/index.ts';
import { type Clock, systemClock } from '../../src/kit/clock.ts';
import { limits } from '../../src/kit/limits.ts';
import { feature } from '../../src/virtio/features.ts';
import { isCode, until, withPeer } from '../support/guest-fixture.ts';

test('a device is initialised in the order of the specification', () =>
  withPeer(async ({ model, connect }) => {
    const bus = await connect();
    model.log.length = 0;
    const device = await VirtioDevice.open(bus, 3);
    const queue = await device.addQueue(0, { size: 1024 });
    await device.start();
    assert.deepEqual(
      model.log.filter((name, i) => name !== model.log[i - 1]),
      [
        'GET_DEVICE_INFO',
        'SET_DEVICE_STATUS',
        'GET_DEVICE_FEATURES',
        'SET_DRIVER_FEATURES',
        'SET_DEVICE_STATUS',
        'GET_DEVICE_STATUS',
        'GET_VQUEUE',
        'QUEUE_NOTIFY',
        'SET_VQUEUE',
        'GET_VQUEUE',
        'SET_DEVICE_STATUS',
      ],
    );
    assert.equal(model.status, 15);
    assert.equal(queue.size, 64);
    // FLUSH was not asked for.
    assert.deepEqual(model.driverFeatures, [0x3000_0000, 3]);
    assert.deepEqual(device.features.names(), ['INDIRECT_DESC', 'EVENT_IDX', 'VERSION_1', 'ACCESS_PLATFORM']);
    await assert.rejects(VirtioDevice.open(bus, 3), isCode('in-use'));
    await device.close();
    assert.equal(model.status, 0);
    assert.equal(bus.memory.regions[0]?.buffers, 0);
  }));

test('a reset may complete later', () =>
  withPeer(async ({ model, connect }) => {
    const bus = await connect();
    let polls = 0;
    model.overrides.set('SET_DEVICE_STATUS', (body) => (body.status === 0 ? { status: 15 } : 'usual'));
    model.overrides.set('GET_DEVICE_STATUS', () => (polls++ < 3 ? { status: 15 } : 'usual'));
    await VirtioDevice.open(bus, 3);
    assert(polls > 3);
  }));

test('a reset that never completes is given up', () =>
  withPeer(async ({ model, connect }) => {
    // Short pauses pass at once, request times never.
    let now = 0;
    const clock: Clock = {
      nowMs: () => now,
      after: (delayMs, run) => {
        if (delayMs > limits.guestResetPollMaxMs) return { cancel: () => {} };
        now += delayMs;
        return systemClock.after(0, run);
      },
    };
    const bus = await connect({ clock });
    model.overrides.set('SET_DEVICE_STATUS', () => ({ status: 15 }));
    model.overrides.set('GET_DEVICE_STATUS', () => ({ status: 15 }));
    await assert.rejects(VirtioDevice.open(bus, 3), isCode('timeout', /reset/));
    assert(now >= limits.resetTimeoutMs - limits.guestResetPollMaxMs);
  }));

test('refused features, and features taken back', () =>
  withPeer(async ({ model, connect }) => {
    const bus = await connect();
    model.overrides.set('SET_DEVICE_STATUS', (body) => (body.status & 8 ? { status: body.status & ~8 } : 'usual'));
    await assert.rejects(VirtioDevice.open(bus, 3), isCode('device-failed', /refuses the features .*VERSION_1/));
    assert.equal(model.status, 0, 'the device was reset');
    model.overrides.clear();
    model.overrides.set('GET_DEVICE_STATUS', () => ({ status: 3 }));
    model.overrides.set('SET_DEVICE_STATUS', (body) => (body.status === 0 ? { status: 0 } : 'usual'));
    await assert.rejects(VirtioDevice.open(bus, 3), isCode('device-failed', /back/));
    model.overrides.clear();
    model.overrides.set('SET_DEVICE_STATUS', (body) => (body.status === 2 + 1 ? { status: 64 + 3 } : 'usual'));
    await assert.rejects(VirtioDevice.open(bus, 3), isCode('device-failed', /reset/));
  }));

test('a device without the bits of the bus', () =>
  withPeer(async ({ model, connect }) => {
    const bus = await connect();
    model.offered = FeatureSet.of(feature.VERSION_1);
    await assert.rejects(VirtioDevice.open(bus, 3), isCode('protocol-violation', /ACCESS_PLATFORM/));
    model.overrides.set('GET_DEVICE_FEATURES', () => ({ blockIndex: 7, blockCount: 1, blocks: [1] }));
    await assert.rejects(VirtioDevice.open(bus, 3), isCode('protocol-violation', /other blocks/));
  }));

test('descriptions beyond all bounds, and devices that are not there', () =>
  withPeer(async ({ model, connect }) => {
    const bus = await connect();
    const usual = { deviceId: 2, vendorId: 0, uuid: new Uint8Array(16).fill(0xab), featureBlockCount: 2 };
    const rest = { configSize: 60, maxVirtqueues: 1, adminStart: 0, adminCount: 0 };
    const answer = (fields: object) => model.overrides.set('GET_DEVICE_INFO', () => ({ ...usual, ...rest, ...fields }));
    answer({});
    assert.equal((await deviceInfo(bus, 3)).uuid, 'abababab-abab-abab-abab-abababababab');
    for (const fields of [{ configSize: 0x8000_0000 }, { maxVirtqueues: 0x10001 }, { adminStart: 1, adminCount: 1 }]) {
      answer(fields);
      await assert.rejects(deviceInfo(bus, 3), isCode('protocol-violation', /bounds/));
    }
    answer({ deviceId: 0 });
    await assert.rejects(deviceInfo(bus, 3), isCode('not-found'));
    answer({ featureBlockCount: 0xffff_ffff });
    await VirtioDevice.open(bus, 3);
    await assert.rejects(RngDriver.open(bus, 3), isCode('invalid-request', /blk, not rng/));
    await assert.rejects(deviceInfo(bus, 0x10000), isCode('invalid-request'));
  }));

test('a configuration is read again when it changes between two messages', () =>
  withPeer(async ({ model, connect }) => {
    const bus = await connect();
    const device = await VirtioDevice.open(bus, 3);
    model.config = Uint8Array.from({ length: 60 }, (_, i) => i);
    let reads = 0;
    model.overrides.set('GET_CONFIG', () => {
      reads += 1;
      if (reads === 2 || reads === 4) model.generation += 1;
      return 'usual';
    });
    assert.deepEqual(await device.config.read(0, 60), model.config);
    assert.equal(reads, 6);
    assert.deepEqual(await device.config.read(3, 4), Uint8Array.of(3, 4, 5, 6));
    assert.equal(await device.config.generation(), model.generation);
    model.overrides.set('GET_CONFIG', () => {
      model.generation += 1;
      return 'usual';
    });
    await assert.rejects(device.config.read(0, 60), isCode('unavailable'));
    await assert.rejects(device.config.read(59, 2), isCode('invalid-request'));
    model.overrides.set('GET_CONFIG', () => ({ generation: 1, offset: 4, length: 4, data: new Uint8Array(4) }));
    await assert.rejects(device.config.read(0, 4), isCode('protocol-violation'));
  }));

test('a configuration is written in parts, each applied or rejected', () =>
  withPeer(async ({ model, connect }) => {
    const bus = await connect();
    const device = await VirtioDevice.open(bus, 3);
    const bytes = Uint8Array.from({ length: 60 }, (_, i) => 200 - i);
    const generations: number[] = [];
    model.overrides.set('SET_CONFIG', (body) => {
      generations.push(body.generation);
      return 'usual';
    });
    await device.config.write(0, bytes);
    assert.deepEqual(model.config, bytes);
    assert.deepEqual(generations, [0, 0]);
    const answer = (length: number) => ({ generation: 1, offset: 0, length, data: new Uint8Array(length) });
    model.overrides.set('SET_CONFIG', () => answer(0));
    await assert.rejects(device.config.write(0, bytes), isCode('invalid-request'));
    model.overrides.set('SET_CONFIG', () => answer(3));
    await assert.rejects(device.config.write(0, bytes), isCode('protocol-violation'));
  }));

test('with the strict profile a rejected write is repeated with the new generation', () =>
  withPeer(
    async ({ model, connect }) => {
      const bus = await connect();
      const device = await VirtioDevice.open(bus, 3);
      const seen: number[] = [];
      model.overrides.set('SET_CONFIG', (body) => {
        seen.push(body.generation);
        if (seen.length > 2) return 'usual';
        model.generation += 1;
        return { generation: model.generation, offset: 0, length: 0, data: new Uint8Array(0) };
      });
      await device.config.write(0, Uint8Array.of(9));
      assert.deepEqual(seen, [1, 2, 3]);
      assert.equal(model.config[0], 9);
    },
    { onHello: () => ({ fields: { transportFeatures: 1 } }) },
  ));

test('queues that the device does not have, or does not take over', () =>
  withPeer(async ({ model, connect }) => {
    const bus = await connect();
    const none = { size: 0, flags: 0, descAddr: 0n, driverAddr: 0n, deviceAddr: 0n };
    const attempt = async (code: string) => {
      const device = await VirtioDevice.open(bus, 3);
      await assert.rejects(device.addQueue(0), isCode(code));
      await device.close();
      assert.equal(bus.memory.regions[0]?.buffers, 0);
    };
    model.overrides.set('GET_VQUEUE', (body) => ({ index: body.index, maxSize: 0, ...none }));
    await attempt('not-found');
    model.overrides.set('GET_VQUEUE', (body) => ({ index: body.index, maxSize: 8, ...none, flags: 1 }));
    await attempt('protocol-violation');
    model.overrides.set('GET_VQUEUE', (body) => ({ index: body.index, maxSize: 8, ...none }));
    await attempt('protocol-violation');
    model.overrides.set('GET_VQUEUE', (body) => ({ index: body.index + 1, maxSize: 8, ...none }));
    await attempt('protocol-violation');
  }));

test('the configuration changes, and the disk grows', () =>
  withPeer(async ({ peer, model, connect }) => {
    const bus = await connect();
    const blk = await BlkDriver.open(bus, 3);
    assert.equal(blk.capacityBytes, 65536);
    let resized = 0;
    blk.on('resized', ({ capacityBytes }) => {
      resized = capacityBytes;
    });
    model.config[1] = 1;
    model.generation += 1;
    const body = { status: 15, generation: 2, offset: 0, length: 0, data: new Uint8Array(0) };
    peer.connection?.send({ kind: 'event', name: 'EVENT_CONFIG', body }, 3);
    await until(() => resized !== 0, 'the event arrives');
    assert.equal(resized, (128 + 256) * 512);
  }));

for (const [name, hit] of Object.entries({
  DEVICE_NEEDS_RESET: (peer, model) => {
    model.status |= 64;
    const body = { status: model.status, generation: 1, offset: 0, length: 0, data: new Uint8Array(0) };
    peer.connection?.send({ kind: 'event', name: 'EVENT_CONFIG', body }, 3);
  },
  'a used index from nowhere': (peer, model) => {
    const { deviceAddr } = model.queueSetup;
    const region = model.regions.get(Number(deviceAddr >> 48n))!;
    const at = Number(deviceAddr & 0xffff_ffff_ffffn);
    region.bytes[at + 2] = 77;
    peer.connection?.send({ kind: 'event', name: 'EVENT_USED', body: { index: 0 } }, 3);
  },
} satisfies Record<
  string,
  (peer: import('../support/guest-peer.ts').GuestPeer, model: import('../support/guest-peer-device.ts').PeerBus) => void
>)) {
  test(`${name} fails the device until it is opened again`, () =>
    withPeer(async ({ peer, model, connect }) => {
      const bus = await connect();
      const blk = await BlkDriver.open(bus, 3);
      let failed: VmsgError | undefined;
      blk.on('failed', (error) => {
        failed = error;
      });
      model.serving = false;
      const pending = assert.rejects(blk.read(0, 4096), isCode('device-failed'));
      await until(() => model.log.includes('EVENT_AVAIL'), 'the request is out');
      hit(peer, model);
      await pending;
      assert.equal(failed?.code, 'device-failed');
      await assert.rejects(blk.read(0, 512), isCode('device-failed'));
      await blk.close();
      assert.equal(bus.memory.regions[0]?.buffers, 0);
      model.serving = true;
      const again = await BlkDriver.open(bus, 3);
      assert.equal((await again.read(0, 512)).length, 512);
    }));
}

test('a removed device ends what waits, and its number can be used again', () =>
  withPeer(async ({ peer, model, connect }) => {
    const bus = await connect();
    const blk = await BlkDriver.open(bus, 3);
    model.serving = false;
    const pending = assert.rejects(blk.write(0, new Uint8Array(512)), isCode('not-found'));
    peer.connection?.send({ kind: 'event', name: 'EVENT_DEVICE', body: { device: 3, state: 2 } }, 0);
    await pending;
    // The number is given to another device.
    model.reset();
    model.serving = true;
    const next = await BlkDriver.open(bus, 3);
    // The old handle has no say about the new device.
    await blk.close();
    assert.equal(model.status, 15);
    assert.equal((await next.read(0, 512)).length, 512);
  }));
