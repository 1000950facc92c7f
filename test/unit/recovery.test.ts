import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, test } from 'node:test';
import { BusRecovery, busRecoveryBytes } from '../../src/bridge/bus/recovery.ts';
import { RecoveryFiles } from '../../src/bridge/recovery-files.ts';
import type { DeviceModel, DeviceState } from '../../src/device/model.ts';
import { DeviceRecovery, recoveryBytes } from '../../src/device/recovery.ts';
import { initialState } from '../../src/device/state.ts';
import { limits } from '../../src/kit/limits.ts';
import { census } from '../../src/libc/census.ts';
import type { RecoveryMemory } from '../../src/ports/recovery.ts';
import { FeatureSet, feature } from '../../src/virtio/features.ts';
import type { SplitInflightLog } from '../../src/virtio/split/inflight.ts';
import { CountingRandom } from '../support/bridge-fakes.ts';
import { Prng } from '../support/virtqueue-pair.ts';

const identity = new Uint8Array(32).fill(7);
const model: DeviceModel = {
  deviceType: 42,
  vendorId: 1,
  uuid: new Uint8Array(16),
  offered: FeatureSet.of(0, 5, feature.VERSION_1, feature.ACCESS_PLATFORM, 100),
  featureBlockCount: 4,
  queueMaxSizes: [16, 8],
  maxMessageSize: 64,
  sharedMemory: new Map(),
};
const config = Uint8Array.from({ length: 40 }, (_, i) => i);

const running: DeviceState = {
  ...initialState(model, config),
  status: 15,
  generation: 0xfffffffe,
  driverFeatures: FeatureSet.of(0, feature.VERSION_1, feature.ACCESS_PLATFORM, 100),
  queues: [
    {
      size: 16,
      descAddr: 0x8000_0000_0000_0010n,
      driverAddr: 1n << 63n,
      deviceAddr: 0xffff_ffff_ffff_fffcn,
      enabled: true,
    },
    { size: 0, descAddr: 0n, driverAddr: 0n, deviceAddr: 0n, enabled: false },
  ],
};

const memory = (bytes = new Uint8Array(recoveryBytes(2))): RecoveryMemory => ({ bytes, close() {} });
const plain = (state: DeviceState | undefined) =>
  state && { ...state, driverFeatures: state.driverFeatures.toBlocks() };
const loaded = (bytes: Uint8Array) => new DeviceRecovery(memory(bytes.slice()), identity, 2).load(model, config)?.state;

describe('device recovery', () => {
  test('what was saved is loaded by the next process', () => {
    const file = memory();
    new DeviceRecovery(file, identity, 2).save(running);
    const again = new DeviceRecovery(file, identity, 2).load(model, config);
    assert.deepEqual(plain(again?.state), plain(running));
    assert.deepEqual(again?.savedConfig, config);
  });

  test('the newest of many saves counts', () => {
    const file = memory();
    const recovery = new DeviceRecovery(file, identity, 2);
    for (let generation = 0; generation < 7; generation++) {
      recovery.save({ ...running, generation });
      assert.equal(loaded(file.bytes)?.generation, generation);
    }
  });

  test('a new, a cleared and a foreign memory load nothing', () => {
    const file = memory();
    const recovery = new DeviceRecovery(file, identity, 2);
    assert.equal(recovery.load(model, config), undefined);
    recovery.save(running);
    recovery.clear();
    assert.equal(loaded(file.bytes), undefined);
    recovery.save(running);
    assert.notEqual(loaded(file.bytes), undefined);
    const other = new Uint8Array(32).fill(8);
    assert.equal(new DeviceRecovery(memory(file.bytes.slice()), other, 2).load(model, config), undefined);
    const three = new Uint8Array(recoveryBytes(3));
    three.set(file.bytes);
    assert.equal(new DeviceRecovery(memory(three), identity, 3).load(model, config), undefined);
    const damaged = file.bytes.slice();
    damaged[0] = 0;
    assert.equal(loaded(damaged), undefined);
  });

  test('another configuration size loads nothing; other contents are reported', () => {
    const file = memory();
    new DeviceRecovery(file, identity, 2).save(running);
    const again = new DeviceRecovery(file, identity, 2);
    assert.equal(again.load(model, new Uint8Array(41)), undefined);
    const changed = config.slice();
    changed[3] = 99;
    const result = again.load(model, changed);
    assert.deepEqual(result?.savedConfig, config);
    assert.deepEqual(result?.state.config, changed);
  });

  test('features that the backend no longer offers load nothing', () => {
    const file = memory();
    new DeviceRecovery(file, identity, 2).save(running);
    const less = { ...model, offered: FeatureSet.of(feature.VERSION_1, feature.ACCESS_PLATFORM) };
    assert.equal(new DeviceRecovery(file, identity, 2).load(less, config), undefined);
  });

  test('a kill between any stores of a save leaves the old state, until the last store', () => {
    const prng = new Prng(11);
    for (const saves of [0, 1, 2, 3]) {
      const file = memory();
      const recovery = new DeviceRecovery(file, identity, 2);
      for (let i = 0; i < saves; i++) recovery.save({ ...running, generation: i });
      const before = file.bytes.slice();
      const old = plain(loaded(before));
      recovery.save({ ...running, generation: 1000, status: 0x4f, queues: [...running.queues].reverse() });
      const after = file.bytes.slice();
      const changed = [...after.keys()].filter((i) => before[i] !== after[i]);
      const currentWord = changed.filter((i) => i >= 8 && i < 12);
      assert.ok(currentWord.length > 0, 'the switch is one word');
      for (let round = 0; round < 60; round++) {
        // Any subset stands for any order in which the stores could have happened.
        const torn = before.slice();
        for (const i of changed) if (!currentWord.includes(i) && prng.chance(0.5)) torn[i] = after[i]!;
        assert.deepEqual(plain(loaded(torn)), old);
      }
      assert.equal(loaded(after)?.generation, 1000);
    }
  });

  const splitLog = (recovery: DeviceRecovery, index: number, size: number) =>
    recovery.log(index, 'split', size) as SplitInflightLog;

  test('the in-flight logs are those of their queue, and end with clear', () => {
    const file = memory();
    const recovery = new DeviceRecovery(file, identity, 2);
    recovery.save(running);
    splitLog(recovery, 0, 16).start();
    splitLog(recovery, 1, 8).start();
    splitLog(recovery, 0, 16).taken(3);
    const again = new DeviceRecovery(memory(file.bytes.slice()), identity, 2);
    assert.deepEqual(splitLog(again, 0, 16).recover(0), [3]);
    assert.deepEqual(splitLog(again, 1, 8).recover(0), []);
    assert.equal(again.log(1, 'split', 16).resumable, false, 'of another size');
    const packed = again.log(1, 'packed', limits.queueSizeMax);
    packed.start();
    assert.equal(packed.resumable, true);
    assert.deepEqual(splitLog(again, 0, 16).recover(0), [3], 'the logs do not overlap');
    again.clear();
    assert.equal(packed.resumable, false);
    assert.equal(again.log(0, 'split', 16).resumable, false);
  });
});

