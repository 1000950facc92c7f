import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlkDriver, type GuestBus, VirtioDevice, type VmsgError } from '../../src/guest/index.ts';
import { type Bench, isCode, until, withPeer } from '../support/guest-fixture.ts';
import type { HelloAnswer } from '../support/guest-peer.ts';

const resumedAnswer: HelloAnswer = { fields: { flags: 1 } };

/** What a bus tells about its connection. */
function events(bus: GuestBus): string[] {
  const seen: string[] = [];
  bus.on('reconnecting', () => seen.push('reconnecting'));
  bus.on('reconnected', ({ resumed }) => seen.push(resumed ? 'resumed' : 'reset'));
  bus.on('lost', (error) => seen.push(`lost ${error.code}`));
  return seen;
}

/** The service is killed: its memory of the guest goes, what it keeps of devices stays. */
function kill({ peer, model }: Bench): void {
  peer.die();
  model.closeRegions();
}

test('after a restart that resumes, what waits completes, once', () =>
  withPeer(async (bench) => {
    const { peer, model } = bench;
    const bus = await bench.connect({ reconnect: true });
    const seen = events(bus);
    const blk = await BlkDriver.open(bus, 3, { transferBytes: 512 });
    await bus.memory.addRegion(8192);
    model.serving = false;
    const data = Uint8Array.from({ length: 4096 }, (_, i) => i % 251);
    let completions = 0;
    const writing = blk.write(0, data).then(() => {
      completions += 1;
    });
    model.overrides.set('GET_CONFIG', () => 'silent');
    const control = blk.device.config.read(0, 8);
    await until(() => model.log.includes('EVENT_AVAIL') && model.log.includes('GET_CONFIG'), 'both are out');
    const first = bus.terms;
    kill(bench);
    await until(() => bus.state === 'reconnecting', 'the loss is seen');
    // Asked in the meantime: waits for the connection.
    const between = bus.ping();
    const late = blk.write(16, new Uint8Array(512).fill(5));
    model.overrides.clear();
    model.log.length = 0;
    model.serving = true;
    peer.options = { onHello: () => resumedAnswer };
    peer.listen();
    await Promise.all([writing, late, between, control]);
    assert.equal(peer.connection?.hello.resumeEpoch, first.epoch);
    assert.deepEqual(peer.connection?.hello.resumeToken, first.token);
    assert.deepEqual([...model.regions.keys()], [1, 2]);
    assert.deepEqual(model.log.slice(0, 2), ['REGION_ADD', 'REGION_ADD']);
    const order = ['GET_CONFIG', 'GET_DEVICE_STATUS', 'EVENT_AVAIL'].map((name) => model.log.indexOf(name));
    assert.deepEqual(
      order,
      [...order].sort((a, b) => a - b),
      String(model.log),
    );
    assert.deepEqual(model.disk.subarray(0, 4096), data);
    assert.equal(model.disk[16 * 512], 5);
    assert.equal(completions, 1);
    assert.equal(model.completed, 9);
    assert.deepEqual(seen, ['reconnecting', 'resumed']);
    assert.equal(bus.statistics.reconnects, 1);
    assert.equal((await blk.read(0, 512)).length, 512);
  }));

test('a completion that was published but not told before the restart is found', () =>
  withPeer(async (bench) => {
    const { peer, model } = bench;
    const bus = await bench.connect({ reconnect: true });
    const blk = await BlkDriver.open(bus, 3);
    const usual = peer.handler;
    peer.handler = (message, header, connection) => {
      // The device works, and its message to the guest is lost.
      if (message.name === 'EVENT_AVAIL') model.serve({ send: () => {} } as never);
      else usual(message, header, connection);
    };
    const reading = blk.read(0, 512);
    await until(() => model.completed === 1, 'the device has completed it');
    model.serving = false;
    kill(bench);
    peer.options = { onHello: () => resumedAnswer };
    peer.listen();
    assert.equal((await reading).length, 512);
    assert.equal(model.completed, 1);
  }));

test('after a restart that forgot everything, what waits ends and the device is opened again', () =>
  withPeer(async (bench) => {
    const { peer, model } = bench;
    const bus = await bench.connect({ reconnect: true });
    const seen = events(bus);
    const blk = await BlkDriver.open(bus, 3);
    const buffers = bus.memory.regions[0]?.buffers ?? 0;
    model.serving = false;
    const pending = assert.rejects(blk.read(0, 512), isCode('bus-lost'));
    kill(bench);
    model.forget();
    model.serving = true;
    peer.listen();
    await pending;
    await until(() => seen.length === 2, 'the bus is back');
    assert.deepEqual(seen, ['reconnecting', 'reset']);
    const again = await BlkDriver.open(bus, 3);
    await blk.close();
    assert.equal(model.status, 15, 'the old handle does not reset the new device');
    assert.equal(bus.memory.regions[0]?.buffers, buffers);
    assert.equal((await again.read(0, 512)).length, 512);
  }));

test('a device that the service could not keep fails alone', () =>
  withPeer(async (bench) => {
    const { peer, model } = bench;
    const bus = await bench.connect({ reconnect: true });
    const blk = await BlkDriver.open(bus, 3);
    let failed: VmsgError | undefined;
    blk.on('failed', (error) => {
      failed = error;
    });
    kill(bench);
    model.forget();
    peer.options = { onHello: () => resumedAnswer };
    peer.listen();
    await until(() => failed !== undefined, 'the device fails');
    assert.equal(failed?.code, 'bus-lost');
    const again = await BlkDriver.open(bus, 3);
    assert.equal((await again.read(0, 512)).length, 512);
  }));

