import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { DeviceBus } from '../../src/bridge/bus/device-bus.ts';
import { sweepBackends } from '../../src/bridge/bus/xen/directory.ts';
import type { LaneEvent } from '../../src/bridge/lane/protocol.ts';
import { memfdBounce } from '../../src/bridge/shadow/bounce-memory.ts';
import { limits } from '../../src/kit/limits.ts';
import { asDomid } from '../../src/ports/hypervisor.ts';
import { dialectD5 } from '../../src/virtio-msg/dialect.ts';
import { FakeBackend } from '../support/bridge-backend.ts';
import { CountingRandom } from '../support/bridge-fakes.ts';
import { NotingHandler, XenBench } from '../support/xen-bench.ts';
import { areaAddress, at, available, resumeQueue, startQueue } from '../support/xen-driver.ts';
import type { XenFrontend } from '../support/xen-frontend.ts';

const zero = asDomid(0)!;
const backendDirectory = '/local/domain/0/backend/vmsg/1/0';

const working = (b: XenBench, guest: XenFrontend): void => {
  assert.equal(b.snapshot.state, 'connected');
  assert.equal(guest.ask('PING', { data: 77 }).data, 77);
};

/** Mappings and channels of a service while nobody is connected. */
const heldWhileOffered = { mappings: 0, shares: 0, channels: 0, watches: 3 };

