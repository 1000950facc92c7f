import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { StuckShare } from '../../src/bridge/remote/peer.ts';
import { checkFree, RemoteBus } from '../../src/bridge/remote/remote-bus.ts';
import { RemoteDevice } from '../../src/bridge/remote/remote-device.ts';
import type { DeviceLink } from '../../src/device/endpoint.ts';
import { SharedMemory } from '../../src/device/shared-memory.ts';
import { errno } from '../../src/kit/errno.ts';
import { limits } from '../../src/kit/limits.ts';
import type { MemorySource } from '../../src/ports/bus.ts';
import type { CanonicalMessage } from '../../src/virtio-msg/dialect.ts';
import { FakeClock, FakeMemory, FakeResources } from '../support/bridge-fakes.ts';
import { isCode } from '../support/guest-fixture.ts';

const bytes = 3 * 4096;

class SourcedMemory extends FakeMemory {
  readonly source: MemorySource = { fd: 5, offset: 0n };
}

/** A serving side that answers as it is told, and a driver with one region. */
class Bench {
  readonly clock = new FakeClock();
  readonly seen: string[] = [];
  readonly stuck: Array<StuckShare & { stuck: boolean }> = [];
  readonly gone: string[] = [];
  readonly bus: RemoteBus;
  /** Answer to REGION_DEL; undefined: none. */
  removal: number | undefined = 0;
  /** Nothing is answered. */
  deaf = false;
  device!: RemoteDevice;

  constructor() {
    const peer = {
      maxMessageSize: 264,
      byPeer: true,
      lengthOf: () => 64,
      send: (message: CanonicalMessage, device: number, token: number) => this.#receive(message, device, token),
      giveDescriptor: () => 1,
    };
    this.bus = new RemoteBus(peer, this.clock, {
      onDevices: () => {},
      onStuck: (share, stuck) => this.stuck.push({ ...share, stuck }),
    });
    const header = { type: 0, id: 0, deviceNumber: 0, token: 0, size: 0 };
    this.bus.onMessage({ kind: 'event', name: 'EVENT_DEVICE', body: { device: 2, state: 1 } }, header);
  }

  static async attached(): Promise<Bench> {
    const bench = new Bench();
    const hooks = {
      owner: { bus: 'drv', domid: 9 },
      onStatus: () => {},
      onGone: (reason: string) => void bench.gone.push(reason),
    };
    bench.device = await RemoteDevice.open(bench.bus, 2, bench.clock, hooks);
    return bench;
  }

  #receive(message: CanonicalMessage, deviceNumber: number, token: number): void {
    if (message.kind !== 'request') return;
    this.seen.push(message.name);
    const bodies: Record<string, object | undefined> = {
      GET_DEVICE_INFO: { deviceId: 2, maxVirtqueues: 1 },
      SET_DEVICE_STATUS: { status: 0 },
      REGION_DEL: this.removal === undefined ? undefined : { errno: this.removal },
    };
    const body = message.name in bodies ? bodies[message.name] : { errno: 0 };
    if (body === undefined || this.deaf) return;
    const header = { type: 0, id: 0, deviceNumber, token, size: 0 };
    queueMicrotask(
      () => void this.bus.onMessage({ kind: 'response', name: message.name, body } as CanonicalMessage, header),
    );
  }

  /** The driver's guest connects and shares one region. */
  async connect(): Promise<void> {
    const resources = new FakeResources();
    resources.memories.set(1, new SourcedMemory(new Uint8Array(bytes)));
    const memory = new SharedMemory(resources, this.clock, false);
    this.device.connect({ memory } as DeviceLink);
    const body = { peer: 0, area: 4, flags: 0, reference: 1, domain: 0, offset: 0n, length: BigInt(bytes) };
    await new Promise<void>((resolve) => memory.add(body, () => resolve()));
  }

  async pass(ms: number): Promise<void> {
    for (let left = ms; left > 0; left -= 100) {
      this.clock.advance(Math.min(left, 100));
      for (let i = 0; i < 50; i++) await Promise.resolve();
    }
  }
}