test('a connection that did not resume voids the state even when the next one resumes it', () =>
  withPeer(async (bench) => {
    const { peer, model } = bench;
    const bus = await bench.connect({ reconnect: true });
    const seen = events(bus);
    await VirtioDevice.open(bus, 3);
    const first = bus.terms.epoch;
    kill(bench);
    model.forget();
    const claims: bigint[] = [];
    peer.options = {
      onHello: ({ resumeEpoch }) => {
        claims.push(resumeEpoch);
        if (claims.length > 1) peer.options = { onHello: () => resumedAnswer };
        return claims.length > 1 ? resumedAnswer : { fields: { flags: 0, epoch: 77n } };
      },
      afterRings: 'close',
    };
    peer.listen();
    await until(() => seen.length === 2, 'the bus is back');
    assert.deepEqual(claims, [first, 77n]);
    assert.deepEqual(seen, ['reconnecting', 'reset']);
  }));

test('a bus that is busy is tried again; one that refuses is not', () =>
  withPeer(async (bench) => {
    const { peer } = bench;
    const bus = await bench.connect({ reconnect: true });
    const seen = events(bus);
    let refusals = 0;
    kill(bench);
    peer.options = {
      onHello: () => {
        refusals += 1;
        return refusals < 3 ? { errno: 16, reason: 'another guest' } : resumedAnswer;
      },
    };
    peer.listen();
    await until(() => seen.includes('resumed'), 'the bus is back');
    assert.equal(refusals, 3);
    peer.options = { onHello: () => ({ errno: 13, reason: 'not you' }) };
    peer.connection?.close();
    await until(() => bus.state === 'closed', 'the bus gives up');
    assert.deepEqual(seen, ['reconnecting', 'resumed', 'reconnecting', 'lost bus-lost']);
  }));

test('the attempts to reconnect end with their time', () =>
  withPeer(async (bench) => {
    const bus = await bench.connect({ reconnect: { totalMs: 60 } });
    const seen = events(bus);
    const blk = await BlkDriver.open(bus, 3);
    bench.model.serving = false;
    const pending = [
      assert.rejects(blk.read(0, 512), isCode('bus-lost')),
      assert.rejects(blk.device.config.read(0, 1), isCode('bus-lost')),
    ];
    bench.model.overrides.set('GET_CONFIG', () => 'silent');
    await until(() => bench.model.log.includes('EVENT_AVAIL'), 'the request is out');
    kill(bench);
    await Promise.all(pending);
    await until(() => bus.state === 'closed', 'the bus gives up');
    assert.deepEqual(seen, ['reconnecting', 'lost bus-lost']);
  }));

test('a bus that is closed while it reconnects stays closed', () =>
  withPeer(async (bench) => {
    const bus = await bench.connect({ reconnect: true });
    const blk = await BlkDriver.open(bus, 3);
    const region = () => bus.memory.addRegion(4096);
    kill(bench);
    await until(() => bus.state === 'reconnecting', 'the loss is seen');
    const pending = [assert.rejects(bus.ping(), isCode('bus-lost')), assert.rejects(region(), isCode('bus-lost'))];
    bus.close();
    await Promise.all(pending);
    await blk.close();
    bench.peer.listen();
    const { connections } = bench.peer;
    await new Promise((resolve) => setTimeout(resolve, 50));
    assert.equal(bench.peer.connections, connections);
    assert.equal(bus.state, 'closed');
  }));

test('a connection lost again while it resumes is made once more', () =>
  withPeer(async (bench) => {
    const { peer, model } = bench;
    const bus = await bench.connect({ reconnect: true });
    const seen = events(bus);
    const blk = await BlkDriver.open(bus, 3);
    model.serving = false;
    const reading = blk.read(0, 512);
    await until(() => model.log.includes('EVENT_AVAIL'), 'the request is out');
    kill(bench);
    let additions = 0;
    model.overrides.set('REGION_ADD', (_body, _header, connection) => {
      additions += 1;
      if (additions > 1) return 'usual';
      setImmediate(() => connection.close());
      return 'silent';
    });
    model.serving = true;
    peer.options = { onHello: () => resumedAnswer };
    peer.listen();
    assert.equal((await reading).length, 512);
    assert.equal(additions, 2);
    assert.deepEqual(seen, ['reconnecting', 'resumed']);
  }));

test('devices that came and went in the meantime are told', () =>
  withPeer(async (bench) => {
    const { peer, model } = bench;
    const bus = await bench.connect({ reconnect: true });
    assert.deepEqual(await bus.devices(), [3]);
    const seen: string[] = [];
    bus.on('added', ({ device }) => seen.push(`+${device}`));
    bus.on('removed', ({ device }) => seen.push(`-${device}`));
    kill(bench);
    model.overrides.set('GET_DEVICES', () => ({ offset: 0, nextOffset: 0, count: 8, bitmap: Uint8Array.of(0x20) }));
    peer.options = { onHello: () => resumedAnswer };
    peer.listen();
    await until(() => seen.length === 2, 'both are told');
    assert.deepEqual(seen, ['-3', '+5']);
  }));