describe('xen bus: the end of a connection', () => {
  test('a guest that closes is answered, and can come again', async () => {
    const b = new XenBench();
    b.start();
    const guest = b.frontend().connect();
    guest.setState(5);
    assert.deepEqual([guest.backendState, guest.alive.service], [6, 0]);
    assert.deepEqual(b.reasons('bus-disconnected'), ['the guest closed the bus']);
    assert.deepEqual(b.xen.census(zero), heldWhileOffered);
    guest.setState(6);
    assert.deepEqual([guest.backendState, guest.backend('epoch'), guest.backend('token')], [2, '2', undefined]);
    guest.connect();
    working(b, guest);
    assert.equal(b.snapshot.epoch, 2n);
    await b.end();
  });

  test('a guest that is killed is noticed by its alive byte; the next one is let in under a new epoch', async () => {
    const b = new XenBench();
    b.start();
    const guest = b.frontend().connect();
    guest.process.kill();
    b.run();
    assert.deepEqual(b.reasons('bus-disconnected'), ['the guest ended without closing the bus']);
    assert.deepEqual(b.xen.census(zero), heldWhileOffered);
    const next = b.frontend();
    next.setState(1);
    assert.equal(next.backend('epoch'), '2');
    working(b, next.connect());
    await b.end();
  });

  for (const [state, name] of [
    [1, 'Initialising'],
    [6, 'Closed'],
    [3, 'Initialised'],
  ] as const) {
    test(`${name} from a guest that is connected: it starts anew`, async () => {
      const b = new XenBench();
      b.start();
      const guest = b.frontend().connect();
      guest.setState(state);
      assert.equal(b.reasons('bus-disconnected').length, 1);
      assert.equal(guest.backend('epoch'), '2');
      working(b, guest.connect());
      await b.end();
    });
  }

  test('a broken ring ends the connection, no slot is processed past it, and a new offer follows', async () => {
    const b = new XenBench();
    b.start();
    const guest = b.frontend().connect();
    const before = b.snapshot.counters.messagesIn;
    guest.words[0] = 0xffff_fff0;
    guest.ring();
    assert.equal(b.reasons('bus-disconnected').length, 1);
    assert.equal(b.snapshot.counters.messagesIn, before);
    b.advance(0);
    assert.deepEqual([guest.backendState, guest.backend('epoch')], [2, '2']);
    working(b, guest.connect());
    await b.end();
  });

  test('a directory that goes ends the connection and comes back after a while', async () => {
    const b = new XenBench();
    b.start();
    const guest = b.frontend().connect();
    guest.xenstore.remove(guest.path);
    b.run();
    assert.deepEqual(b.reasons('bus-disconnected'), ['the directory of the guest is gone']);
    assert.equal(guest.node('state'), undefined);
    b.advance(limits.xenDirectoryPauseMs - 1);
    assert.equal(guest.node('state'), undefined);
    b.advance(1);
    assert.equal(guest.node('state'), '1');
    working(b, guest.connect());
    await b.end();
  });

  test('a domain that is destroyed leaves nothing mapped, and its directory is not made again', async () => {
    const b = new XenBench();
    b.start();
    b.frontend().connect();
    b.xen.destroy(b.domid);
    b.run();
    assert.deepEqual(b.reasons('bus-disconnected'), ['domain 1 is gone']);
    assert.deepEqual(b.xen.census(zero), heldWhileOffered);
    b.advance(10_000);
    assert.equal(b.xen.stored.tree.generationOf('/local/domain/1'), -1);
    await b.end();
    assert.equal(b.xen.stored.tree.generationOf('/local/domain/1'), -1);
  });

  test('a bus that is removed: the guest hears of it, then both directories are gone', async () => {
    const b = new XenBench();
    b.start();
    const guest = b.frontend().connect();
    const states: (string | undefined)[] = [];
    guest.xenstore.watch(`${backendDirectory}/state`, () => states.push(guest.backend('state')));
    const closing = b.service.runtime.close(true);
    assert.equal(guest.alive.service, 0);
    await closing;
    b.run();
    assert.equal(states.at(-1), undefined);
    await b.end();
  });

  test('a domain that is not there yet is offered the bus when it is introduced', async () => {
    const b = new XenBench();
    const late = b.xen.createDomain('vm2', '00000000-0000-4000-8000-00000000000f', false);
    const process = b.xen.hypervisorFor(zero);
    const transport = b.transport(process, 'driver', late);
    const handler = new NotingHandler();
    transport.start(handler);
    b.run();
    const node = (): number => b.xen.stored.tree.generationOf(`/local/domain/${late}/device/vmsg/0/state`);
    assert.equal(node(), -1);
    b.xen.introduce(late);
    b.run();
    assert.ok(node() >= 0);
    transport.close(true);
    b.xen.close();
  });

  test('a storm of states costs a bounded number of looks and ends with the guest connected', async () => {
    const b = new XenBench();
    b.start();
    const guest = b.frontend().connect();
    const seconds = 10;
    const { reads } = b;
    for (let ms = 0; ms < seconds * 1000; ms += 5) {
      for (let i = 0; i < 5; i++) guest.write('state', String(i));
      b.advance(5);
    }
    const looks = limits.xenLookBurst + (seconds * 1000) / limits.xenLookIntervalMs;
    assert.ok(b.reads - reads <= looks * 3, `${b.reads - reads} reads in ${seconds} s`);
    b.advance(2000);
    guest.setState(6);
    b.advance(2000);
    guest.connect();
    working(b, guest);
    await b.end();
  });
});

