import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import { LateBackendHost } from '../../src/bridge/backend/factory.ts';
import type { Lane } from '../../src/bridge/lane/protocol.ts';
import { limits } from '../../src/kit/limits.ts';
import { census } from '../../src/libc/census.ts';
import { until } from '../support/bridge-guest.ts';
import { LaneRig, makeLane, openClockedBus } from '../support/bridge-lane.ts';
import { settledCensus } from '../support/settled-census.ts';

const [EACCES, ETIMEDOUT] = [13, 110];

describe('handshake time', () => {
  for (const phase of ['nothing', 'HELLO'] as const) {
    test(`a guest that sends ${phase} and then waits is refused after the bound`, async () => {
      const bus = openClockedBus();
      const idle = census();
      const guest = bus.guest();
      if (phase === 'HELLO') await guest.hello();
      else await until('the guest is accepted', () => bus.runtime.snapshot().state === 'handshake');
      bus.clock.advance(limits.handshakeTimeoutMs - 1);
      assert.equal(bus.runtime.snapshot().state, 'handshake');
      bus.clock.advance(1);
      const { errno, reason } = await guest.refusal();
      assert.equal(errno, ETIMEDOUT);
      assert.match(reason, /took too long/);
      guest.close();
      await until('all closed', () => JSON.stringify(census()) === JSON.stringify(idle));
      assert.equal(bus.clock.timers, 0);
      await bus.close();
    });
  }

  test('a guest that leaves during the handshake leaves no timer behind', async () => {
    const bus = openClockedBus();
    const guest = bus.guest();
    await guest.hello();
    assert.equal(bus.clock.timers, 1);
    guest.close();
    await until('gone', () => bus.runtime.snapshot().state === 'listening');
    assert.equal(bus.clock.timers, 0);
    await bus.close();
  });

  test('a guest that is ready has all the time', async () => {
    const bus = openClockedBus();
    const guest = bus.guest();
    await guest.handshake();
    bus.clock.advance(100 * limits.handshakeTimeoutMs);
    assert.equal((await guest.ask('PING', { data: 3 })).data, 3);
    guest.close();
    await until('gone', () => bus.runtime.snapshot().state === 'listening');
    await bus.close();
  });
});

describe('worker lane', () => {
  const ended = async (lane: Lane): Promise<void> => {
    let failure: { code?: string } | undefined;
    // What is asked before the thread has seen the end may still be answered.
    while (failure === undefined) await lane.call('inspect', {}).catch((error) => (failure = error));
    assert.equal(failure.code, 'unavailable');
  };

  test('close ends the thread; what waits and what comes later fails; nothing stays open', async () => {
    // The first lane of a process opens what stays, and lanes of earlier tests may still be closing.
    const first = makeLane('worker');
    await first.call('inspect', {});
    first.close();
    await ended(first);
    const start = await settledCensus();
    const lane = makeLane('worker');
    const events: unknown[] = [];
    lane.onEvent((event) => events.push(event));
    await lane.call('inspect', {});
    lane.close();
    await ended(lane);
    await ended(lane);
    lane.close();
    await until('all closed', () => JSON.stringify(census()) === start);
    assert.deepEqual(events, [], 'no failure is reported: it was asked for');
  });

  const apart = (lines: string): unknown[] => {
    const directory = mkdtempSync(path.join(tmpdir(), 'vmsg-apart-'));
    const extension = import.meta.url.endsWith('.ts') ? '.ts' : '.js';
    const module = new URL(`../support/bridge-lane${extension}`, import.meta.url).href;
    const script = path.join(directory, 'script.mjs');
    writeFileSync(script, `import { LaneRig, makeLane } from '${module}';\n${lines}`);
    const { status, signal, stderr } = spawnSync(process.execPath, [script], { encoding: 'utf8', timeout: 30_000 });
    rmSync(directory, { recursive: true });
    return [status, signal, stderr];
  };

  test('a process that leaves without closing its lane ends all the same', () => {
    const lines = "const lane = makeLane('worker'); await lane.call('inspect', {}); process.exit(7);";
    assert.deepEqual(apart(lines), [7, null, '']);
  });

  test('after close nothing of the lane keeps the process from ending', () => {
    const lines = "const rig = await new LaneRig('worker').open(); await rig.close();";
    assert.deepEqual(apart(lines), [0, null, '']);
  });
});

describe('late backend host', () => {
  const target = () => {
    const log: string[] = [];
    const host = {
      configChanged: (offset: number, data: Uint8Array) => void log.push(`config ${offset} ${data.length}`),
      failed: (reason: string) => void log.push(`failed ${reason}`),
    };
    return { log, host };
  };

  test('passes reports on, and an early failure as soon as the device exists', () => {
    const { log, host } = target();
    const late = new LateBackendHost(() => assert.fail('it is gone'));
    late.configChanged(0, new Uint8Array(1));
    late.failed('early');
    late.bind(host);
    assert.deepEqual(log, ['failed early']);
    late.failed('later');
    late.configChanged(4, new Uint8Array(2));
    assert.deepEqual(log, ['failed early', 'failed later', 'config 4 2']);
  });
});

