import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { laneOptions } from '../../src/app/lane-options.ts';
import { openRng } from '../../src/bridge/backend/rng.ts';
import { TemplateBackend } from '../../src/bridge/backend/template.ts';
import { InlineLane } from '../../src/bridge/lane/inline.ts';
import { connect, type GuestBus, RngDriver, VirtioDevice } from '../../src/guest/index.ts';
import { limits } from '../../src/kit/limits.ts';
import { LoopPoller } from '../../src/libc/poll.ts';
import type { BackendRequest } from '../../src/ports/backend.ts';
import { deviceId } from '../../src/virtio/device-ids.ts';
import { FakeClock } from '../support/bridge-fakes.ts';
import { until } from '../support/guest-fixture.ts';
import { guestBackend, withRig } from '../support/served-rig.ts';

/** A template device that keeps requests until it is told to answer. */
class SlowTemplate extends TemplateBackend {
  readonly kept: BackendRequest[] = [];
  handled = 0;
  slow = true;

  override handle(request: BackendRequest): void {
    this.handled += 1;
    if (this.slow) this.kept.push(request);
    else super.handle(request);
  }

  answer(): void {
    this.slow = false;
    for (const request of this.kept.splice(0)) super.handle(request);
  }

  cancel(): void {
    for (const request of this.kept.splice(0)) request.release();
  }
}

/** Opens the template device and sends a name. @returns what is called with the answer */
async function ask(bus: GuestBus, name: string): Promise<{ device: VirtioDevice; answer: Promise<string> }> {
  const [number = 0] = await bus.devices();
  const device = await VirtioDevice.open(bus, number, { type: deviceId.template });
  const queue = await device.addQueue(0);
  await device.start();
  const buffer = device.alloc(256);
  const bytes = new TextEncoder().encode(name);
  buffer.bytes.set(bytes);
  const answer = queue.submit([buffer.range(0, bytes.length)], [buffer.range(128, 128)]).then((written) => {
    return new TextDecoder().decode(buffer.bytes.slice(128, 128 + written));
  });
  return { device, answer };
}

for (const path of ['relayed', 'shadow'] as const) {
  describe(`small devices of another guest, ${path}`, () => {
    test('entropy and greetings come from the serving guest', async () => {
      await withRig(async (rig) => {
        const lane = await rig.lane('inline', { drv: 'driver', other: 'driver', dev: 'device' });
        const random = { fill: (target: Uint8Array) => void target.fill(0x5a) };
        const failed = { failed: assert.fail, configChanged: () => {} };
        const entropy = await openRng({ source: '/dev/urandom' }, random, failed);
        const { server, number } = await rig.serve('dev', entropy);
        const greeter = server.addDevice(new TemplateBackend('Hello'));
        await rig.sees((event) => event.type === 'served-devices' && event.devices.includes(greeter), 'the greeter');
        await lane.call('attach', { bus: 'drv', attachment: 'r', backend: guestBackend(path, 'dev', number) });
        await lane.call('attach', { bus: 'other', attachment: 't', backend: guestBackend(path, 'dev', greeter) });
        const bus = await connect({ path: rig.socket('drv') });
        const rng = await RngDriver.open(bus, 0);
        assert.ok((await rng.read(100)).every((byte) => byte === 0x5a));
        await rng.close();
        const other = await connect({ path: rig.socket('other') });
        const { device, answer } = await ask(other, 'Xen');
        assert.equal(await answer, 'Hello, Xen!');
        await device.close();
        bus.close();
        other.close();
        await server.close();
      });
    });

    test('a driver that dies in the middle of a request leaves the device to the next one', async () => {
      await withRig(async (rig) => {
        const lane = await rig.lane('inline', { drv: 'driver', dev: 'device' });
        const backend = new SlowTemplate('Hello');
        const { server, number } = await rig.serve('dev', backend);
        await lane.call('attach', { bus: 'drv', attachment: 'a', backend: guestBackend(path, 'dev', number) });
        const first = await connect({ path: rig.socket('drv') });
        const asked = await ask(first, 'nobody');
        await until(() => backend.handled === 1, 'the request is there');
        first.close();
        await assert.rejects(asked.answer);
        await until(() => backend.kept.length === 0, 'the serving side gave it up');
        backend.slow = false;
        const second = await connect({ path: rig.socket('drv') });
        const { device, answer } = await ask(second, 'you');
        assert.equal(await answer, 'Hello, you!');
        assert.equal(backend.handled, 2);
        await device.close();
        second.close();
        await server.close();
      });
    });
  });
}

describe('a shadow device over a restart of the service', () => {
  test('resumes with the request that the serving guest had not answered', async () => {
    await withRig(async (rig) => {
      const roles = { drv: 'driver', dev: 'device' } as const;
      const lane = await rig.lane('inline', roles);
      const backend = new SlowTemplate('Hello');
      const { server, number } = await rig.serve('dev', backend);
      const attachment = { bus: 'drv', attachment: 'a', backend: guestBackend('shadow', 'dev', number) };
      await lane.call('attach', attachment);
      const bus = await connect({ path: rig.socket('drv'), reconnect: { totalMs: 20_000 } });
      const { device, answer } = await ask(bus, 'again');
      await until(() => backend.handled === 1, 'the request is there');
      await lane.call('shutdown', {});
      lane.close();
      rig.events.length = 0;
      const resumed = new Promise<boolean>((resolve) => bus.on('reconnected', (event) => resolve(event.resumed)));
      // The driver's bus is opened first: its guest is let in when the device is there.
      const next = await rig.lane('inline', roles);
      await rig.sees((event) => event.type === 'served-devices' && event.devices.includes(number), 'the device');
      assert.ok(!rig.events.some((event) => event.type === 'bus-connected' && event.bus === 'drv'));
      await next.call('attach', attachment);
      assert.equal(await resumed, true);
      await until(() => backend.handled === 2, 'the request comes again');
      backend.answer();
      assert.equal(await answer, 'Hello, again!');
      assert.equal((await rig.device(next, 'a'))?.recovery, 'resume');
      await device.close();
      bus.close();
      await server.close();
    });
  });

  test('whose serving guest does not come back is not waited for longer than the limit', async () => {
    await withRig(async (rig) => {
      const roles = { drv: 'driver', dev: 'device' } as const;
      const lane = await rig.lane('inline', roles);
      const { server, number } = await rig.serve('dev', new TemplateBackend('Hello'));
      const attachment = { bus: 'drv', attachment: 'a', backend: guestBackend('shadow', 'dev', number) };
      await lane.call('attach', attachment);
      const bus = await connect({ path: rig.socket('drv'), reconnect: { totalMs: 20_000 } });
      const { answer } = await ask(bus, 'once');
      assert.equal(await answer, 'Hello, once!');
      await lane.call('shutdown', {});
      lane.close();
      await server.close();
      rig.events.length = 0;
      const clock = new FakeClock();
      const next = new InlineLane((emit) => ({ ...laneOptions(new LoopPoller(), emit), clock }));
      await rig.open(next, roles);
      const reconnected = new Promise<boolean>((resolve) => bus.on('reconnected', (event) => resolve(event.resumed)));
      clock.advance(limits.resumeHoldMs - 1);
      await until(() => clock.timers === 1, 'the bus waits');
      clock.advance(1);
      await reconnected;
      // Nor at the next start: what was not there then is not expected any more.
      await next.call('shutdown', {});
      next.close();
      const third = new InlineLane((emit) => ({ ...laneOptions(new LoopPoller(), emit), clock }));
      await rig.open(third, roles);
      assert.equal(clock.timers, 0);
      bus.close();
    });
  });
});