describe('xen bus: restart of the service', () => {
  /** A guest with one request in flight when its service is killed. */
  const killedInFlight = () => {
    const b = new XenBench();
    const first = new FakeBackend();
    b.start((runtime) => void b.attach(runtime, first));
    const guest = b.frontend().connect();
    const pool = guest.makePool(4);
    assert.equal(guest.addPool(1, pool), 0);
    const page = { bytes: pool.pages.bytes.subarray(0, 4096), address: areaAddress(1, 0) };
    const queue = startQueue(guest, page);
    queue.add([at(areaAddress(1, 4096), 16)], [at(areaAddress(1, 8192), 512)]);
    queue.kick();
    available(guest);
    assert.equal(first.held.length, 1);
    const claim = guest.claim();
    const events = guest.events;
    b.kill();
    assert.deepEqual([guest.alive.service, guest.backendState], [0, 4], 'only the alive byte tells');
    assert.ok(guest.events > events, 'and an event');
    return { b, guest, pool, page, queue, claim };
  };

  test('a guest resumes with epoch and token, on the same pages and ports', async () => {
    const { b, guest, pool, page, queue, claim } = killedInFlight();
    const second = new FakeBackend();
    b.start((runtime) => void b.attach(runtime, second));
    assert.deepEqual([guest.backendState, guest.backend('epoch'), guest.node('state')], [2, '2', '4']);
    guest.connect(claim);
    assert.equal(guest.backend('resumed'), '1');
    assert.equal(guest.addPool(1, pool), 0);
    assert.equal(guest.ask('GET_DEVICE_STATUS', {}, 0).status, 15);
    const again = resumeQueue(page, queue.save());
    available(guest);
    assert.equal(second.held.length, 1, 'what was in flight is executed again');
    second.complete(512);
    b.run();
    assert.deepEqual(again.next(), { token: 0, writtenBytes: 512 });
    await b.end();
  });

  test('a wrong token is a fresh start', async () => {
    const { b, guest, claim } = killedInFlight();
    b.start((runtime) => void b.attach(runtime, new FakeBackend()));
    guest.connect({ ...claim, 'resume-token': '0'.repeat(32) });
    assert.equal(guest.backend('resumed'), '0');
    assert.equal(guest.ask('GET_DEVICE_STATUS', {}, 0).status, 0);
    await b.end();
  });

  test('epochs go on also where the recovery files are lost', async () => {
    const { b, guest } = killedInFlight();
    b.store.files.clear();
    b.start();
    assert.equal(guest.backend('epoch'), '2');
    working(b, guest.connect());
    await b.end();
  });

  test('a service that stops keeps the bus in xenstore, and maps nothing', async () => {
    const b = new XenBench();
    b.start();
    const guest = b.frontend().connect();
    const claim = guest.claim();
    await b.service.runtime.close(false);
    b.run();
    assert.deepEqual([guest.alive.service, guest.backendState], [0, 4]);
    b.start();
    guest.connect(claim);
    assert.equal(guest.backend('resumed'), '1');
    await b.end();
  });
});

describe('xen bus: devices', () => {
  test('devices come and go while the guest is there', async () => {
    const b = new XenBench();
    b.start();
    const guest = b.frontend().connect();
    const number = b.attach(b.service.runtime, new FakeBackend(), 'late', 7);
    assert.deepEqual(
      guest.takeEvents('EVENT_DEVICE').map(({ body }) => body),
      [{ device: 7, state: 1 }],
    );
    assert.equal(number, 7);
    await b.service.runtime.detach('late');
    b.run();
    assert.deepEqual(
      guest.takeEvents('EVENT_DEVICE').map(({ body }) => body),
      [{ device: 7, state: 2 }],
    );
    await b.end();
  });

  test('who maps the memory of a device is published, kept over offers, and withdrawn', async () => {
    const b = new XenBench();
    b.start((runtime) => {
      b.attach(runtime, new FakeBackend());
    });
    const { transport } = b.service;
    const guest = b.frontend();
    transport.publishDevice(3, { peerDomid: 9, dataPath: 'direct' });
    guest.connect();
    assert.deepEqual([guest.backend('device/3/peer-domid'), guest.backend('device/3/data-path')], ['9', 'direct']);
    guest.setState(5);
    guest.setState(6);
    guest.connect();
    guest.xenstore.remove(guest.path);
    b.run();
    b.advance(2000);
    guest.connect();
    assert.equal(guest.backend('device/3/peer-domid'), '9');
    transport.unpublishDevice(3);
    assert.equal(guest.backend('device/3/peer-domid'), undefined);
    await b.end();
  });

  test('what is published before the bus starts is there with the first offer', async () => {
    const b = new XenBench();
    const process = b.xen.hypervisorFor(zero);
    const transport = b.transport(process);
    transport.publishDevice(1, { peerDomid: 2, dataPath: 'direct' });
    transport.start(new NotingHandler());
    assert.equal(b.frontend().backend('device/1/peer-domid'), '2');
    transport.close(true);
    await b.end();
  });

  test('a queue has its own event channel, for kick and call', async () => {
    const b = new XenBench();
    const backend = new FakeBackend();
    b.start((runtime) => void b.attach(runtime, backend));
    const guest = b.frontend().connect();
    const pool = guest.makePool(4);
    assert.equal(guest.addPool(1, pool), 0);
    const page = { bytes: pool.pages.bytes.subarray(0, 4096), address: areaAddress(1, 0) };
    const queue = startQueue(guest, page);
    let calls = 0;
    const channel = guest.channels.bindUnbound(zero, () => {
      calls += 1;
    });
    const body = { device: 0, queue: 0, flags: 3, kick: channel.port, call: channel.port };
    assert.equal(guest.ask('QUEUE_NOTIFY', body).errno, 0);
    assert.equal(b.xen.census(zero).channels, 2, 'one port for both');
    b.run();
    calls = 0;
    queue.add([at(areaAddress(1, 4096), 16)], [at(areaAddress(1, 8192), 512)]);
    queue.kick();
    available(guest);
    assert.equal(backend.held.length, 0, 'EVENT_AVAIL is not an occurrence any more');
    channel.notify();
    b.run();
    assert.equal(backend.held.length, 1);
    guest.poll();
    backend.complete(512);
    b.run();
    assert.equal(calls, 1);
    assert.deepEqual(guest.takeEvents('EVENT_USED'), []);
    assert.equal(guest.ask('QUEUE_NOTIFY', { ...body, flags: 0 }).errno, 0);
    assert.equal(b.xen.census(zero).channels, 1);
    assert.equal(guest.ask('QUEUE_NOTIFY', { ...body, kick: 999 }).errno, 22);
    assert.match(b.snapshot.diagnosis!, /^event channel port 999 of domain 1 cannot be bound: .* EINVAL/);
    await b.end();
  });

  test('without feature-queue-evtchn a queue gets none', async () => {
    const b = new XenBench();
    b.start((runtime) => void b.attach(runtime, new FakeBackend()));
    const guest = b.frontend().connect({ 'feature-queue-evtchn': undefined });
    const body = { device: 0, queue: 0, flags: 3, kick: 9, call: 9 };
    assert.equal(guest.ask('QUEUE_NOTIFY', body).errno, 95);
    await b.end();
  });
});