for (const kind of ['inline', 'worker'] as const) {
  describe(`lane commands, lane ${kind}`, () => {
    let rig: LaneRig;
    before(async () => {
      rig = await new LaneRig(kind).open();
    });
    after(() => rig.close());

    test('failures of commands arrive with their code', async () => {
      const { lane } = rig;
      const blk = (file: string) => ({ type: 'blk', path: file, readOnly: false, serial: '' }) as const;
      const attach = (attachment: string, backend: ReturnType<typeof blk>, more: object = {}) =>
        lane.call('attach', { bus: 'bus', attachment, backend, ...more });
      await assert.rejects(lane.call('openBus', rig.spec()), { code: 'in-use' });
      await assert.rejects(lane.call('listenBus', { bus: 'nowhere' }), { code: 'not-found' });
      await assert.rejects(lane.call('closeBus', { bus: 'nowhere' }), { code: 'not-found' });
      await assert.rejects(lane.call('detach', { bus: 'bus', attachment: 'nobody' }), { code: 'not-found' });
      await assert.rejects(attach('x', blk('/nowhere')), { code: 'backend-unusable', message: /\/nowhere: cannot be/ });
      await assert.rejects(attach('x', blk(rig.diskPath)), { code: 'backend-unusable', message: /in use/ });
      const other = path.join(rig.directory, 'other');
      writeFileSync(other, 'x');
      await assert.rejects(attach('x', blk(other), { deviceNumber: 0 }), { code: 'device-number-taken' });
      const { deviceNumber } = await attach('x', blk(other));
      assert.equal(deviceNumber, 2, 'the refused attach has let go of the file');
      await lane.call('detach', { bus: 'bus', attachment: 'x' });
      const { devices } = await rig.bus();
      assert.deepEqual(
        devices.map((device) => device.attachment),
        ['disk', 'rng'],
      );
    });

    test('a bus is opened and closed without a trace, any number of times', async () => {
      const start = await settledCensus();
      for (let i = 0; i < 3; i++) {
        const spec = rig.spec({ bus: 'second', socketPath: path.join(rig.directory, 'second.sock') });
        await rig.lane.call('openBus', spec);
        const backend = { type: 'rng', source: '/dev/urandom' } as const;
        await rig.lane.call('attach', { bus: 'second', attachment: 'r', backend });
        await rig.lane.call('listenBus', { bus: 'second' });
        assert.ok(existsSync(spec.socketPath));
        await rig.lane.call('closeBus', { bus: 'second' });
        assert.equal(existsSync(spec.socketPath), false);
        assert.deepEqual(readdirSync(spec.recoveryDir), []);
      }
      await until('all closed', () => JSON.stringify(census()) === start);
    });

    test('closing a bus ends its guest', async () => {
      const spec = rig.spec({ bus: 'third', socketPath: path.join(rig.directory, 'third.sock') });
      await rig.lane.call('openBus', spec);
      await rig.lane.call('listenBus', { bus: 'third' });
      const guest = rig.guest(spec.socketPath);
      await guest.handshake();
      await rig.lane.call('closeBus', { bus: 'third' });
      assert.equal(await guest.receive(), 'closed');
      guest.close();
      await rig.quiet();
    });

    test('a path that cannot be a socket fails the command, and the lane goes on', async () => {
      const spec = rig.spec({ bus: 'bad', socketPath: path.join(rig.directory, 'no', 'such', 'folder') });
      await rig.lane.call('openBus', spec);
      await assert.rejects(rig.lane.call('listenBus', { bus: 'bad' }), { code: 'system-call' });
      await rig.lane.call('closeBus', { bus: 'bad' });
      await rig.bus();
    });

    test('a user that is not admitted is refused, and reported', async () => {
      const spec = rig.spec({
        bus: 'closed',
        socketPath: path.join(rig.directory, 'closed.sock'),
        admittedUids: [],
      });
      await rig.lane.call('openBus', spec);
      await rig.lane.call('listenBus', { bus: 'closed' });
      rig.events.length = 0;
      const guest = rig.guest(spec.socketPath);
      const { errno, reason } = await guest.refusal();
      assert.equal(errno, EACCES);
      assert.match(reason, /is not admitted/);
      guest.close();
      const event = await rig.event('bus-refused');
      assert.ok(event.type === 'bus-refused' && event.bus === 'closed');
      assert.ok(event.peer !== null && 'uid' in event.peer && event.peer.uid === process.getuid?.());
      await rig.lane.call('closeBus', { bus: 'closed' });
    });

    test('a guest that does not read its ring loses the connection; others are not disturbed', async () => {
      const spec = rig.spec({ bus: 'full', socketPath: path.join(rig.directory, 'full.sock') });
      await rig.lane.call('openBus', spec);
      await rig.lane.call('listenBus', { bus: 'full' });
      const neighbour = rig.guest();
      await neighbour.handshake();
      const guest = rig.guest(spec.socketPath);
      await guest.handshake();
      // The backlog, the ring with its responses, and one too many.
      const pings = limits.channelBacklogMessages + (4096 - 128) / 64;
      for (let i = 0; i < pings; i++) {
        await guest.post({ kind: 'request', name: 'PING', body: { data: i } });
        if (i % 100 === 0) assert.equal((await neighbour.ask('PING', { data: i })).data, i);
      }
      assert.equal(await guest.receive(), 'closed');
      assert.equal((await neighbour.ask('PING', { data: 5 })).data, 5);
      guest.close();
      neighbour.close();
      await rig.lane.call('closeBus', { bus: 'full' });
      await rig.quiet();
    });
  });
}