const owner = { bus: 'drv', domid: 9 };

test('memory that is given back in time is no news', async () => {
  const bench = await Bench.attached();
  await bench.connect();
  bench.device.disconnect(() => {});
  await bench.pass(2 * limits.shareStuckMs);
  assert.deepEqual(bench.stuck, []);
  assert.deepEqual(bench.seen.slice(-3), ['SET_DEVICE_STATUS', 'REGION_DEL', 'DEVICE_BIND']);
  assert.equal(bench.clock.timers, 0);
});

test('a side that keeps memory is reported, told again at a bounded rate, and reported when it lets go', async () => {
  const bench = await Bench.attached();
  await bench.connect();
  bench.removal = errno.EBUSY;
  let done = false;
  bench.device.disconnect(() => {
    done = true;
  });
  await bench.pass(limits.shareStuckMs - 100);
  assert.ok(done, 'the driver does not wait for that');
  assert.deepEqual(bench.stuck, []);
  await bench.pass(100);
  assert.deepEqual(bench.stuck.splice(0), [{ owner, pages: 3, ageMs: limits.shareStuckMs, stuck: true }]);
  bench.seen.length = 0;
  await bench.pass(10 * limits.shareStuckMs);
  assert.deepEqual(new Set(bench.seen), new Set(['REGION_DEL']), 'the device may be in use again: it is left alone');
  assert.ok(bench.seen.length >= 9 && bench.seen.length <= 11, `${bench.seen.length} times`);
  assert.deepEqual(bench.bus.stuck(), [{ owner, pages: 3, ageMs: 11 * limits.shareStuckMs }]);
  bench.removal = 0;
  await bench.pass(limits.shareStuckMs);
  assert.deepEqual(
    bench.stuck.map(({ pages, stuck }) => [pages, stuck]),
    [[3, false]],
  );
  assert.deepEqual(bench.bus.stuck(), []);
  assert.equal(bench.clock.timers, 0);
});

test('a side that answers nothing at all is reported just so; its end is the end of it', async () => {
  const bench = await Bench.attached();
  await bench.connect();
  bench.deaf = true;
  bench.device.disconnect(() => {});
  await bench.pass(limits.shareStuckMs);
  assert.deepEqual(
    bench.stuck.map(({ stuck }) => stuck),
    [true],
  );
  await bench.pass(10 * limits.shareStuckMs);
  bench.bus.close('it died');
  await bench.pass(100);
  assert.deepEqual(
    bench.stuck.map(({ stuck }) => stuck),
    [true, false],
  );
  assert.equal(bench.clock.timers, 0);
});

test('a driver that uses the device again is not disturbed by what is left of the one before', async () => {
  const bench = await Bench.attached();
  await bench.connect();
  bench.removal = errno.EBUSY;
  bench.device.disconnect(() => {});
  await bench.pass(100);
  await bench.connect();
  bench.seen.length = 0;
  await bench.pass(3 * limits.shareStuckMs);
  bench.removal = 0;
  await bench.pass(limits.shareStuckMs);
  assert.ok(!bench.seen.includes('DEVICE_BIND'), 'the device is bound to the new memory');
  assert.equal(bench.stuck.at(-1)?.stuck, false);
});

test('the memory of so many drivers and no more is kept by one side', async () => {
  const bench = await Bench.attached();
  bench.removal = errno.EBUSY;
  for (let i = 0; i < limits.peersPerBus; i++) {
    await bench.connect();
    bench.device.disconnect(() => {});
    await bench.pass(100);
  }
  assert.ok(bench.bus.full);
  bench.device.connect({ memory: new SharedMemory(new FakeResources(), bench.clock, false) } as DeviceLink);
  await bench.pass(100);
  assert.match(bench.gone.join(), /keeps the memory of too many drivers/);
  bench.device.close();
  assert.throws(() => checkFree(bench.bus, 2), isCode('unavailable', /too many drivers/));
});