describe('xen bus: sweeping', () => {
  test('backend directories that nobody wants go, with the guest’s; the others stay', () => {
    const b = new XenBench();
    const xenstore = b.xen.hypervisorFor(zero).openXenstore();
    for (const bus of ['1/0', '1/1', '7/0', '8/2', 'junk/0']) {
      xenstore.write(`/local/domain/0/backend/vmsg/${bus}/state`, '4');
    }
    xenstore.write('/local/domain/1/device/vmsg/1/state', '4');
    xenstore.write('/local/domain/1/device/vmsg/0/state', '4');
    const removed = sweepBackends(xenstore, zero, (domid, index) => domid === 1 && index === 0);
    assert.equal(removed, 3);
    assert.deepEqual(xenstore.directory('/local/domain/0/backend/vmsg'), ['1']);
    assert.deepEqual(xenstore.directory('/local/domain/0/backend/vmsg/1'), ['0']);
    assert.deepEqual(xenstore.directory('/local/domain/1/device/vmsg'), ['0']);
    assert.equal(
      sweepBackends(xenstore, zero, () => true),
      0,
    );
    b.xen.close();
  });
});

test('xen bus: a guest that serves devices is let in under a new epoch by each service', async () => {
  const b = new XenBench();
  const guest = b.frontend();
  for (const epoch of [1n, 2n, 3n]) {
    const process = b.xen.hypervisorFor(zero);
    const events: LaneEvent[] = [];
    const bus = new DeviceBus({
      bus: 'served',
      domid: b.domid,
      bounce: (_peer, bytes) => memfdBounce(bytes),
      dialect: dialectD5,
      transport: b.transport(process, 'device'),
      clock: b.clock,
      scheduler: b.scheduler,
      random: new CountingRandom(),
      emit: (event) => events.push(event),
    });
    bus.listen();
    b.run();
    assert.equal(guest.backend('role'), 'device');
    guest.connect();
    assert.equal(guest.poll()[0]?.name, 'GET_DEVICES');
    assert.deepEqual(
      events.map((event) => (event.type === 'bus-connected' ? event.epoch : event.type)),
      [epoch],
    );
    process.kill();
    b.run();
  }
  b.xen.close();
});