const claim = (epoch: bigint, token: Uint8Array) => ({ epoch, token });
const none = claim(0n, new Uint8Array(16));

describe('bus recovery', () => {
  const start = (bytes = new Uint8Array(busRecoveryBytes)) => {
    const file = { bytes, close() {} };
    return { file, recovery: new BusRecovery(file, new CountingRandom()) };
  };

  test('epochs rise by one, across restarts too, and tokens differ', () => {
    const { file } = start();
    const tokens = new Set<string>();
    const random = new CountingRandom();
    for (let process = 0; process < 3; process++) {
      const recovery = new BusRecovery(file, random);
      for (let i = 1; i <= 3; i++) {
        const admission = recovery.admit(none);
        assert.equal(admission.epoch, BigInt(process * 3 + i));
        assert.equal(recovery.epoch, admission.epoch);
        tokens.add(Buffer.from(admission.token).toString('hex'));
      }
    }
    assert.equal(tokens.size, 9);
  });

  test('after a restart the guest of the last epoch resumes with its epoch and token, once', () => {
    const { file, recovery } = start();
    const first = recovery.admit(none);
    recovery.connected(first.token);
    assert.equal(first.resumed, false);
    const next = start(file.bytes).recovery;
    assert.equal(next.awaited, true);
    const second = next.admit(claim(first.epoch, first.token));
    assert.deepEqual([second.resumed, second.epoch, next.awaited], [true, 2n, false]);
    assert.equal(next.admit(claim(first.epoch, first.token)).resumed, false, 'not twice');
  });

  test('a wrong epoch, a wrong token and no claim do not resume, and void the epoch', () => {
    for (const wrong of ['epoch', 'token', 'none'] as const) {
      const { file, recovery } = start();
      const first = recovery.admit(none);
      recovery.connected(first.token);
      const next = start(file.bytes).recovery;
      const flipped = first.token.slice();
      flipped[15]! ^= 1;
      const attempt = { epoch: claim(first.epoch + 1n, first.token), token: claim(first.epoch, flipped), none }[wrong];
      assert.equal(next.admit(attempt).resumed, false);
      assert.equal(next.admit(claim(first.epoch, first.token)).resumed, false, 'the first guest decides');
    }
  });

  test('a guest that was seen to leave, or never became ready, cannot resume', () => {
    const { file, recovery } = start();
    const first = recovery.admit(none);
    assert.equal(start(file.bytes.slice()).recovery.awaited, false, 'admitted, but not ready');
    recovery.connected(first.token);
    recovery.disconnected();
    const next = start(file.bytes).recovery;
    assert.equal(next.awaited, false);
    assert.equal(next.admit(claim(first.epoch, first.token)).resumed, false);
    assert.equal(next.epoch, 2n);
  });

  test('a guest of this process cannot resume: it was seen to leave', () => {
    const { recovery } = start();
    const first = recovery.admit(none);
    recovery.connected(first.token);
    assert.equal(recovery.admit(claim(first.epoch, first.token)).resumed, false);
  });

  test('a resumed guest that is interrupted before it is ready can still resume with what it was told', () => {
    const { file, recovery } = start();
    const first = recovery.admit(none);
    recovery.connected(first.token);
    const second = start(file.bytes).recovery.admit(claim(first.epoch, first.token));
    const third = start(file.bytes).recovery.admit(claim(second.epoch, second.token));
    assert.deepEqual([third.resumed, third.epoch], [true, 3n]);
  });

  test('a kill between any stores leaves the record before or after: the epoch never goes back', () => {
    const prng = new Prng(6);
    const { file, recovery } = start();
    for (let epoch = 1n; epoch < 6n; epoch++) {
      const before = file.bytes.slice();
      const { token } = recovery.admit(none);
      const after = file.bytes.slice();
      const changed = [...after.keys()].filter((i) => before[i] !== after[i]);
      for (let round = 0; round < 60; round++) {
        const torn = before.slice();
        for (const i of changed) if ((i < 4 || i >= 8) && prng.chance(0.5)) torn[i] = after[i]!;
        assert.equal(start(torn).recovery.epoch, epoch - 1n);
      }
      assert.equal(start(after).recovery.epoch, epoch);
      recovery.connected(token);
    }
  });
});

describe('recovery files', () => {
  const withDirectory = (run: (directory: string) => void): void => {
    const directory = mkdtempSync(path.join(tmpdir(), 'vmsg-recovery-'));
    const before = census();
    try {
      run(path.join(directory, 'deep', 'bus'));
      assert.deepEqual(census(), before, 'nothing stays open');
    } finally {
      rmSync(directory, { recursive: true });
    }
  };

  test('memory is zero at first, and kept by name and size', () => {
    withDirectory((directory) => {
      const files = new RecoveryFiles(directory);
      const first = files.open('a', 8192);
      assert.ok(first.bytes.every((byte) => byte === 0));
      first.bytes[8191] = 9;
      first.close();
      const again = new RecoveryFiles(directory).open('a', 8192);
      assert.equal(again.bytes[8191], 9);
      again.close();
      const larger = files.open('a', 12288);
      assert.equal(larger.bytes.length, 12288);
      assert.ok(
        larger.bytes.every((byte) => byte === 0),
        'another size starts anew',
      );
      larger.close();
    });
  });

  test('two mappings of one file see each other: the file is the memory', () => {
    withDirectory((directory) => {
      const files = new RecoveryFiles(directory);
      const [one, two] = [files.open('a', 4096), files.open('a', 4096)];
      one.bytes[17] = 42;
      assert.equal(two.bytes[17], 42);
      one.close();
      two.close();
    });
  });

  test('names and removal; removing what is not there is fine', () => {
    withDirectory((directory) => {
      const files = new RecoveryFiles(directory);
      files.open('a', 4096).close();
      files.open('b', 4096).close();
      assert.deepEqual(new Set(files.names()), new Set(['a', 'b']));
      files.remove('a');
      files.remove('a');
      assert.deepEqual(readdirSync(directory), ['b']);
    });
  });

  test('only this user may read them', () => {
    withDirectory((directory) => {
      new RecoveryFiles(directory).open('a', 4096).close();
      assert.equal(statSync(directory).mode & 0o777, 0o700);
      assert.equal(statSync(path.join(directory, 'a')).mode & 0o777, 0o600);
    });
  });

  test('a device and a bus recover through real files', () => {
    withDirectory((directory) => {
      const files = new RecoveryFiles(directory);
      const device = new DeviceRecovery(files.open('device', recoveryBytes(2)), identity, 2);
      device.save(running);
      device.close();
      const bus = new BusRecovery(files.open('bus', busRecoveryBytes), new CountingRandom());
      const { token } = bus.admit(none);
      bus.connected(token);
      bus.close();
      const nextDevice = new DeviceRecovery(files.open('device', recoveryBytes(2)), identity, 2);
      assert.deepEqual(plain(nextDevice.load(model, config)?.state), plain(running));
      nextDevice.close();
      const nextBus = new BusRecovery(files.open('bus', busRecoveryBytes), new CountingRandom());
      assert.equal(nextBus.admit(claim(1n, token)).resumed, true);
      nextBus.close();
      writeFileSync(path.join(directory, 'device'), 'too short');
      const broken = new DeviceRecovery(files.open('device', recoveryBytes(2)), identity, 2);
      assert.equal(broken.load(model, config), undefined);
      broken.close();
    });
  });
});
